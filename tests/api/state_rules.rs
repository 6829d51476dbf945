//! The rules on job states that statements apply, for every combination of what they depend on
//! (docs/contract/engine.md, "announce()" and "Finished jobs").

use std::collections::{BTreeMap, BTreeSet};

use operator_service::db::{Change, JobSelector, ListRange, RequestedBy};
use operator_service::domain::{JobId, Owner};

use crate::given::now;
use crate::support::{Stored, TestDatabase, owner};

const STATUSES: [Option<i32>; 15] = [
    None,
    Some(0),
    Some(1),
    Some(2),
    Some(10),
    Some(20),
    Some(30),
    Some(31),
    Some(32),
    Some(40),
    Some(41),
    Some(50),
    Some(60),
    Some(70),
    Some(99),
];

#[tokio::test]
async fn the_objects_of_settled_jobs_are_deleted_with_them() {
    let database = TestDatabase::migrated().await;
    let owner = owner();
    let mut expected = BTreeMap::new();
    for code in STATUSES {
        for age in [None, Some(0.0), Some(3500.0), Some(3700.0), Some(1e6)] {
            let finished = age.map(|age| now() - age);
            let job = Stored { owner: Some(owner.clone()), status: code, finished, ..Stored::default() };
            let job_id = JobId::stored(job.insert(&database).await.job_id);
            expected.insert(job_id, age.is_some_and(|age| matches!(code, Some(31 | 32 | 70)) || age >= 3600.0));
        }
    }
    assert!(expected.values().any(|settled| *settled) && expected.values().any(|settled| !*settled));

    let store = database.service();
    let selector = JobSelector { owner: Owner::parse(&owner).unwrap(), job_id: None, agreement_id: None };
    let range = ListRange { limit: 0, offset: 0 };
    let changed = store.change(Change::Delete, selector, RequestedBy::Anyone, None, range).await.unwrap();
    let touched = changed.touched.into_iter().map(|job| (job.job_id, job.settled));
    assert_eq!(touched.collect::<BTreeMap<_, _>>(), expected);
}

#[tokio::test]
async fn announce_dispatches_what_may_be_dispatched() {
    let database = TestDatabase::migrated().await;
    let now = now();
    let (mut all, mut expected, mut waiting) = (0, BTreeSet::new(), BTreeSet::new());
    for code in STATUSES {
        for stop in [None, Some(0), Some(1), Some(2)] {
            for removed in [None, Some(0), Some(1)] {
                for valid_for in [None, Some(-60.0), Some(600.0)] {
                    let job = Stored {
                        namespace: Some("here".to_owned()),
                        status: code,
                        stopreq: stop,
                        removed,
                        valid_until: valid_for.map(|seconds| (now + seconds) as i64),
                        ..Stored::default()
                    };
                    let job_id = job.insert(&database).await.job_id;
                    let may_start = removed != Some(1) && valid_for.is_none_or(|seconds| seconds > 0.0);
                    if code == Some(1) && stop.unwrap_or(0) == 0 && may_start {
                        expected.insert(job_id.clone());
                    }
                    if code == Some(1) {
                        waiting.insert(job_id);
                    }
                    all += 1;
                }
            }
        }
    }
    assert!(!expected.is_empty() && expected.len() < waiting.len() && waiting.len() < all);

    let dispatched = database.engine("here", "{}", 10_000).await;
    assert_eq!(dispatched.into_iter().collect::<BTreeSet<_>>(), expected);
}
