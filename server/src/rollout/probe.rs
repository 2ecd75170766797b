//! Does an adapter change anything, and is what it gives sound?
//!
//! The base answers a fixed question; the adapter then scores that answer. An adapter whose log-probabilities are the base's
//! was not merged, or was never trained; one that gives no finite numbers would answer noise.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::Lease;
use crate::admission::AdmissionError;
use crate::engine::{Content, EngineError, Event, Generate, Message, Role, Sampling};

const QUESTION: &str = "Describe the image.";
/// Tokens that are compared.
const TOKENS: usize = 8;
/// Nats; far above rounding and far below what a step of training does.
const LEAST_CHANGE: f32 = 1e-5;
const DEADLINE: Duration = Duration::from_secs(120);
/// Whom probes count for in the queue.
const KEY: &str = "reground";

/// Why an adapter is not put before anyone.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// It gives what the base gives.
    #[error("the adapter changes nothing: the log-probabilities of a probe are those of the base")]
    Inert,
    /// It gives no finite numbers.
    #[error("the adapter gives no finite log-probabilities")]
    NotFinite,
    /// The probe got no place in time.
    #[error("the probe got no place: {0}")]
    Admission(#[from] AdmissionError),
    /// The probe took too long.
    #[error("the probe was not answered within {} s", DEADLINE.as_secs())]
    Deadline,
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What the base says: tokens and their log-probabilities, scored as an adapter's will be.
///
/// # Errors
/// See [`ProbeError`].
pub(super) async fn reference(base: &Lease) -> Result<Vec<(u32, f32)>, ProbeError> {
    let said = ask(base, None).await?;
    score(base, &said).await
}

/// Scores what was said, twice: whoever was asked before finds the beginning of the prompt, computes with other shapes, and rounds
/// otherwise. The second time everybody does.
async fn score(lease: &Lease, said: &[(u32, f32)]) -> Result<Vec<(u32, f32)>, ProbeError> {
    let forced: Vec<u32> = said.iter().map(|(id, _)| *id).collect();
    ask(lease, Some(forced.clone())).await?;
    ask(lease, Some(forced)).await
}

/// Compares an adapter with what the base says; the largest change of a log-probability, in nats.
///
/// # Errors
/// See [`ProbeError`].
pub(super) async fn compare(answered: &[(u32, f32)], adapter: &Lease) -> Result<f32, ProbeError> {
    let scored = score(adapter, answered).await?;
    let mut largest = 0.0_f32;
    for ((_, base), (_, adapter)) in answered.iter().zip(&scored) {
        if !adapter.is_finite() {
            return Err(ProbeError::NotFinite);
        }
        largest = largest.max((base - adapter).abs());
    }
    if largest < LEAST_CHANGE { Err(ProbeError::Inert) } else { Ok(largest) }
}

/// Tokens of an answer and their log-probabilities: greedy ones, or those given.
async fn ask(lease: &Lease, forced: Option<Vec<u32>>) -> Result<Vec<(u32, f32)>, ProbeError> {
    let permit = lease.admission.enter(KEY, Instant::now() + DEADLINE).await?;
    let request = Generate {
        messages: vec![Message {
            role: Role::User,
            content: vec![Content::Text(QUESTION.into())],
            tool_calls: Vec::new(),
            tool_call_id: None,
        }],
        tools: Vec::new(),
        sampling: Sampling::greedy(),
        max_tokens: Some(TOKENS),
        top_logprobs: 0,
        grammar: None,
        forced,
    };
    let mut stream = lease.generation.generate(request, Box::new((permit, lease.clone())))?;
    stream.be_patient();
    let mut tokens = Vec::new();
    let collect = async {
        while let Some(event) = stream.next().await {
            match event {
                Event::Started { .. } => {}
                Event::Token(token) => tokens.push((token.id, token.logprob)),
                Event::Finished(_) => return Ok(()),
                Event::Failed(EngineError::Failed(message)) if message.contains("no finite") => {
                    return Err(ProbeError::NotFinite);
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
        Err(EngineError::Unavailable(lease.generation.id().clone()).into())
    };
    timeout(DEADLINE, collect).await.map_err(|_| ProbeError::Deadline)??;
    Ok(tokens)
}
