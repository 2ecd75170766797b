//! The calls.

use futures::Stream;
use futures::stream::{BoxStream, StreamExt, unfold};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::error::{ApiError, Error};
use crate::events::Events;

/// The chunks of a streamed answer. Dropping it cancels the answer.
pub type Chunks = BoxStream<'static, Result<Value, Error>>;

/// A client of one server. Cloning it is cheap and shares the connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Client {
    /// A client of the server at a base URL, for example `http://127.0.0.1:8080/v1`.
    ///
    /// # Errors
    /// The URL cannot be understood, or the system's TLS or DNS configuration is unusable.
    pub fn new(base_url: &str) -> Result<Self, Error> {
        let base = base_url.trim_end_matches('/').to_owned();
        reqwest::Url::parse(&base).map_err(|error| Error::Unexpected(format!("base URL `{base}`: {error}")))?;
        Ok(Self { http: reqwest::Client::builder().build()?, base, key: None })
    }

    /// The same client with an API key.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// A chat completion.
    ///
    /// # Errors
    /// The server refuses it, or there is no complete answer.
    pub async fn chat(&self, request: &Value) -> Result<Value, Error> {
        self.json(self.request(Method::POST, "/chat/completions").json(request)).await
    }

    /// A streamed chat completion; `stream` need not be set.
    ///
    /// # Errors
    /// The server refuses it. What fails later is the last item of the stream.
    pub async fn stream(&self, request: &Value) -> Result<Chunks, Error> {
        let mut request = request.clone();
        request["stream"] = json!(true);
        let response = checked(self.request(Method::POST, "/chat/completions").json(&request).send().await?).await?;
        Ok(chunks(response).boxed())
    }

    /// The model and its generations.
    ///
    /// # Errors
    /// The server refuses it, or there is no complete answer.
    pub async fn models(&self) -> Result<Vec<Value>, Error> {
        match self.json(self.request(Method::GET, "/models")).await?["data"].take() {
            Value::Array(models) => Ok(models),
            other => Err(Error::Unexpected(format!("a list of models that is {other:.100}"))),
        }
    }

    /// Loads the PEFT adapter in a directory of the server as generation `name`. Traffic does not change.
    ///
    /// # Errors
    /// The key is no admin's, the name is taken, or the adapter is refused.
    pub async fn load_adapter(&self, name: &str, path: &str) -> Result<(), Error> {
        let body = json!({"lora_name": name, "lora_path": path});
        checked(self.request(Method::POST, "/load_lora_adapter").json(&body).send().await?).await.map(drop)
    }

    /// Takes a generation out; answers under way keep it until they are done.
    ///
    /// # Errors
    /// The key is no admin's, or the generation is not loaded or live.
    pub async fn unload_adapter(&self, name: &str) -> Result<(), Error> {
        let body = json!({"lora_name": name});
        checked(self.request(Method::POST, "/unload_lora_adapter").json(&body).send().await?).await.map(drop)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, Error> {
        Ok(checked(request.send().await?).await?.json().await?)
    }
}

/// The response if it is a good one, else the server's error.
async fn checked(response: Response) -> Result<Response, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get("retry-after").and_then(|wait| wait.to_str().ok()?.parse().ok());
    let text = response.text().await?;
    let error = serde_json::from_str(&text).ok().and_then(|body| ApiError::of(status.as_u16(), retry_after, &body));
    Err(error.map_or_else(|| Error::Unexpected(format!("status {status}: {text:.200}")), Error::Api))
}

/// The chunks up to `[DONE]`; an error is the last item.
fn chunks(response: Response) -> impl Stream<Item = Result<Value, Error>> + Send {
    unfold(Some((response, Events::default())), |state| async move {
        let (mut response, mut events) = state?;
        loop {
            if let Some(data) = events.next() {
                if data == "[DONE]" {
                    return None;
                }
                return Some(match serde_json::from_str::<Value>(&data) {
                    Ok(chunk) => match ApiError::of(200, None, &chunk) {
                        None => (Ok(chunk), Some((response, events))),
                        Some(error) => (Err(Error::Api(error)), None),
                    },
                    Err(error) => (Err(Error::Unexpected(format!("an event that is no JSON: {error}"))), None),
                });
            }
            match response.chunk().await {
                Ok(Some(bytes)) => events.push(&bytes),
                Ok(None) => return Some((Err(Error::Unexpected("the stream ends without [DONE]".into())), None)),
                Err(error) => return Some((Err(error.into()), None)),
            }
        }
    })
}
