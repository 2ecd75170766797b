//! A running server, as the commands that work against one see it.

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::{Client, Method, RequestBuilder, Url};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct RemoteArgs {
    /// Where the server listens.
    #[arg(long, env = "REGROUND_URL", default_value = "http://127.0.0.1:8080")]
    url: Url,
    /// Variable that holds an admin's API key; needed if the server has keys.
    #[arg(long, value_name = "VARIABLE", default_value = "REGROUND_API_KEY")]
    key_env: String,
}

/// A server that runs somewhere.
pub(super) struct Remote {
    runtime: Runtime,
    client: Client,
    url: Url,
    key: Option<String>,
}

impl Remote {
    pub(super) fn new(arguments: &RemoteArgs) -> Result<Self> {
        if arguments.url.cannot_be_a_base() {
            bail!("--url must be like http://127.0.0.1:8080, not {}", arguments.url);
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let key = std::env::var(&arguments.key_env).ok();
        Ok(Self { runtime, client: Client::new(), url: arguments.url.clone(), key })
    }

    pub(super) fn get(&self, path: &[&str]) -> Result<Value> {
        self.send(self.client.request(Method::GET, self.address(path)))
    }

    pub(super) fn post(&self, path: &[&str], body: &Value) -> Result<Value> {
        self.send(self.client.request(Method::POST, self.address(path)).json(body))
    }

    pub(super) fn delete(&self, path: &[&str]) -> Result<Value> {
        self.send(self.client.request(Method::DELETE, self.address(path)))
    }

    /// `/v1/` and the parts, each escaped.
    fn address(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        url
    }

    fn send(&self, request: RequestBuilder) -> Result<Value> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        self.runtime.block_on(async {
            let response = request.send().await.with_context(|| format!("no answer from {}", self.url))?;
            let status = response.status();
            let body: Value = response.json().await.with_context(|| format!("{status}, and no JSON"))?;
            match body.pointer("/error/message").and_then(Value::as_str) {
                Some(message) => bail!("{status}: {message}"),
                None => Ok(body),
            }
        })
    }
}
