//! Rounds of requests and faults against the real binaries, with a real PostgreSQL, and the promises that hold after
//! each of them (docs/reliability.md).
//!
//! A round is a random plan of 200 operations ([`plan`]): what callers, the engine and the reaper do, in between what
//! fails. [`world`] has the processes and what stands between them, [`round`] carries a plan out, [`promises`] compares
//! what callers were answered with the database, its history and the cluster.
//!
//! `make test-faults ROUNDS=500 SEED=1` runs other rounds. The seed is printed, and decides the plans, not the timing. A
//! plan that fails is made shorter for as long as a shorter one fails, too.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "shared with tests/functions")]
#[path = "../functions/child.rs"]
mod child;
#[allow(dead_code, reason = "shared with tests/functions")]
#[path = "../functions/origin.rs"]
mod origin;
#[allow(dead_code, reason = "shared with tests/functions")]
#[path = "../functions/runtime_api.rs"]
mod runtime_api;

mod aws;
mod callers;
mod engine;
mod faults;
mod plan;
mod promises;
mod round;
mod world;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use world::World;

/// How long a test waits for what has to happen before it fails.
const LIMIT: Duration = Duration::from_secs(30);
/// The number of rounds, unless FAULT_ROUNDS is set.
const ROUNDS: u32 = 20;
/// How many worlds there are at once, each with a part of the rounds.
const WORLDS: u32 = 2;
/// The number of operations of a round, unless FAULT_OPERATIONS is set.
const OPERATIONS: usize = 200;
/// How long a plan that fails is made shorter, in milliseconds.
const SHRINKING: u32 = 120_000;

#[test]
fn nothing_is_lost_and_nobody_is_in_doubt_whatever_fails() {
    let seed = number("FAULT_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let rounds: u32 = number("FAULT_ROUNDS").unwrap_or(ROUNDS);
    let threads: Vec<_> = (0..WORLDS.min(rounds))
        .map(|number| {
            let rounds = rounds / WORLDS + u32::from(number < rounds % WORLDS);
            std::thread::spawn(move || run(rounds, seed.wrapping_add(number.into())))
        })
        .collect();
    let failed = threads.into_iter().filter_map(|thread| thread.join().err()).count();
    assert_eq!(failed, 0, "worlds in which a promise was broken");
}

/// Runs rounds in a world of their own.
fn run(rounds: u32, seed: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let operations = number("FAULT_OPERATIONS").unwrap_or(OPERATIONS);
    println!("{rounds} rounds of {operations} operations: FAULT_SEED={seed}");
    let Some(world) = runtime.block_on(World::new()) else { return };
    let world = Arc::new(world);
    let config = Config {
        cases: rounds,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_time: SHRINKING,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&plan::plan(operations), |plan| {
        runtime.block_on(round::run(&world, &plan));
        Ok(())
    });
    println!("{rounds} rounds, FAULT_SEED={seed}:\n{}", world.tally());
    runtime.block_on(world.stop());
    match result {
        Ok(()) => world.assert_not_idle(rounds as usize * operations),
        Err(TestError::Fail(why, plan)) => {
            let plan: Vec<_> = plan.iter().map(|event| format!("{event:?}")).collect();
            panic!("FAULT_SEED={seed}: {why}\nThe shortest plan found:\n{}", plan.join("\n"));
        }
        Err(error) => panic!("FAULT_SEED={seed}: {error}"),
    }
}

/// The number that an environment variable holds, if it is set.
fn number<T: FromStr<Err: std::fmt::Debug>>(name: &str) -> Option<T> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}
