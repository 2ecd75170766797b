//! Requests, answers and streams.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::sse::{Event, Events};

/// No request of a test takes longer, whatever the server does.
const LIMIT: Duration = Duration::from_secs(240);

/// Talks to one server, on loopback only.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

/// A complete response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// What OpenAI's error envelope holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorBody {
    /// What is wrong, for a person.
    pub message: String,
    /// Its class.
    pub kind: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// Its name, for a program.
    pub code: Option<String>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, key: Option<String>) -> Self {
        // A proxy from the environment would see the requests; `no_proxy` also keeps the builder from failing on one.
        let http =
            reqwest::Client::builder().no_proxy().timeout(LIMIT).pool_max_idle_per_host(4).build().unwrap_or_default();
        Self { http, base: format!("http://{address}"), key }
    }

    /// A request to a path of the server, with the key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// There is no complete response in time.
    pub async fn send(request: reqwest::RequestBuilder) -> Result<Reply> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Reply { status, headers, body: response.bytes().await?.to_vec() })
    }

    /// `GET`.
    ///
    /// # Errors
    /// There is no complete response in time.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        Self::send(self.request(Method::GET, path)).await
    }

    /// `POST` with a JSON body.
    ///
    /// # Errors
    /// There is no complete response in time.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        Self::send(self.request(Method::POST, path).json(body)).await
    }

    /// A chat completion, whatever comes of it.
    ///
    /// # Errors
    /// There is no complete response in time.
    pub async fn ask(&self, body: &Value) -> Result<Reply> {
        self.post("/v1/chat/completions", body).await
    }

    /// A chat completion that succeeds.
    ///
    /// # Errors
    /// The status is not 200.
    pub async fn answer(&self, body: &Value) -> Result<Value> {
        self.ask(body).await?.ok()
    }

    /// A streamed chat completion, to be read piece by piece.
    ///
    /// # Errors
    /// The status is not 200.
    pub async fn open(&self, body: &Value) -> Result<Stream> {
        let response = self.request(Method::POST, "/v1/chat/completions").json(body).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        if status != 200 {
            bail!("a stream began with status {status}: {}", response.text().await?);
        }
        Ok(Stream { response, headers, events: Events::default(), comments: 0, done: false })
    }

    /// A streamed chat completion, read to its end.
    ///
    /// # Errors
    /// The status is not 200, or the stream breaks.
    pub async fn stream(&self, body: &Value) -> Result<Streamed> {
        self.open(body).await?.collect().await
    }

    /// The value of a metric, summed over its labels; `None` if there is no such metric.
    ///
    /// # Errors
    /// `/metrics` does not answer.
    pub async fn metric(&self, name: &str) -> Result<Option<f64>> {
        let text = self.get("/metrics").await?.text();
        let values: Vec<f64> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        Ok((!values.is_empty()).then(|| values.iter().sum()))
    }
}

impl Reply {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, no JSON: {:.300}", self.status, self.text()))
    }

    /// The JSON of a `200`.
    ///
    /// # Errors
    /// The status is another one.
    pub fn ok(&self) -> Result<Value> {
        ensure!(self.status == 200, "status {}: {:.500}", self.status, self.text());
        self.json()
    }

    /// A header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The error envelope.
    ///
    /// # Errors
    /// The body is not exactly `{"error": {"message", "type", "param", "code"}}`.
    pub fn error(&self) -> Result<ErrorBody> {
        let body = self.json()?;
        ErrorBody::of(&body).with_context(|| format!("status {}, no error envelope: {body:.500}", self.status))
    }
}

impl ErrorBody {
    /// Reads an error envelope; every field must be there, and no other.
    ///
    /// # Errors
    /// It is none.
    pub fn of(body: &Value) -> Result<Self> {
        let envelope = body.as_object().filter(|body| body.len() == 1).context("more or less than `error`")?;
        let error = envelope.get("error").and_then(Value::as_object).context("no `error`")?;
        let mut names: Vec<&str> = error.keys().map(String::as_str).collect();
        names.sort_unstable();
        ensure!(names == ["code", "message", "param", "type"], "`error` has {names:?}");
        let text = |name: &str| -> Result<Option<String>> {
            match &error[name] {
                Value::Null => Ok(None),
                Value::String(text) => Ok(Some(text.clone())),
                other => bail!("`{name}` is {other}"),
            }
        };
        Ok(Self {
            message: text("message")?.filter(|text| !text.is_empty()).context("no `message`")?,
            kind: text("type")?.filter(|text| !text.is_empty()).context("no `type`")?,
            param: text("param")?,
            code: text("code")?,
        })
    }
}

/// A stream under way. Dropping it closes the connection.
pub struct Stream {
    response: reqwest::Response,
    /// Header fields.
    pub headers: HeaderMap,
    events: Events,
    comments: usize,
    done: bool,
}

impl Stream {
    /// The next chunk; `None` after `[DONE]` or at the end of the connection.
    ///
    /// # Errors
    /// The connection broke, or an event is no JSON.
    pub async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            match self.events.next() {
                Some(Event::Comment) => self.comments += 1,
                Some(Event::Data(text)) if text == "[DONE]" => self.done = true,
                Some(Event::Data(text)) => {
                    ensure!(!self.done, "an event after [DONE]: {text}");
                    return Ok(Some(serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?));
                }
                None => match self.response.chunk().await? {
                    Some(bytes) => self.events.push(&bytes),
                    None => {
                        if let Some(rest) = self.events.torn() {
                            bail!("the stream ends inside an event: {rest}");
                        }
                        return Ok(None);
                    }
                },
            }
        }
    }

    /// Everything up to the end.
    ///
    /// # Errors
    /// The connection broke, or an event is no JSON.
    pub async fn collect(mut self) -> Result<Streamed> {
        let mut chunks = Vec::new();
        while let Some(chunk) = self.next().await? {
            chunks.push(chunk);
        }
        Ok(Streamed { chunks, comments: self.comments, done: self.done })
    }
}

/// A stream that was read to its end.
#[derive(Clone, Debug)]
pub struct Streamed {
    /// The chunks, in order.
    pub chunks: Vec<Value>,
    /// How many comments came between them.
    pub comments: usize,
    /// Whether `[DONE]` came last.
    pub done: bool,
}

impl Streamed {
    /// The text of one choice, put together.
    #[must_use]
    pub fn text(&self, choice: u64) -> String {
        self.choices(choice).filter_map(|part| part["delta"]["content"].as_str()).collect()
    }

    /// The finish reason of one choice.
    #[must_use]
    pub fn finish(&self, choice: u64) -> Option<&str> {
        self.choices(choice).find_map(|part| part["finish_reason"].as_str())
    }

    /// The log-probabilities of one choice's tokens, put together.
    #[must_use]
    pub fn logprobs(&self, choice: u64) -> Vec<Value> {
        self.choices(choice).filter_map(|part| part["logprobs"]["content"].as_array()).flatten().cloned().collect()
    }

    /// The usage chunk.
    #[must_use]
    pub fn usage(&self) -> Option<&Value> {
        self.chunks.iter().find_map(|chunk| chunk.get("usage").filter(|usage| !usage.is_null()))
    }

    /// The error event, if the answer broke off.
    #[must_use]
    pub fn error(&self) -> Option<&Value> {
        self.chunks.iter().find(|chunk| chunk.get("error").is_some())
    }

    fn choices(&self, index: u64) -> impl Iterator<Item = &Value> {
        self.chunks
            .iter()
            .filter_map(|chunk| chunk["choices"].as_array())
            .flatten()
            .filter(move |part| part["index"].as_u64() == Some(index))
    }
}
