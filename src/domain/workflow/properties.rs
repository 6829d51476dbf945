//! What holds of every workflow.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A valid workflow with these fields in each of its objects, under names that the service does not use.
fn with_unknown(unknown: &[(String, Value)]) -> Value {
    let mut workflow = json!({"stages": [{
        "input": [{"id": "did:op:1"}],
        "algorithm": {"id": "did:op:2", "container": {"entrypoint": "sh $ALGO", "image": "alpine", "tag": "3"}},
        "compute": {},
        "output": {},
    }]});
    for path in PLACES {
        let object = workflow.pointer_mut(path).and_then(Value::as_object_mut).unwrap();
        object.extend(unknown.iter().cloned());
    }
    workflow
}

const PLACES: [&str; 7] = [
    "",
    "/stages/0",
    "/stages/0/input/0",
    "/stages/0/algorithm",
    "/stages/0/algorithm/container",
    "/stages/0/compute",
    "/stages/0/output",
];

/// The fields of a valid workflow that have rules.
const CHECKED: [&str; 12] = [
    "/stages",
    "/stages/0",
    "/stages/0/input",
    "/stages/0/input/0",
    "/stages/0/input/0/id",
    "/stages/0/algorithm",
    "/stages/0/algorithm/id",
    "/stages/0/algorithm/container",
    "/stages/0/algorithm/container/image",
    "/stages/0/algorithm/container/tag",
    "/stages/0/compute",
    "/stages/0/output",
];

fn unknown() -> impl Strategy<Value = Vec<(String, Value)>> {
    // The container drops null.
    let not_null = any_json().prop_filter("null", |value| !value.is_null());
    prop::collection::vec(("x-[a-z]{1,8}", not_null), 0..4)
}

proptest! {
    #[test]
    fn unknown_fields_are_kept(unknown in unknown()) {
        let sent = with_unknown(&unknown);
        let workflow = Workflow::check(sent.clone()).unwrap();
        prop_assert_eq!(Value::Object(workflow.into_object()), sent);
    }

    #[test]
    fn what_is_stored_is_ascii_and_read_back(unknown in unknown()) {
        let workflow = Workflow::check(with_unknown(&unknown)).unwrap().into_object();
        let document = document(&workflow, &crate::domain::JobId::random(), &crate::domain::Namespace::stored("n"));
        prop_assert!(document.is_ascii());
        prop_assert_eq!(stored(&document), Some(workflow));
    }

    #[test]
    fn any_json_is_a_workflow_or_is_refused(value in any_json()) {
        // It has no stage with an algorithm.
        prop_assert!(Workflow::check(value).is_err());
    }

    #[test]
    fn a_checked_workflow_passes_the_check_again(at in prop::sample::select(&CHECKED[..]), value in any_json()) {
        let mut sent = with_unknown(&[]);
        *sent.pointer_mut(at).unwrap() = value;
        match Workflow::check(sent) {
            Ok(workflow) => {
                let object = workflow.into_object();
                let again = Workflow::check(Value::Object(object.clone())).unwrap();
                prop_assert_eq!(again.into_object(), object);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn any_text_is_a_stored_document_or_is_none(text in any::<String>()) {
        stored_max_time(&text);
        prop_assert!(stored(&text).is_none());
    }
}
