//! The answers to one request, all under way at once.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::rt;
use futures::future::LocalBoxFuture;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::answer::{Answer, AnswerError, Answerer, FinishReason, Piece, Query};
use crate::api::metrics::Meter;
use crate::engine::{EngineError, GenerationId};
use crate::recorder::Draft;

/// The answers to one request. Dropping it cancels what is still under way.
pub(super) struct Choices {
    states: Vec<State>,
    /// Where the next look begins, so that a fast answer does not hold up the others.
    turn: usize,
    arrival: Instant,
    /// What answers, and the tokens of the prompt; from the first answer that began.
    begun: Option<(GenerationId, usize)>,
    /// What is written down of it.
    draft: Option<Draft>,
}

enum State {
    Starting(LocalBoxFuture<'static, Result<Answer, AnswerError>>),
    Running(Box<Answer>, Meter),
    Done,
}

impl Choices {
    /// Begins all answers, which belong to a request that arrived then.
    pub(super) fn start(answerer: &Arc<Answerer>, queries: Vec<Query>, arrival: Instant, draft: Option<Draft>) -> Self {
        let alone = queries.len() == 1;
        let states = queries
            .into_iter()
            .map(|query| {
                let answerer = answerer.clone();
                let start = async move { answerer.start(query).await };
                State::Starting(if alone { Box::pin(start) } else { by_itself(start) })
            })
            .collect();
        Self { states, turn: 0, arrival, begun: None, draft }
    }

    /// What answers. Known as soon as there is a piece.
    pub(super) fn generation(&self) -> &str {
        self.begun.as_ref().map_or("", |(generation, _)| generation.as_str())
    }

    /// Tokens of the prompt, which all choices share. Known as soon as there is a piece.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.begun.as_ref().map_or(0, |(_, tokens)| *tokens)
    }

    /// The next piece of any choice, with the choice's index; `None` after the last one. After an error nothing comes.
    pub(super) async fn next(&mut self) -> Option<Result<(usize, Piece), AnswerError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Self::next`].
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Piece), AnswerError>>> {
        let next = self.poll_all(cx);
        match (&next, &mut self.draft) {
            (Poll::Ready(Some(Ok((index, piece)))), Some(draft)) => draft.piece(*index, piece),
            (Poll::Ready(Some(Err(_))), Some(draft)) => draft.failed(),
            _ => {}
        }
        if matches!(next, Poll::Ready(None | Some(Err(_)))) {
            // Complete: a client that reads slowly does not keep it from being written.
            self.draft.take().into_iter().for_each(hand_over);
        }
        if let Poll::Ready(Some(Err(_))) = &next {
            for state in &mut self.states {
                if let State::Running(_, meter) = state {
                    meter.ended("error", None);
                }
            }
            self.states.clear();
        }
        next
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Piece), AnswerError>>> {
        if self.states.iter().all(|state| matches!(state, State::Done)) {
            return Poll::Ready(None);
        }
        // All starts before any piece: a full queue is then a 429, also when the first of four choices got in.
        for state in &mut self.states {
            if let State::Starting(starting) = state
                && let Poll::Ready(started) = starting.as_mut().poll(cx)
            {
                match started {
                    Ok(answer) => {
                        let begun = (answer.generation().clone(), answer.prompt_tokens());
                        let meter = Meter::new(begun.0.clone(), self.arrival, begun.1);
                        if let (None, Some(draft)) = (&self.begun, &mut self.draft) {
                            draft.begun(begun.0.as_str(), begun.1);
                        }
                        self.begun.get_or_insert(begun);
                        *state = State::Running(Box::new(answer), meter);
                    }
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
        }
        let count = self.states.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            if let Poll::Ready(piece) = self.states[index].poll_piece(cx) {
                self.turn = index + 1;
                return Poll::Ready(Some(piece.map(|piece| (index, piece))));
            }
        }
        Poll::Pending
    }
}

/// Once this thread has written to its connection what it has: a client need not wait until the recorder's thread is awake.
fn hand_over(draft: Draft) {
    rt::spawn(async move { drop(draft) });
}

/// Starts in a task of its own: of several choices, one can have the place that it waited for while the client does not read
/// the others, and nobody looks at the stream.
fn by_itself(
    start: impl Future<Output = Result<Answer, AnswerError>> + Send + 'static,
) -> LocalBoxFuture<'static, Result<Answer, AnswerError>> {
    let task = AbortOnDropHandle::new(tokio::spawn(start));
    let broken = |error| Err(EngineError::Failed(format!("the answer did not begin: {error}")).into());
    Box::pin(async move { task.await.unwrap_or_else(broken) })
}

impl State {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, AnswerError>> {
        let Self::Running(answer, meter) = self else { return Poll::Pending };
        let Poll::Ready(piece) = answer.poll_next(cx) else { return Poll::Pending };
        // An answer that ends without an end lost its engine.
        let piece = piece.unwrap_or_else(|| Err(EngineError::Failed("the answer broke off".into()).into()));
        match &piece {
            Ok(Piece::Delta { tokens, .. }) => meter.tokens(tokens.len()),
            Ok(Piece::End { reason, completion_tokens, .. }) => {
                meter.ended(finish_reason(*reason), Some(*completion_tokens));
                *self = Self::Done;
            }
            Err(_) => {}
        }
        Poll::Ready(piece)
    }
}

/// As OpenAI writes it.
pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admission::Snapshot;
    use crate::answer::ToolChoice;
    use crate::api::testing;
    use crate::config::Config;
    use crate::engine::{Content, Message, Role, Sampling};
    use crate::rollout::Sticky;

    fn query(text: &str) -> Query {
        let content = vec![Content::Text(text.into())];
        let message = Message { role: Role::User, content, tool_calls: Vec::new(), tool_call_id: None };
        Query {
            key: "key".into(),
            generation: None,
            sticky: Sticky::of("key"),
            lease: None,
            messages: vec![message],
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            sampling: Sampling::greedy(),
            max_tokens: None,
            top_logprobs: 0,
            grammar: None,
            stop: Vec::new(),
            live: true,
            deadline: Instant::now() + Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_holds_no_place() {
        // Two places, and four choices.
        let server = testing::server(Config::default(), &[], true).await;
        let queries = (0..4).map(|_| query("hello")).collect();
        let mut choices = Choices::start(&server.app.answerer, queries, Instant::now(), None);
        choices.next().await.unwrap().unwrap();
        let admission = server.app.generations.live().unwrap().admission;
        let begun = Instant::now();
        while admission.snapshot() != Snapshot::default() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", admission.snapshot());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut ends = 0;
        while let Some(piece) = choices.next().await {
            ends += usize::from(matches!(piece.unwrap().1, Piece::End { .. }));
        }
        assert_eq!(ends, 4);
    }
}
