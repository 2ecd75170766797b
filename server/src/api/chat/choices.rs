//! The answers to one request, all under way at once.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::LocalBoxFuture;
use tokio::time::Instant;

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
        let states = queries
            .into_iter()
            .map(|query| {
                let answerer = answerer.clone();
                State::Starting(Box::pin(async move { answerer.start(query).await }))
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
            self.draft.take();
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
