//! Random interleavings of requests, engine steps, crashes and sweeps, with the invariants of docs/reaper.md checked
//! after each.
//!
//! Time is told by the database: each test's own has a clock that can be put forward. What pods and Jobs say of their
//! times is put back by as much.
//!
//! PROPTEST_CASES=1000 runs more cases. A case that fails is made as short as possible, printed, and kept in
//! interleavings.regressions, from which it is run first from then on.

mod engine;
mod invariants;
mod model;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, FileFailurePersistence, TestError, TestRunner};

use model::World;

/// As many cases are run if PROPTEST_CASES does not say otherwise.
const CASES: u32 = 24;
/// The jobs' agreements.
const AGREEMENTS: usize = 3;

/// What happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something that may also happen in the middle of a sweep.
    Act(Act),
    /// So many minutes pass.
    Time(i64),
    /// A sweep. Before its request of that number, or after so many of its steps, these things happen; then it goes
    /// on, or is killed.
    Sweep { broken: Option<(Break, Vec<Act>)>, killed: bool },
    /// A sweep that only says what it would do.
    DryRun,
    /// The cluster is gone.
    Down,
    /// The cluster is there.
    Up,
    /// The next so many requests are too many.
    Throttle(usize),
    /// The answers to the next so many requests are lost.
    LoseAnswers(usize),
}

/// Where a sweep is broken off.
#[derive(Debug, Clone, Copy)]
pub enum Break {
    /// After so many requests to the cluster.
    Requests(usize),
    /// After it was polled so many times: anywhere, the database's statements included.
    Polls(usize),
}

/// What others than the reaper do.
#[derive(Debug, Clone)]
pub enum Act {
    /// A request; with `killed`, its handler is killed once the cluster was asked so often.
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
    /// The engine of an environment asks for so many jobs.
    Announce {
        environment: usize,
        slots: i32,
    },
    /// The engine goes on with a job, so many steps if it can.
    Engine {
        job: Index,
        steps: usize,
    },
    /// An engine does all it can with a job, and its pods what they should: so many steps of it.
    Run {
        job: Index,
        steps: usize,
    },
    /// The engine of an environment forgets all its jobs.
    Crash {
        environment: usize,
    },
    /// The pods of a job do something.
    Pods {
        job: Index,
        fate: Fate,
    },
    /// Somebody deletes one of a job's objects.
    DeleteObject {
        job: Index,
        object: Index,
    },
}

/// What a pod does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fate {
    Runs,
    /// It is done; that of configure says so in the book, that of publish writes where the outputs are.
    Succeeds,
    /// Like that, but configure could not fetch the data.
    FindsNoData,
    /// It has failed for good.
    Fails,
    RunsOutOfMemory,
    HasNoImage,
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
    let broken = prop_oneof![(1..40_usize).prop_map(Break::Requests), (1..400_usize).prop_map(Break::Polls)];
    let broken = proptest::option::of((broken, proptest::collection::vec(act(), 0..4)));
    prop_oneof![
        20 => act().prop_map(Event::Act),
        5 => minutes.prop_map(Event::Time),
        8 => (broken, proptest::bool::weighted(0.3)).prop_map(|(broken, killed)| Event::Sweep { broken, killed }),
        1 => Just(Event::DryRun),
        1 => Just(Event::Down),
        2 => Just(Event::Up),
        1 => (1..4_usize).prop_map(Event::Throttle),
        1 => (1..4_usize).prop_map(Event::LoseAnswers),
    ]
}

#[test]
fn whatever_happens_nothing_is_lost_and_nothing_stays_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut config = Config::with_cases(CASES);
    if let Some(cases) = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()) {
        config.cases = cases;
    }
    config.max_shrink_time = 60_000;
    config.failure_persistence =
        Some(Box::new(FileFailurePersistence::Direct("tests/reaper/interleavings.regressions")));
    let world = runtime.block_on(World::new());
    // One to begin with, so that there is something to do.
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
