//! One case: what is sent, and what is to come of it.

use anyhow::{Result, bail, ensure};
use reground_tests::{Client, Server};
use reqwest::Method;
use serde_json::{Value, json};

pub(super) const CLIENT_KEY: &str = "sk-client-0123456789";
pub(super) const ADMIN_KEY: &str = "sk-admin-9876543210";

/// One request, and what is to come of it.
pub(super) struct Case {
    pub(super) name: String,
    method: Method,
    path: String,
    headers: Vec<(&'static str, Vec<u8>)>,
    key: Option<&'static str>,
    body: Vec<u8>,
    wanted: Wanted,
}

enum Wanted {
    /// 200.
    Taken,
    /// An error: its status, its code, the parameter at fault, and pieces of the message.
    Refused { status: u16, code: &'static str, param: Option<String>, says: Vec<String> },
}

/// The question that cases change in one place.
pub(super) fn question() -> Value {
    json!({"model": "reground", "max_tokens": 4, "temperature": 0, "messages": [{"role": "user", "content": "hello"}]})
}

impl Case {
    /// A request to any route, with the client's key and no body.
    pub(super) fn new(name: impl Into<String>, method: Method, path: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            method,
            path: path.into(),
            headers: Vec::new(),
            key: Some(CLIENT_KEY),
            body: Vec::new(),
            wanted: Wanted::Taken,
        }
    }

    /// A chat request with these bytes as its JSON body.
    pub(super) fn bytes(name: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        let case = Self::new(name, Method::POST, "/v1/chat/completions").header("content-type", "application/json");
        Self { body: body.into(), ..case }
    }

    /// A chat request.
    pub(super) fn chat(name: impl Into<String>, body: &Value) -> Self {
        Self::bytes(name, body.to_string())
    }

    /// The usual question with one parameter set.
    pub(super) fn with(name: impl Into<String>, parameter: &str, value: Value) -> Self {
        let mut body = question();
        body[parameter] = value;
        Self::chat(name, &body)
    }

    /// A JSON body for any route, with the admin's key.
    pub(super) fn admin(name: impl Into<String>, path: &str, body: &Value) -> Self {
        let case = Self::new(name, Method::POST, path).header("content-type", "application/json");
        Self { body: body.to_string().into(), key: Some(ADMIN_KEY), ..case }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn without_header(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) fn without_key(mut self) -> Self {
        self.key = None;
        self
    }

    /// Refused without a parameter at fault.
    pub(super) fn refused(mut self, status: u16, code: &'static str, says: &[&str]) -> Self {
        let says = says.iter().map(ToString::to_string).collect();
        self.wanted = Wanted::Refused { status, code, param: None, says };
        self
    }

    /// Refused with 400 for one parameter.
    pub(super) fn wrong(self, code: &'static str, param: &str, says: &[&str]) -> Self {
        self.refused(400, code, says).at(param)
    }

    /// Names the parameter that the error names.
    pub(super) fn at(mut self, name: &str) -> Self {
        if let Wanted::Refused { param, .. } = &mut self.wanted {
            *param = Some(name.to_owned());
        }
        self
    }

    /// Sends it and compares what comes.
    pub(super) async fn run(&self, server: &Server) -> Result<()> {
        let mut request = server.client_with(self.key).request(self.method.clone(), &self.path).body(self.body.clone());
        for (name, value) in &self.headers {
            request = request.header(*name, value.as_slice());
        }
        let reply = Client::send(request).await?;
        ensure!(reply.header("x-request-id").is_some(), "no x-request-id (status {})", reply.status);
        let Wanted::Refused { status, code, param, says } = &self.wanted else {
            return reply.ok().map(drop);
        };
        if reply.status != *status {
            bail!("status {} instead of {status}: {:.300}", reply.status, reply.text());
        }
        let error = reply.error()?;
        ensure!(error.code.as_deref() == Some(*code), "code {:?} instead of {code}: {}", error.code, error.message);
        ensure!(error.param == *param, "param {:?} instead of {param:?}: {}", error.param, error.message);
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        ensure!(error.kind == kind, "type {} instead of {kind}", error.kind);
        for piece in says {
            ensure!(error.message.contains(piece.as_str()), "the message does not say {piece:?}: {}", error.message);
        }
        // A message repeats little of what was sent.
        ensure!(error.message.chars().count() <= 1000, "a message of {} characters", error.message.chars().count());
        Ok(())
    }
}
