//! The rules on job states that both Rust and SQL need: every place decides the same, for every combination of what
//! they depend on (docs/contract/engine.md, "announce()" and "Finished jobs").

use std::collections::{BTreeMap, BTreeSet};

use operator_service::db::{Change, Cursor, JobSelector, ListRange, RequestedBy};
use operator_service::domain::{JobId, Owner, Status, StopRequest, may_be_dispatched, settles_in};

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

/// As the reaper reads a row without a status.
fn status(code: Option<i32>) -> Status {
    Status::from_code(code.unwrap_or(0))
}

#[tokio::test]
async fn settled_is_the_same_in_rust_and_in_both_statements() {
    let database = TestDatabase::migrated().await;
    let owner = owner();
    let mut expected = BTreeMap::new();
    for code in STATUSES {
        for age in [None, Some(0.0), Some(3500.0), Some(3700.0), Some(1e6)] {
            let finished = age.map(|age| now() - age);
            let job = Stored { owner: Some(owner.clone()), status: code, finished, ..Stored::default() };
            let job_id = JobId::stored(job.insert(&database).await.job_id);
            expected.insert(job_id, age.is_some_and(|age| settles_in(status(code), age) <= 0.0));
        }
    }
    assert!(expected.values().any(|settled| *settled) && expected.values().any(|settled| !*settled));

    let store = database.service();
    let names: Vec<JobId> = expected.keys().cloned().collect();
    let known = store.known_jobs(&names).await.unwrap();
    assert_eq!(known.into_iter().map(|job| (job.job_id, job.settled)).collect::<BTreeMap<_, _>>(), expected);

    let selector = JobSelector { owner: Owner::parse(&owner).unwrap(), job_id: None, agreement_id: None };
    let range = ListRange { limit: 0, offset: 0 };
    let changed = store.change(Change::Delete, selector, RequestedBy::Anyone, None, range).await.unwrap();
    let touched = changed.touched.into_iter().map(|job| (job.job_id, job.settled));
    assert_eq!(touched.collect::<BTreeMap<_, _>>(), expected);
}

#[tokio::test]
async fn what_may_be_dispatched_is_the_same_in_rust_in_announce_and_for_the_registration() {
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
                    let stop = StopRequest::from_code(stop.unwrap_or(0));
                    if may_be_dispatched(status(code), stop, removed == Some(1), valid_for) {
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

    database.execute("UPDATE jobs SET registered = false").await;
    let store = database.service();
    let (mut registered, mut next) = (BTreeSet::new(), Some(Cursor::default()));
    while let Some(cursor) = next {
        let (jobs, after) = store.unregistered_jobs(&cursor).await.unwrap();
        registered.extend(jobs.into_iter().map(|job| job.job_id.to_string()));
        next = after;
    }
    assert_eq!(registered.intersection(&waiting).cloned().collect::<BTreeSet<_>>(), expected);

    let dispatched = database.engine("here", "{}", 10_000).await;
    assert_eq!(dispatched.into_iter().collect::<BTreeSet<_>>(), expected);
}
