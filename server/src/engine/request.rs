//! What an engine is asked, and what it streams back.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use serde_json::Value;
use tokio::time::Instant;

use super::EngineError;
use super::grammar::Grammar;
use crate::images::Pixels;

/// One answer to generate.
#[derive(Clone, Debug)]
pub struct Generate {
    /// The conversation; the last message is the one to answer.
    pub messages: Vec<Message>,
    /// Tools that the chat template may show to the model, as OpenAI writes them.
    pub tools: Vec<Value>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer, at least 1; `None`: as many as fit.
    pub max_tokens: Option<usize>,
    /// Alternatives to report with each token.
    pub top_logprobs: usize,
    /// What the answer must look like.
    pub grammar: Option<Arc<Grammar>>,
    /// Tokens to score instead of choosing any: the answer is these, with their log-probabilities.
    pub forced: Option<Vec<u32>>,
}

impl Generate {
    /// Bytes of all text: messages, calls of tools, and what is said of the tools.
    pub fn text_bytes(&self) -> usize {
        let parts = self.messages.iter().flat_map(|message| &message.content).map(|part| match part {
            Content::Text(text) => text.len(),
            Content::Image(_) => 0,
        });
        let calls = self.messages.iter().flat_map(|message| &message.tool_calls);
        parts.sum::<usize>() + calls.chain(&self.tools).map(text_bytes).sum::<usize>()
    }

    /// The images of all messages, in order.
    pub fn pixels(&self) -> impl Iterator<Item = &Pixels> {
        self.messages.iter().flat_map(|message| &message.content).filter_map(|part| match part {
            Content::Image(pixels) => Some(pixels),
            Content::Text(_) => None,
        })
    }
}

/// Fewest bytes of text that a value is written in.
pub(crate) fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(key, value)| key.len() + text_bytes(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
    }
}

/// One message of the conversation.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// Text and images, in order.
    pub content: Vec<Content>,
    /// Tool calls of an assistant message, as OpenAI writes them.
    pub tool_calls: Vec<Value>,
    /// The call that a tool message answers.
    pub tool_call_id: Option<String>,
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// As chat templates write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A piece of a message.
#[derive(Clone, Debug)]
pub enum Content {
    /// Text, free of the model's control tokens.
    Text(String),
    /// A decoded image, upright.
    Image(Pixels),
}

/// How the next token is chosen. Penalties, bias, temperature, min-p, top-k and top-p apply in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// Smallest set of likeliest tokens whose probability reaches this; 1 is off.
    pub top_p: f64,
    /// Only so many likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Only tokens at least this share of the likeliest one's probability; 0 is off.
    pub min_p: f64,
    /// Subtracted from a token's logit for each time it was generated.
    pub frequency_penalty: f64,
    /// Subtracted from a token's logit once it was generated.
    pub presence_penalty: f64,
    /// Added to single tokens' logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, request and generation: same answer, whatever else runs.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token at every step.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability under the model itself: before penalties, bias, temperature and grammar.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// End of turn, or the grammar is complete.
    Stop,
    /// `max_tokens`, or the model's limit.
    Length,
}

/// What an engine reports of an answer, in this order: `Started`, any number of `Token`, then `Finished` or `Failed`.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt was read.
    Started {
        /// Tokens of the prompt, those of images included.
        prompt_tokens: usize,
    },
    /// The next token. An end-of-turn token is reported too.
    Token(Token),
    /// The answer is complete.
    Finished(Finish),
    /// The engine failed.
    Failed(EngineError),
}

/// The events of one answer. Dropping it ends the generation at its next step.
///
/// The queue is unbounded, but an answer is not: at most [`super::EngineInfo::max_len`] events wait for a slow reader, and
/// the engine never waits for one.
#[derive(Debug)]
pub struct TokenStream {
    shared: Arc<Shared>,
    reported: Instant,
}

/// Fills a [`TokenStream`]. Dropping it ends the stream.
#[derive(Debug)]
pub struct EventSender {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    reader: AtomicWaker,
    writer: AtomicWaker,
    patient: AtomicBool,
    cancelled: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    /// With the time at which the engine reported it.
    events: VecDeque<(Instant, Event)>,
    closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenStream {
    /// The stream and the sender that fills it.
    #[must_use]
    pub fn channel() -> (Self, EventSender) {
        let shared = Arc::<Shared>::default();
        (Self { shared: shared.clone(), reported: Instant::now() }, EventSender { shared })
    }

    /// From here on tokens alone do not wake the reader, who gets them together with the next event of another kind.
    ///
    /// For who needs the answer only when it is complete: waking a thread for each token takes a core from an engine that
    /// computes on all of them.
    pub fn be_patient(&self) {
        self.shared.patient.store(true, Ordering::Relaxed);
    }

    /// When the engine reported the event that was read last, however long it then waited for its reader.
    #[must_use]
    pub fn reported(&self) -> Instant {
        self.reported
    }

    /// The next event; `None` after the last one, or if the engine died.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`TokenStream::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        // Before the look, so that an event which comes after it wakes.
        self.shared.reader.register(cx.waker());
        let mut queue = self.shared.queue();
        match queue.events.pop_front() {
            Some((at, event)) => {
                self.reported = at;
                Poll::Ready(Some(event))
            }
            None if queue.closed => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        self.shared.writer.wake();
    }
}

impl EventSender {
    /// Adds an event. Never waits.
    pub fn send(&self, event: Event) {
        let wakes = !(matches!(event, Event::Token(_)) && self.shared.patient.load(Ordering::Relaxed));
        self.shared.queue().events.push_back((Instant::now(), event));
        if wakes {
            self.shared.reader.wake();
        }
    }

    /// Ready once the stream is dropped. Only the last of several such futures is woken.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = self.shared.clone();
        poll_fn(move |cx| {
            shared.writer.register(cx.waker());
            if shared.cancelled.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Whether the stream was dropped: nobody wants the rest of the answer. Engines look at it between steps.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.reader.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    fn token(id: u32) -> Event {
        Event::Token(Token { id, logprob: 0.0, top: Vec::new() })
    }

    /// A waker and whether it was called since the last look.
    fn waker() -> (Waker, impl Fn() -> bool) {
        struct Flag(AtomicBool);
        impl std::task::Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        (flag.clone().into(), move || flag.0.swap(false, Ordering::SeqCst))
    }

    #[test]
    fn an_eager_reader_is_woken_by_each_token() {
        let (mut stream, sender) = TokenStream::channel();
        let (waker, woken) = waker();
        let mut cx = Context::from_waker(&waker);
        for id in 0..3 {
            assert!(stream.poll_next(&mut cx).is_pending());
            sender.send(token(id));
            assert!(woken());
            assert!(
                matches!(stream.poll_next(&mut cx), Poll::Ready(Some(Event::Token(Token { id: got, .. }))) if got == id)
            );
        }
    }

    #[test]
    fn a_patient_reader_is_woken_by_the_end_and_gets_all_in_order() {
        let (mut stream, sender) = TokenStream::channel();
        stream.be_patient();
        let (waker, woken) = waker();
        let mut cx = Context::from_waker(&waker);
        assert!(stream.poll_next(&mut cx).is_pending());
        sender.send(Event::Started { prompt_tokens: 1 });
        assert!(woken());
        assert!(matches!(stream.poll_next(&mut cx), Poll::Ready(Some(Event::Started { .. }))));
        assert!(stream.poll_next(&mut cx).is_pending());
        (0..3).for_each(|id| sender.send(token(id)));
        assert!(!woken());
        sender.send(Event::Finished(Finish::Stop));
        assert!(woken());
        for id in 0..3 {
            assert!(
                matches!(stream.poll_next(&mut cx), Poll::Ready(Some(Event::Token(Token { id: got, .. }))) if got == id)
            );
        }
        assert!(matches!(stream.poll_next(&mut cx), Poll::Ready(Some(Event::Finished(Finish::Stop)))));
    }

    #[test]
    fn a_patient_reader_learns_when_each_token_was_made() {
        let (mut stream, sender) = TokenStream::channel();
        stream.be_patient();
        let sent = [0, 1].map(|id| {
            let before = Instant::now();
            sender.send(token(id));
            std::thread::sleep(Duration::from_millis(2));
            before..Instant::now()
        });
        for when in sent {
            assert!(matches!(stream.next().now_or_never(), Some(Some(Event::Token(_)))));
            assert!(when.contains(&stream.reported()));
        }
    }

    #[test]
    fn a_lost_sender_ends_the_stream_and_a_lost_stream_cancels() {
        let (mut stream, sender) = TokenStream::channel();
        stream.be_patient();
        let (waker, woken) = waker();
        assert!(stream.poll_next(&mut Context::from_waker(&waker)).is_pending());
        sender.send(token(1));
        drop(sender);
        assert!(woken(), "the engine died");
        assert!(matches!(stream.next().now_or_never(), Some(Some(Event::Token(_)))));
        assert!(matches!(stream.next().now_or_never(), Some(None)));

        let (stream, sender) = TokenStream::channel();
        assert!(!sender.is_cancelled());
        drop(stream);
        assert!(sender.is_cancelled());
    }
}
