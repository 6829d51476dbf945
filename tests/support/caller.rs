//! Requests, and those of the three callers exactly as they send them (docs/contract/callers.md, "What is signed").

use reqwest::header::{CONNECTION, CONTENT_TYPE};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Map, Value, json};

use super::{Key, nonce, nonce_ms};

/// A request.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    pub path: String,
    parameters: Map<String, Value>,
    location: Location,
    headers: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
enum Location {
    Query,
    Body,
    /// This body; parameters are sent in the query string.
    Raw(Vec<u8>),
}

impl Call {
    /// A request for an operation, without parameters.
    pub fn new(method: Method, operation: &str) -> Self {
        Self::to_path(method, &format!("/api/v1/operator/{operation}"))
    }

    /// A request for any path.
    pub fn to_path(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), parameters: Map::new(), location: Location::Query, headers: Vec::new() }
    }

    /// `GET /<operation>`
    pub fn get(operation: &str) -> Self {
        Self::new(Method::GET, operation)
    }

    /// `POST /<operation>`, with its parameters in the body.
    pub fn post(operation: &str) -> Self {
        Self::new(Method::POST, operation).in_body()
    }

    /// Adds or changes a parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.parameters.insert(name.to_owned(), value.into());
        self
    }

    /// Leaves a parameter out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.parameters.shift_remove(name);
        self
    }

    /// Puts the parameters into the query string: null ones are left out.
    #[must_use]
    pub fn in_query(mut self) -> Self {
        self.location = Location::Query;
        self
    }

    /// Puts the parameters into a JSON body.
    #[must_use]
    pub fn in_body(mut self) -> Self {
        self.location = Location::Body;
        self
    }

    /// Sends this body; parameters stand in the query string.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.location = Location::Raw(body.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// With another method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// A parameter's value; null if it is not there.
    pub fn parameter(&self, name: &str) -> Value {
        self.parameters.get(name).cloned().unwrap_or_default()
    }

    /// A parameter as text.
    pub fn text(&self, name: &str) -> String {
        text(&self.parameter(name))
    }

    /// All parameters, as a JSON object.
    pub fn parameters(&self) -> Value {
        Value::Object(self.parameters.clone())
    }

    /// The path with its query string.
    pub fn path_and_query(&self) -> String {
        if matches!(self.location, Location::Body) || self.parameters.values().all(Value::is_null) {
            return self.path.clone();
        }
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in self.parameters.iter().filter(|(_, value)| !value.is_null()) {
            query.append_pair(name, &text(value));
        }
        format!("{}?{}", self.path, query.finish())
    }

    /// The request, ready to be sent to the service at a URL.
    pub fn request(&self, client: &Client, base: &str) -> RequestBuilder {
        let mut request = client.request(self.method.clone(), format!("{base}{}", self.path_and_query()));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        match &self.location {
            Location::Query => request,
            Location::Body => request.header(CONTENT_TYPE, "application/json").body(self.parameters().to_string()),
            Location::Raw(body) => request.body(body.clone()),
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Provider's requests, signed by a key.
pub fn provider(key: &Key) -> Provider<'_> {
    Provider(key)
}

/// Ocean Node's requests, signed by a key.
pub fn ocean_node(key: &Key) -> OceanNode<'_> {
    OceanNode(key)
}

/// Brizo's requests, signed by a key.
pub fn brizo(key: &Key) -> Brizo<'_> {
    Brizo(key)
}

/// See [`provider`].
#[derive(Debug, Clone, Copy)]
pub struct Provider<'a>(&'a Key);

impl Provider<'_> {
    /// Starts a job.
    pub fn start(self, environment: &str, agreement_id: &str, owner: &str, workflow: Value) -> Call {
        self.start_at(environment, agreement_id, owner, workflow, nonce())
    }

    /// Starts a job, with a certain nonce.
    pub fn start_at(
        self,
        environment: &str,
        agreement_id: &str,
        owner: &str,
        workflow: Value,
        nonce: impl Into<Value>,
    ) -> Call {
        let nonce: Value = nonce.into();
        Call::post("compute")
            .with("workflow", workflow)
            .with("providerSignature", self.0.hashed(&format!("{owner}{}", text(&nonce))))
            .with("agreementId", agreement_id)
            .with("owner", owner)
            .with("providerAddress", self.0.address.clone())
            .with("environment", environment)
            .with("validUntil", 4_102_444_800_u64)
            .with("nonce", nonce)
            .with("chainId", 8996)
            .header(CONNECTION.as_str(), "close")
    }

    /// Asks for the status of jobs. Provider leaves out what it does not ask for.
    pub fn status(self, owner: &str, job_id: Option<&str>) -> Call {
        self.call(Method::GET, owner, job_id, nonce())
    }

    /// Stops jobs.
    pub fn stop(self, owner: &str, job_id: Option<&str>) -> Call {
        self.call(Method::PUT, owner, job_id, nonce())
    }

    /// Deletes jobs.
    pub fn delete(self, owner: &str, job_id: Option<&str>) -> Call {
        self.call(Method::DELETE, owner, job_id, nonce())
    }

    /// Any of the three, with a certain nonce.
    pub fn call(self, method: Method, owner: &str, job_id: Option<&str>, nonce: impl Into<Value>) -> Call {
        let nonce: Value = nonce.into();
        let message = format!("{owner}{}{}", job_id.unwrap_or_default(), text(&nonce));
        Call::new(method, "compute")
            .with("providerAddress", self.0.address.clone())
            .with("owner", owner)
            .with("jobId", job_id.map(Value::from).unwrap_or_default())
            .with("documentId", Value::Null)
            .with("providerSignature", self.0.hashed(&message))
            .with("nonce", nonce)
    }

    /// Fetches a result.
    pub fn result(self, owner: &str, job_id: &str, index: impl Into<Value>) -> Call {
        self.result_at(owner, job_id, index, nonce())
    }

    /// Fetches a result, with a certain nonce.
    pub fn result_at(self, owner: &str, job_id: &str, index: impl Into<Value>, nonce: impl Into<Value>) -> Call {
        let nonce: Value = nonce.into();
        Call::get("getResult")
            .with("index", index)
            .with("owner", owner)
            .with("jobId", job_id)
            .with("consumerSignature", "0xnot-ours-to-check")
            .with("providerSignature", self.0.hashed(&format!("{owner}{job_id}{}", text(&nonce))))
            .with("nonce", nonce)
    }
}

/// See [`ocean_node`].
#[derive(Debug, Clone, Copy)]
pub struct OceanNode<'a>(&'a Key);

impl OceanNode<'_> {
    /// Starts a job.
    pub fn start(self, environment: &str, agreement_id: &str, owner: &str, workflow: Value) -> Call {
        self.start_at(environment, agreement_id, owner, workflow, nonce_ms())
    }

    /// Starts a job, with a certain nonce.
    pub fn start_at(self, environment: &str, agreement_id: &str, owner: &str, workflow: Value, nonce: u64) -> Call {
        Call::post("compute")
            .with("workflow", workflow)
            .with("providerSignature", self.0.trimmed(&nonce.to_string()))
            .with("agreementId", agreement_id)
            .with("owner", owner)
            .with("providerAddress", self.0.address.clone())
            .with("environment", environment)
            .with("validUntil", 4_102_444_800_u64)
            .with("nonce", nonce)
            .with("chainId", 8996)
    }

    /// Stops jobs.
    pub fn stop(self, owner: &str, job_id: Option<&str>, agreement_id: Option<&str>) -> Call {
        self.stop_at(owner, job_id, agreement_id, nonce_ms())
    }

    /// Stops jobs, with a certain nonce.
    pub fn stop_at(self, owner: &str, job_id: Option<&str>, agreement_id: Option<&str>, nonce: u64) -> Call {
        self.call(Method::PUT, owner, job_id, agreement_id, nonce, self.0.trimmed(&nonce.to_string()))
    }

    /// Asks for the status of jobs.
    pub fn status(self, owner: Option<&str>, job_id: Option<&str>, agreement_id: Option<&str>) -> Call {
        let nonce = nonce_ms();
        // JavaScript's `nonce + owner + jobId`: a number and null are added, text and null are joined.
        let message = match owner {
            Some(owner) => format!("{nonce}{owner}{}", job_id.unwrap_or("null")),
            None => format!("{nonce}{}", job_id.unwrap_or_default()),
        };
        self.call(Method::GET, "", job_id, agreement_id, nonce, self.0.trimmed(&message))
            .with("owner", owner.map(Value::from).unwrap_or_default())
    }

    /// Fetches a result.
    pub fn result(self, owner: &str, job_id: &str, index: u64) -> Call {
        self.result_at(owner, job_id, index, nonce_ms())
    }

    /// Fetches a result, with a certain nonce.
    pub fn result_at(self, owner: &str, job_id: &str, index: u64, nonce: u64) -> Call {
        self.call(Method::GET, owner, Some(job_id), None, nonce, self.0.trimmed(&format!("{owner}{job_id}")))
            .with("index", index)
            .to("getResult")
    }

    fn call(
        self,
        method: Method,
        owner: &str,
        job_id: Option<&str>,
        agreement_id: Option<&str>,
        nonce: u64,
        signature: String,
    ) -> Call {
        Call::new(method, "compute")
            .in_body()
            .with("owner", owner)
            .with("providerSignature", signature)
            .with("providerAddress", self.0.address.clone())
            .with("nonce", nonce)
            .with("jobId", json!(job_id))
            .with("agreementId", json!(agreement_id))
    }
}

impl Call {
    fn to(mut self, operation: &str) -> Self {
        self.path = format!("/api/v1/operator/{operation}");
        self
    }
}

/// See [`brizo`].
#[derive(Debug, Clone, Copy)]
pub struct Brizo<'a>(&'a Key);

impl Brizo<'_> {
    /// Starts a job.
    pub fn start(self, agreement_id: &str, owner: &str, workflow: Value) -> Call {
        let address = &self.0.address;
        Call::post("compute")
            .with("workflow", workflow)
            .with("providerSignature", self.0.personal(&format!("{address}{agreement_id}")))
            .with("agreementId", agreement_id)
            .with("owner", owner)
            .with("providerAddress", address.clone())
    }

    /// Asks for the status of jobs.
    pub fn status(self, owner: &str, job_id: Option<&str>, agreement_id: Option<&str>) -> Call {
        self.call(Method::GET, owner, job_id, agreement_id)
    }

    /// Stops jobs.
    pub fn stop(self, owner: &str, job_id: Option<&str>, agreement_id: Option<&str>) -> Call {
        self.call(Method::PUT, owner, job_id, agreement_id)
    }

    /// Deletes jobs.
    pub fn delete(self, owner: &str, job_id: Option<&str>, agreement_id: Option<&str>) -> Call {
        self.call(Method::DELETE, owner, job_id, agreement_id)
    }

    fn call(self, method: Method, owner: &str, job_id: Option<&str>, agreement_id: Option<&str>) -> Call {
        let address = &self.0.address;
        let message = format!("{address}{}{}", job_id.unwrap_or_default(), agreement_id.unwrap_or_default());
        Call::new(method, "compute")
            .with("providerAddress", address.clone())
            .with("owner", owner)
            .with("jobId", json!(job_id))
            .with("agreementId", json!(agreement_id))
            .with("providerSignature", self.0.personal(&message))
    }
}
