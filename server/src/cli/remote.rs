//! A running server, as the commands that work against one see it.

use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::{Client, Method, RequestBuilder, Url};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct RemoteArgs {
    /// Where the server listens, with or without the `/v1` that SDKs call for.
    #[arg(long, global = true, env = "REGROUND_URL", default_value = "http://127.0.0.1:8080")]
    url: Url,
    /// Variable that holds an admin's API key; needed if the server has keys.
    #[arg(long, global = true, value_name = "VARIABLE", default_value = "REGROUND_API_KEY")]
    key_env: String,
}

/// Which page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct PageArgs {
    /// Behind this id.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Most items, 1 to 100.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Latest first.
    #[arg(long)]
    newest: bool,
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

    /// A page of a list; a filter without a value is none.
    pub(super) fn page(&self, path: &[&str], page: &PageArgs, filters: &[(&str, Option<String>)]) -> Result<Value> {
        let mut url = self.address(path);
        {
            let mut query = url.query_pairs_mut();
            query.append_pair("limit", &page.limit.to_string());
            query.append_pair("order", if page.newest { "desc" } else { "asc" });
            for (name, value) in filters.iter().cloned().chain([("after", page.after.clone())]) {
                if let Some(value) = value {
                    query.append_pair(name, &value);
                }
            }
        }
        self.send(self.client.request(Method::GET, url))
    }

    /// Posts, and writes the body of the answer as it comes.
    pub(super) fn download(&self, path: &[&str], body: &Value, out: &mut dyn Write) -> Result<()> {
        let request = self.with_key(self.client.request(Method::POST, self.address(path)).json(body));
        self.runtime.block_on(async {
            let mut response = request.send().await.with_context(|| format!("no answer from {}", self.url))?;
            let status = response.status();
            if !status.is_success() {
                let body: Value = response.json().await.with_context(|| format!("{status}, and no JSON"))?;
                bail!("{status}: {}", body.pointer("/error/message").and_then(Value::as_str).unwrap_or_default());
            }
            while let Some(piece) = response.chunk().await.context("the answer broke off")? {
                out.write_all(&piece)?;
            }
            Ok(out.flush()?)
        })
    }

    pub(super) fn post(&self, path: &[&str], body: &Value) -> Result<Value> {
        self.send(self.client.request(Method::POST, self.address(path)).json(body))
    }

    pub(super) fn delete(&self, path: &[&str]) -> Result<Value> {
        self.send(self.client.request(Method::DELETE, self.address(path)))
    }

    /// `/v1/`, unless the URL ends with it, and the parts, each escaped.
    fn address(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        // `REGROUND_URL` is the base URL of SDKs, too.
        let before = url.path();
        let is_base_url = before.strip_suffix('/').unwrap_or(before).ends_with("/v1");
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty();
            if !is_base_url {
                segments.push("v1");
            }
            segments.extend(path);
        }
        url
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    fn send(&self, request: RequestBuilder) -> Result<Value> {
        let request = self.with_key(request);
        self.runtime.block_on(async {
            let response = request.send().await.with_context(|| format!("no answer from {}", self.url))?;
            let status = response.status();
            let body: Value = response.json().await.with_context(|| format!("{status}, and no JSON"))?;
            // A job that failed has an `error`, too, and is no failed request.
            if !status.is_success() {
                bail!("{status}: {}", body.pointer("/error/message").and_then(Value::as_str).unwrap_or_default());
            }
            Ok(body)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_url_of_an_sdk_names_the_same_server() {
        for (url, before) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080"),
            ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
            ("https://example.org/models", "https://example.org/models"),
            ("https://example.org/models/v1", "https://example.org/models"),
            ("https://example.org/v1/models", "https://example.org/v1/models"),
            ("https://example.org/dev1", "https://example.org/dev1"),
        ] {
            let arguments = RemoteArgs { url: url.parse().unwrap(), key_env: "REGROUND_NO_SUCH_KEY".into() };
            let address = Remote::new(&arguments).unwrap().address(&["pairs", "a/b"]);
            assert_eq!(address.as_str(), format!("{before}/v1/pairs/a%2Fb"), "{url}");
        }
    }
}
