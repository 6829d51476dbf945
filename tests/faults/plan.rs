//! What happens in a round, and how plans are generated.

use nix::sys::signal::Signal;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::At;
use crate::support::operation::Caller;

/// The processes that answer requests: servers, and a function for each group of routes.
pub const ENDPOINTS: [EndpointKind; 6] = [
    EndpointKind::Server,
    EndpointKind::Server,
    EndpointKind::Function(Group::Compute),
    EndpointKind::Function(Group::Results),
    EndpointKind::Function(Group::Environments),
    EndpointKind::Function(Group::Admin),
];
/// The agreements that several starts of a round use.
const SHARED: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointKind {
    Server,
    Function(Group),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    Compute,
    Results,
    Environments,
    Admin,
}

#[derive(Debug, Clone)]
pub enum Event {
    Request(Request),
    /// The engine takes a job that waits, if there is one, and begins it.
    Dispatch,
    /// The engine finishes a job that it has begun.
    Finish(Index),
    /// The clock of the database is set forward, by more than STORAGE_EXPIRY.
    Time,
    /// A sweep; killed after this number of events, unless it ends before.
    Sweep {
        killed_after: Option<usize>,
    },
    Fault {
        fault: Fault,
        lasts: usize,
    },
}

#[derive(Debug, Clone)]
pub struct Request {
    pub caller: Caller,
    pub what: What,
    pub delivery: Delivery,
    /// The endpoint that it is sent to first. A repetition goes to the next one.
    pub endpoint: usize,
    /// By how many seconds the caller's clock is ahead.
    pub ahead: i64,
}

#[derive(Debug, Clone)]
pub enum What {
    Start(Agreement),
    Stop(Index),
    Delete(Index),
    Status(Index),
    Result(Index),
    /// A start that is signed by a key that is not allowed.
    Stranger,
    /// A start in an environment that no engine has announced.
    Nowhere,
    /// GET /environments.
    Environments,
    /// POST /pgsqlinit.
    Migrate,
}

impl What {
    /// The group of its route.
    pub fn group(&self) -> Group {
        match self {
            Self::Result(_) => Group::Results,
            Self::Environments => Group::Environments,
            Self::Migrate => Group::Admin,
            _ => Group::Compute,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Agreement {
    Fresh,
    /// One of those that other starts use, too.
    Shared(usize),
}

/// How a request reaches the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    Once,
    /// Twice at the same time, at two endpoints.
    Doubled,
    /// Again when it was answered.
    Repeated,
    /// After this number of events, though its nonce is of now.
    Late(usize),
    /// And then another start under its nonce.
    Reused,
    /// With this number of other starts under its nonce at the same time, at all endpoints: only Ocean Node does this.
    Burst(usize),
}

/// What fails, until a number of events later.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Of the next steps between an endpoint and PostgreSQL, the connection is cut at this one.
    Cut { endpoint: usize, step: usize, at: At },
    /// The same, and no connection is possible.
    CutAll { endpoint: usize, step: usize, at: At },
    /// The same, but nothing arrives on the connection.
    Freeze { endpoint: usize, step: usize, at: At },
    /// Nothing arrives between an endpoint and PostgreSQL.
    Silence { endpoint: usize },
    /// PostgreSQL is killed, and starts at once.
    Crash,
    /// PostgreSQL is shut down, and starts at the end.
    Down,
    /// PostgreSQL accepts no more connections of the service's role.
    NoConnections,
    /// Every transaction is read-only, as on a server that is about to be replaced.
    ReadOnly,
    /// Somebody locks the table `jobs`.
    Locked,
    /// The API server answers this number of requests with a status.
    Answers { status: u16, times: usize },
    /// The API server takes seconds for this number of requests: more than a handler waits.
    Slow { seconds: u64, times: usize },
    /// The answers to this number of requests end in their middle.
    Truncates { times: usize },
    /// The answers to this number of requests are lost.
    LosesAnswers { times: usize },
    /// The API server is down.
    Unreachable,
    /// STS and Secrets Manager answer that there are too many requests.
    AwsThrottles,
    /// A process is killed, and its successor starts at once.
    Kill { endpoint: usize },
    /// A process is ended as by a deployment, and its successor starts at once.
    Terminate { endpoint: usize },
    /// A process does not run, as a function between invocations.
    Stopped { endpoint: usize },
    /// The clock of a server is wrong by this number of seconds. (The time limit of an invocation is a time of the same
    /// clock as the function's: it is never wrong.)
    Clock { server: usize, ahead: i64 },
}

impl Fault {
    /// What the tally calls it.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '(']).next().unwrap_or_default().to_owned()
    }

    /// The signal that ends a process for good.
    pub fn signal(&self) -> Signal {
        if matches!(self, Self::Terminate { .. }) { Signal::SIGTERM } else { Signal::SIGKILL }
    }
}

/// Plans with this number of operations, faults among them.
pub fn plan(operations: usize) -> impl Strategy<Value = Vec<Event>> {
    proptest::collection::vec(event(), operations)
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        60 => request().prop_map(Event::Request),
        10 => Just(Event::Dispatch),
        8 => any::<Index>().prop_map(Event::Finish),
        1 => Just(Event::Time),
        3 => proptest::option::of(1..6_usize).prop_map(|killed_after| Event::Sweep { killed_after }),
        18 => (fault(), 1..10_usize).prop_map(|(fault, lasts)| Event::Fault { fault, lasts }),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let caller = prop_oneof![Just(Caller::Provider), Just(Caller::OceanNode), Just(Caller::Brizo)];
    let agreement = prop_oneof![3 => Just(Agreement::Fresh), 1 => (0..SHARED).prop_map(Agreement::Shared)];
    let what = prop_oneof![
        10 => agreement.prop_map(What::Start),
        4 => any::<Index>().prop_map(What::Stop),
        2 => any::<Index>().prop_map(What::Delete),
        2 => any::<Index>().prop_map(What::Status),
        2 => any::<Index>().prop_map(What::Result),
        1 => Just(What::Stranger),
        1 => Just(What::Nowhere),
        1 => Just(What::Environments),
        1 => Just(What::Migrate),
    ];
    let delivery = prop_oneof![
        6 => Just(Delivery::Once),
        2 => Just(Delivery::Doubled),
        2 => Just(Delivery::Repeated),
        1 => (1..20_usize).prop_map(Delivery::Late),
        1 => Just(Delivery::Reused),
        1 => (1..4_usize).prop_map(Delivery::Burst),
    ];
    // Within NONCE_WINDOW, beyond it, and decades ahead.
    let ahead = prop_oneof![20 => Just(0_i64), 2 => -200..0_i64, 1 => Just(-4000_i64), 1 => Just(1_000_000_000_i64)];
    (caller, what, delivery, 0..ENDPOINTS.len(), ahead).prop_map(|(caller, what, delivery, endpoint, ahead)| Request {
        caller,
        what,
        delivery,
        endpoint,
        ahead,
    })
}

fn fault() -> impl Strategy<Value = Fault> {
    let at = prop_oneof![Just(At::Before), Just(At::During), Just(At::After)];
    // Most requests go to the first three.
    let endpoint = prop_oneof![3 => 0..3_usize, 1 => 3..ENDPOINTS.len()];
    let step = (endpoint.clone(), 1..6_usize, at);
    let ahead = prop_oneof![Just(-86_400_i64), -400..400_i64, Just(86_400_i64)];
    let status = prop_oneof![Just(409_u16), Just(410), Just(429), Just(500), Just(503)];
    let times = 1..4_usize;
    prop_oneof![
        6 => step.clone().prop_map(|(endpoint, step, at)| Fault::Cut { endpoint, step, at }),
        3 => step.clone().prop_map(|(endpoint, step, at)| Fault::CutAll { endpoint, step, at }),
        2 => step.prop_map(|(endpoint, step, at)| Fault::Freeze { endpoint, step, at }),
        1 => endpoint.clone().prop_map(|endpoint| Fault::Silence { endpoint }),
        1 => Just(Fault::Crash),
        1 => Just(Fault::Down),
        1 => Just(Fault::NoConnections),
        1 => Just(Fault::ReadOnly),
        1 => Just(Fault::Locked),
        4 => (status, times.clone()).prop_map(|(status, times)| Fault::Answers { status, times }),
        1 => (1..5_u64, times.clone()).prop_map(|(seconds, times)| Fault::Slow { seconds, times }),
        2 => times.clone().prop_map(|times| Fault::Truncates { times }),
        2 => times.prop_map(|times| Fault::LosesAnswers { times }),
        1 => Just(Fault::Unreachable),
        1 => Just(Fault::AwsThrottles),
        4 => endpoint.clone().prop_map(|endpoint| Fault::Kill { endpoint }),
        1 => endpoint.clone().prop_map(|endpoint| Fault::Terminate { endpoint }),
        2 => endpoint.prop_map(|endpoint| Fault::Stopped { endpoint }),
        2 => (0..2_usize, ahead).prop_map(|(server, ahead)| Fault::Clock { server, ahead }),
    ]
}
