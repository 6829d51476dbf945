//! Keys and nonces of callers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// signer.py, running: one for the whole test binary. It ends when its standard input does.
struct Signer {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Signer {
    fn start() -> Self {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
        let python = super::python();
        let mut child = Command::new(&python)
            .arg(format!("{root}tests/support/signer.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{python} does not start ({error}): run `make test`"));
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { _child: child, input, output }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.input, "{request}")
            .expect("signer.py has ended; does its Python have eth-account? run `make test`");
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("signer.py has ended; does its Python have eth-account? run `make test`")
    }
}

fn ask(request: &Value) -> Value {
    static SIGNER: OnceLock<Mutex<Signer>> = OnceLock::new();
    let signer = SIGNER.get_or_init(|| Mutex::new(Signer::start()));
    signer.lock().unwrap_or_else(PoisonError::into_inner).ask(request)
}

/// A signer's key.
#[derive(Debug, Clone)]
pub struct Key {
    private: String,
    /// Its address, with the checksum of EIP-55.
    pub address: String,
}

impl Key {
    /// Makes a new key.
    pub fn new() -> Self {
        Self::of(&format!("0x{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()))
    }

    /// The key with this private part.
    pub fn of(private: &str) -> Self {
        let address = ask(&json!({ "key": private }))["address"].as_str().unwrap().to_owned();
        Self { private: private.to_owned(), address }
    }

    /// ALLOWED_PROVIDERS with this key alone.
    pub fn allowed(&self) -> String {
        json!([self.address]).to_string()
    }

    /// As Provider signs: v is 0 or 1.
    pub fn hashed(&self, message: &str) -> String {
        let signature = self.sign(message, "hashed");
        let v = u8::from_str_radix(&signature[130..], 16).unwrap() - 27;
        format!("{}{v:02x}", &signature[..130])
    }

    /// As Ocean Node signs.
    pub fn trimmed(&self, message: &str) -> String {
        self.sign(message, "trimmed")
    }

    /// As Brizo signs.
    pub fn personal(&self, message: &str) -> String {
        self.sign(message, "personal")
    }

    fn sign(&self, message: &str, hashing: &str) -> String {
        let request = json!({ "key": self.private, "message": message, "hashing": hashing });
        ask(&request)["signature"].as_str().unwrap().to_owned()
    }
}

/// The clock in nanoseconds, and never the same twice.
pub fn nonce() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    growing(&LAST, now().as_nanos() as u64)
}

/// The clock in milliseconds, and never the same twice.
pub fn nonce_ms() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    growing(&LAST, now().as_millis() as u64)
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn growing(last: &AtomicU64, now: u64) -> u64 {
    let next = |last: u64| Some(now.max(last + 1));
    let (Ok(before) | Err(before)) = last.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
    now.max(before + 1)
}
