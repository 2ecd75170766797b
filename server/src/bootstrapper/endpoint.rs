//! A text model behind an OpenAI-compatible endpoint.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::StreamExt;
use reground_learner::generator::{Generated, Generator, GeneratorError, Question, Speaker};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use serde_json::{Value, json};

use crate::config::{BootstrapConfig, ConfigError};

/// Largest answer that is read, bytes.
const LARGEST: usize = 4 << 20;

/// A text model behind an OpenAI-compatible endpoint. Nothing but the configured address is spoken to: redirects are errors.
pub(super) struct Endpoint {
    client: Client,
    url: Url,
    model: String,
    key: Option<String>,
}

impl Endpoint {
    pub(super) fn new(config: &BootstrapConfig) -> Result<Self, ConfigError> {
        let wrong = |why: String| ConfigError::value("bootstrap.endpoint", &config.endpoint, why);
        let mut url = Url::parse(&config.endpoint).map_err(|error| wrong(format!("a URL ({error})")))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["chat", "completions"]);
        }
        let timeout = Duration::from_secs(config.endpoint_timeout_s);
        let client = Client::builder().redirect(Policy::none()).timeout(timeout).build();
        Ok(Self {
            client: client.map_err(|error| wrong(format!("one that can be connected to ({error})")))?,
            url,
            model: config.endpoint_model.clone(),
            key: config.endpoint_key.as_ref().map(|key| key.read()).transpose()?,
        })
    }

    async fn ask(&self, question: Question) -> Result<Generated, GeneratorError> {
        let mut messages = Vec::with_capacity(question.turns.len());
        for turn in question.turns {
            if turn.images().next().is_some() {
                return Err(GeneratorError::Invalid("the endpoint is asked about text only".to_owned()));
            }
            let role = match turn.speaker {
                Speaker::System => "system",
                Speaker::User => "user",
                Speaker::Assistant => "assistant",
            };
            messages.push(json!({"role": role, "content": turn.text()}));
        }
        let body = json!({
            "model": self.model,
            "messages": messages,
            "temperature": question.temperature,
            "top_p": question.top_p,
            // Some servers read it as a signed number of 32 bits.
            "seed": question.seed & 0x7fff_ffff,
            "max_tokens": question.max_tokens,
        });
        let mut request = self.client.post(self.url.clone()).json(&body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        // reqwest's errors name the address, which is the operator's own; keys and bodies are not in them.
        let failed = |error: reqwest::Error| GeneratorError::Failed(format!("the endpoint: {error}"));
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let mut bytes = Vec::new();
        let mut pieces = response.bytes_stream();
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece.map_err(failed)?);
            if bytes.len() > LARGEST {
                return Err(GeneratorError::Invalid(format!("the endpoint's answer is larger than {LARGEST} bytes")));
            }
        }
        self.read(status, &bytes)
    }

    fn read(&self, status: StatusCode, body: &[u8]) -> Result<Generated, GeneratorError> {
        let about_the_content =
            [StatusCode::BAD_REQUEST, StatusCode::PAYLOAD_TOO_LARGE, StatusCode::UNPROCESSABLE_ENTITY];
        if about_the_content.contains(&status) {
            return Err(GeneratorError::Invalid(format!("the endpoint refused the request with {status}")));
        }
        // A wrong key or address is the operator's to mend: what waits for it must not be given up.
        if status != StatusCode::OK {
            return Err(GeneratorError::Failed(format!("the endpoint answered with {status}")));
        }
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| GeneratorError::Failed(format!("the endpoint's answer is no JSON: {error}")))?;
        let choice = &body["choices"][0];
        if choice["finish_reason"] == "length" {
            return Err(GeneratorError::Incomplete("the endpoint's answer was cut off at max_tokens".to_owned()));
        }
        let text = choice["message"]["content"].as_str();
        let text = text.ok_or_else(|| GeneratorError::Incomplete("the endpoint's answer has no content".to_owned()))?;
        Ok(Generated { generation: self.model.clone(), text: text.to_owned(), tokens: Vec::new() })
    }
}

impl Generator for Endpoint {
    fn generate(
        &self,
        question: Question,
    ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
        Box::pin(self.ask(question))
    }
}

#[cfg(test)]
mod tests {
    use reground_learner::generator::Turn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn question() -> Question {
        let turn = Turn::user([], "Rewrite: A cat.");
        Question {
            generation: None,
            turns: vec![turn],
            temperature: 0.8,
            top_p: 0.95,
            seed: u64::MAX,
            max_tokens: 20,
            answer: None,
        }
    }

    /// A server on loopback that gives one response; what it was sent comes back.
    async fn once(response: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"}") {
                let mut piece = [0; 4096];
                let read = socket.read(&mut piece).await.unwrap();
                asked.extend_from_slice(&piece[..read]);
            }
            socket.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (format!("http://{address}/v1"), server)
    }

    fn endpoint(url: String) -> Endpoint {
        let config = BootstrapConfig {
            endpoint: url,
            endpoint_model: "text".into(),
            // Cargo sets this one for tests.
            endpoint_key: serde_json::from_value(json!("env:CARGO_PKG_NAME")).unwrap(),
            ..BootstrapConfig::default()
        };
        Endpoint::new(&config).unwrap()
    }

    #[tokio::test]
    async fn a_question_is_asked_in_openais_shape() {
        let body = r#"{"choices": [{"finish_reason": "stop", "message": {"content": "A dog."}}]}"#;
        let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let (url, server) = once(Box::leak(response.into_boxed_str())).await;
        let generated = endpoint(url).generate(question()).await.unwrap();
        assert_eq!((generated.text.as_str(), generated.generation.as_str()), ("A dog.", "text"));
        let asked = server.await.unwrap();
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/chat/completions "), "{head}");
        assert!(head.to_lowercase().contains("authorization: bearer reground"), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["messages"], json!([{"role": "user", "content": "Rewrite: A cat."}]));
        assert_eq!((&body["model"], &body["seed"]), (&json!("text"), &json!(0x7fff_ffff)));
    }

    #[tokio::test]
    async fn nobody_is_followed_elsewhere() {
        let (url, _server) =
            once("HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n").await;
        let error = endpoint(url).generate(question()).await.unwrap_err();
        assert_eq!(error, GeneratorError::Failed("the endpoint answered with 307 Temporary Redirect".into()));
    }

    #[test]
    fn what_cannot_be_used_is_told_from_what_may_pass() {
        let endpoint = endpoint("http://127.0.0.1:9/v1".into());
        let cut = br#"{"choices": [{"finish_reason": "length", "message": {"content": "A d"}}]}"#;
        for (status, body, passing) in [
            (StatusCode::OK, &cut[..], false),
            (StatusCode::OK, b"{}", false),
            (StatusCode::BAD_REQUEST, b"{}", false),
            (StatusCode::UNPROCESSABLE_ENTITY, b"{}", false),
            (StatusCode::OK, b"<html>", true),
            (StatusCode::UNAUTHORIZED, b"{}", true),
            (StatusCode::TOO_MANY_REQUESTS, b"{}", true),
            (StatusCode::BAD_GATEWAY, b"", true),
        ] {
            let error = endpoint.read(status, body).unwrap_err();
            assert_eq!(matches!(error, GeneratorError::Failed(_)), passing, "{status}: {error}");
        }
    }
}
