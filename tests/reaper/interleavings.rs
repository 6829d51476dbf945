//! Random interleavings of requests, engine steps, crashes and sweeps, with the invariants of docs/reaper.md checked
//! after each.
//!
//! The database of the test has a clock that can be set forward. The timestamps of pods and Jobs are set back by as
//! much.
//!
//! PROPTEST_CASES=1000 runs more cases. A case that fails is shortened, printed and written to
//! interleavings.regressions; the cases in that file are run first.

mod engine;
mod invariants;
mod model;
mod sweeps;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, FileFailurePersistence, TestError, TestRunner};

use model::World;

/// The number of cases, unless PROPTEST_CASES is set.
const CASES: u32 = 24;
/// The jobs' agreements.
const AGREEMENTS: usize = 3;

/// What happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something that may also happen in the middle of a sweep.
    Act(Act),
    /// A number of minutes passes.
    Time(i64),
    /// A sweep. At a point of it, these acts happen; then it continues, or is killed.
    Sweep { broken: Option<(Break, Vec<Act>)>, killed: bool },
    /// A dry run.
    DryRun,
    /// The cluster goes down.
    Down,
    /// An environment refuses every request.
    Forbid(usize),
    /// The cluster is up again, and refuses nothing.
    Up,
    /// A number of requests is answered with 429.
    Throttle(usize),
    /// The answers to a number of requests are lost.
    LoseAnswers(usize),
}

/// Where a sweep is interrupted.
#[derive(Debug, Clone, Copy)]
pub enum Break {
    /// After this number of requests to the cluster.
    Requests(usize),
    /// After it was polled this number of times: anywhere, including the database's statements.
    Polls(usize),
    /// When it is about to end a step: it looks for the pod whose log is to be kept.
    EndStep,
}

/// What callers, engines and administrators do.
#[derive(Debug, Clone)]
pub enum Act {
    /// A request. With `killed`, its handler is killed after this number of requests to the cluster.
    Start {
        agreement: usize,
        environment: usize,
        valid_for: Option<i64>,
        killed: Option<usize>,
    },
    Stop {
        job: Index,
        killed: Option<usize>,
    },
    Delete {
        job: Index,
        killed: Option<usize>,
    },
    /// The engine of an environment asks for jobs.
    Announce {
        environment: usize,
        slots: i32,
    },
    /// The engine continues with a job, by this number of steps if it can.
    Engine {
        job: Index,
        steps: usize,
    },
    /// The engine continues with a job, and this number of its steps succeed.
    Run {
        job: Index,
        steps: usize,
    },
    /// The engine of an environment forgets all its jobs.
    Crash {
        environment: usize,
    },
    /// The pod of a job changes.
    Pods {
        job: Index,
        fate: Fate,
    },
    /// An administrator deletes one of a job's objects.
    DeleteObject {
        job: Index,
        object: Index,
    },
}

/// What happens to a pod.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    Runs,
    /// It succeeds; that of configure writes the status, that of publish writes the URLs of the outputs.
    Succeeds,
    /// The same, but configure could not fetch the data.
    FindsNoData,
    /// It fails, and its Job with it.
    Fails,
    RunsOutOfMemory,
    HasNoImage,
    HasNoVolume,
    HasNoNode,
}

fn act() -> impl Strategy<Value = Act> {
    let job = any::<Index>;
    let environment = 0..model::ENVIRONMENTS;
    let valid_for = prop_oneof![8 => Just(None), 1 => Just(Some(600)), 1 => Just(Some(20_000))];
    let fate = prop_oneof![
        3 => Just(Fate::Runs),
        5 => Just(Fate::Succeeds),
        1 => Just(Fate::FindsNoData),
        1 => Just(Fate::Fails),
        1 => Just(Fate::RunsOutOfMemory),
        1 => Just(Fate::HasNoImage),
        1 => Just(Fate::HasNoVolume),
        1 => Just(Fate::HasNoNode),
    ];
    prop_oneof![
        3 => (0..AGREEMENTS, environment.clone(), valid_for, killed())
            .prop_map(|(agreement, environment, valid_for, killed)| {
                Act::Start { agreement, environment, valid_for, killed }
            }),
        1 => (job(), killed()).prop_map(|(job, killed)| Act::Stop { job, killed }),
        1 => (job(), killed()).prop_map(|(job, killed)| Act::Delete { job, killed }),
        2 => (environment.clone(), 1..3_i32).prop_map(|(environment, slots)| Act::Announce { environment, slots }),
        6 => (job(), 1..5_usize).prop_map(|(job, steps)| Act::Engine { job, steps }),
        6 => (job(), 0..4_usize).prop_map(|(job, steps)| Act::Run { job, steps }),
        1 => environment.prop_map(|environment| Act::Crash { environment }),
        6 => (job(), fate).prop_map(|(job, fate)| Act::Pods { job, fate }),
        1 => (job(), any::<Index>()).prop_map(|(job, object)| Act::DeleteObject { job, object }),
    ]
}

fn killed() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![4 => Just(None), 1 => (1..4_usize).prop_map(Some)]
}

fn event() -> impl Strategy<Value = Event> {
    let minutes = prop_oneof![6 => 1..20_i64, 2 => 25..75_i64, 1 => 100..200_i64, 1 => 1000..12_000_i64];
    let broken = prop_oneof![
        1 => (1..40_usize).prop_map(Break::Requests),
        1 => (1..400_usize).prop_map(Break::Polls),
        2 => Just(Break::EndStep),
    ];
    let broken = proptest::option::of((broken, proptest::collection::vec(act(), 0..4)));
    prop_oneof![
        20 => act().prop_map(Event::Act),
        5 => minutes.prop_map(Event::Time),
        8 => (broken, proptest::bool::weighted(0.3)).prop_map(|(broken, killed)| Event::Sweep { broken, killed }),
        1 => Just(Event::DryRun),
        1 => Just(Event::Down),
        1 => (0..model::ENVIRONMENTS).prop_map(Event::Forbid),
        2 => Just(Event::Up),
        1 => (1..4_usize).prop_map(Event::Throttle),
        1 => (1..4_usize).prop_map(Event::LoseAnswers),
    ]
}

#[test]
fn whatever_happens_nothing_is_lost_and_nothing_is_left_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = Config::with_cases(CASES);
    if let Some(cases) = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()) {
        config.cases = cases;
    }
    config.max_shrink_time = 60_000;
    config.failure_persistence =
        Some(Box::new(FileFailurePersistence::Direct("tests/reaper/interleavings.regressions")));
    let world = runtime.block_on(World::new());
    // Starts with one job, so that there is work.
    let events = (act_of_start(), proptest::collection::vec(event(), 20..60)).prop_map(|(start, mut events)| {
        events.insert(0, Event::Act(start));
        events
    });
    let result = TestRunner::new(config).run(&events, |events| {
        runtime.block_on(world.case(&events));
        Ok(())
    });
    println!("{}", world.tally());
    let _entered = runtime.enter();
    drop(world);
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, events)) => {
            let events: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
            panic!("{why}\nThe shortest case found:\n{}", events.join("\n"));
        }
        Err(error) => panic!("{error}"),
    }
}

fn act_of_start() -> impl Strategy<Value = Act> {
    (0..model::ENVIRONMENTS).prop_map(|environment| Act::Start {
        agreement: 0,
        environment,
        valid_for: None,
        killed: None,
    })
}
