//! A proxy to PostgreSQL, whose connections can be cut: all of them, or one at a certain step of what the service does.
//!
//! A step is a batch of the wire protocol: the messages up to a Sync, or a Query, to which the server answers with one
//! ReadyForQuery (<https://www.postgresql.org/docs/current/protocol-flow.html>). Logging in is none. It offers no TLS.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Everything is passed on.
    Open,
    /// Connections are accepted and closed.
    Cut,
    /// Connections stay, and nothing arrives.
    Silent,
}

/// Where in a step a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Before the server receives it.
    Before,
    /// When the server has received it and may still be at work.
    During,
    /// When the server has done it, before the service receives the answer.
    After,
}

/// What happens there to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is closed.
    Cut,
    /// It is closed, like all others from then on.
    CutAll,
    /// Nothing arrives on it, until the service or its process closes it.
    Freeze,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// How many steps the service has begun.
    steps: usize,
    /// How many the server has answered.
    answers: usize,
    /// The step at which a fault happens next.
    fault: Option<(usize, At, Fault)>,
    /// Whether the last fault has happened.
    happened: bool,
}

/// Passes connections on. Ends with the test's runtime.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    state: watch::Sender<State>,
}

impl Proxy {
    /// Starts a proxy that passes everything on.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = watch::Sender::new(State { mode: Mode::Open, steps: 0, answers: 0, fault: None, happened: false });
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target, shared.clone()));
            }
        });
        Self { port, state }
    }

    /// Closes every connection, and every new one.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.mode = Mode::Cut);
    }

    /// From now on nothing arrives, and no connection is closed.
    pub fn silence(&self) {
        self.state.send_modify(|state| state.mode = Mode::Silent);
    }

    /// From now on everything is passed on again; connections that were cut stay cut.
    pub fn open(&self) {
        self.state.send_modify(|state| state.mode = Mode::Open);
    }

    /// The number of steps so far, on all connections: begun by the service, and answered by the server.
    pub fn steps(&self) -> (usize, usize) {
        let state = self.state.borrow();
        (state.steps, state.answers)
    }

    /// Of the steps from now on, cuts the connection of the `nth`, counted from 1.
    pub fn cut_at(&self, nth: usize, at: At) {
        self.order(nth, at, Fault::Cut);
    }

    /// As [`Self::cut_at`], and closes every other connection, too, until [`Self::open`].
    pub fn cut_all_at(&self, nth: usize, at: At) {
        self.order(nth, at, Fault::CutAll);
    }

    /// As [`Self::cut_at`], but the connection stays, and nothing arrives on it any more.
    pub fn freeze_at(&self, nth: usize, at: At) {
        self.order(nth, at, Fault::Freeze);
    }

    fn order(&self, nth: usize, at: At, fault: Fault) {
        self.state.send_modify(|state| {
            state.fault = Some((state.steps + nth, at, fault));
            state.happened = false;
        });
    }

    /// Takes the fault back. Returns whether it had happened.
    pub fn clear(&self) -> bool {
        self.state.send_modify(|state| state.fault = None);
        self.state.borrow().happened
    }

    /// Waits for the fault to happen.
    pub async fn happened(&self) {
        self.state.subscribe().wait_for(|state| state.happened).await.unwrap();
    }
}

/// The beginning of a connection that asks for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// The type of the message by which the server ends an answer.
const READY_FOR_QUERY: u8 = b'Z';

async fn pass(mut client: TcpStream, target: SocketAddr, state: watch::Sender<State>) {
    let mut changes = state.subscribe();
    if changes.borrow_and_update().mode == Mode::Cut {
        return;
    }
    // A server that does not answer does not even take the connection.
    if changes.wait_for(|state| state.mode != Mode::Silent).await.is_err() {
        return;
    }
    let mut beginning = [0; 8];
    while client.read_exact(&mut beginning).await.is_ok() && beginning == SSL_REQUEST {
        client.write_all(b"N").await.ok();
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    for connection in [&client, &server] {
        connection.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let from_client = Messages { from: from_client, buffer: beginning.to_vec(), starting: true };
    let from_server = Messages { from: from_server, buffer: Vec::new(), starting: false };
    let connection = Connection { state, after: Mutex::default(), frozen: AtomicBool::new(false) };
    tokio::select! {
        () = connection.pass_to_server(from_client, to_server) => {}
        () = connection.pass_to_client(from_server, to_client) => {}
        _ = changes.wait_for(|state| state.mode == Mode::Cut) => {}
    }
}

/// One connection.
struct Connection {
    state: watch::Sender<State>,
    /// What happens when the server has answered.
    after: Mutex<Option<Fault>>,
    frozen: AtomicBool,
}

impl Connection {
    /// Returns when the connection has to be closed.
    async fn pass_to_server(&self, mut messages: Messages, mut server: OwnedWriteHalf) {
        let mut changes = self.state.subscribe();
        let mut batch = Vec::new();
        while let Some((kind, message)) = messages.next().await {
            batch.extend(message);
            // Parse, Bind, Describe, Execute, Close: the step goes on.
            if self.frozen.load(SeqCst) || b"PBDEC".contains(&kind) {
                continue;
            }
            if changes.wait_for(|state| state.mode != Mode::Silent).await.is_err() {
                return;
            }
            let fault = if b"SQ".contains(&kind) { self.begin_step() } else { None };
            match fault {
                Some((At::Before, fault)) if self.happens(fault) => continue,
                Some((At::Before, _)) => return,
                Some((At::After, fault)) => *self.after.lock().unwrap() = Some(fault),
                _ => {}
            }
            if server.write_all(&batch).await.is_err() {
                return;
            }
            batch.clear();
            if let Some((At::During, fault)) = fault
                && !self.happens(fault)
            {
                return;
            }
        }
    }

    /// Returns when the connection has to be closed.
    async fn pass_to_client(&self, mut messages: Messages, mut client: OwnedWriteHalf) {
        let mut changes = self.state.subscribe();
        let mut logged_in = false;
        while let Some((kind, message)) = messages.next().await {
            let after = *self.after.lock().unwrap();
            match after {
                Some(_) if kind != READY_FOR_QUERY => continue,
                Some(fault) if !self.happens(fault) => return,
                _ => {}
            }
            if self.frozen.load(SeqCst) {
                // The service closes it.
                return pending().await;
            }
            if changes.wait_for(|state| state.mode != Mode::Silent).await.is_err() {
                return;
            }
            if kind == READY_FOR_QUERY && std::mem::replace(&mut logged_in, true) {
                self.state.send_modify(|state| state.answers += 1);
            }
            if client.write_all(&message).await.is_err() {
                return;
            }
        }
    }

    /// Counts a step. Returns the fault that happens to it, if any.
    fn begin_step(&self) -> Option<(At, Fault)> {
        let mut happens = None;
        self.state.send_modify(|state| {
            state.steps += 1;
            if let Some((_, at, fault)) = state.fault.take_if(|(step, _, _)| *step == state.steps) {
                happens = Some((at, fault));
            }
        });
        happens
    }

    /// Records that a fault happens. Returns whether the connection stays.
    fn happens(&self, fault: Fault) -> bool {
        self.frozen.store(fault == Fault::Freeze, SeqCst);
        self.state.send_modify(|state| {
            state.happened = true;
            if fault == Fault::CutAll {
                state.mode = Mode::Cut;
            }
        });
        fault == Fault::Freeze
    }
}

/// The messages of one direction.
struct Messages {
    from: OwnedReadHalf,
    buffer: Vec<u8>,
    /// The client's first message has no type.
    starting: bool,
}

impl Messages {
    /// The next message and its type (0 for the first of a client). `None` at the end of the connection.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let typed = usize::from(!self.starting);
        loop {
            if let Some(length) = self.buffer.get(typed..typed + 4) {
                let length = typed + u32::from_be_bytes(length.try_into().unwrap()) as usize;
                if self.buffer.len() >= length {
                    let rest = self.buffer.split_off(length);
                    let message = std::mem::replace(&mut self.buffer, rest);
                    self.starting = false;
                    return Some((if typed == 1 { message[0] } else { 0 }, message));
                }
            }
            if self.from.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }
}
