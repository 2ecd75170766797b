//! The way of one query.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::account::Account;
use super::shadow::{Case, Shadow};
use super::text::TextBuilder;
use super::tools;
use super::{AnswerError, AnsweredToken, FinishReason, Piece, Query, ToolChoice};
use crate::engine::{EngineError, Event, Finish, Generate, GenerationId, Token, TokenStream, Vocabulary};
use crate::rollout::{Generations, Lease};

/// Bytes of text that are counted in the time in which another thread would be woken for it.
const SHORT: usize = 4096;

/// Gives answers.
pub struct Answerer {
    generations: Arc<Generations>,
    /// Answers a share of the queries a second time.
    shadow: Arc<Shadow>,
    /// Cancelled when open answers must end.
    closing: CancellationToken,
}

impl Answerer {
    /// Answers with these generations until `closing` is cancelled.
    #[must_use]
    pub fn new(generations: Arc<Generations>, closing: CancellationToken) -> Self {
        let shadow = Arc::new(Shadow::new(generations.clone()));
        Self { generations, shadow, closing }
    }

    /// What answers a share of the queries a second time.
    #[must_use]
    pub fn shadow(&self) -> &Arc<Shadow> {
        &self.shadow
    }

    /// Waits for a place and for the prompt to be read.
    ///
    /// # Errors
    /// See [`AnswerError`]; nothing of the answer was given yet.
    pub async fn start(&self, query: Query) -> Result<Answer, AnswerError> {
        let began = Instant::now();
        let refused = |error| AnswerError::refused(error, began);
        let admitted = async {
            let lease = match self.lease(&query)? {
                Some(lease) => lease,
                None => self.generations.enter(query.sticky, &query.key, query.deadline).await.map_err(refused)?,
            };
            let permit = lease.admission.enter(&query.key, query.deadline).await.map_err(refused)?;
            Ok::<_, AnswerError>((lease, permit))
        };
        let (lease, permit) = tokio::select! {
            admitted = admitted => admitted?,
            () = self.closing.cancelled() => return Err(AnswerError::ShuttingDown),
        };
        let mut account = Account::open(lease.observed.clone());
        let by_route = query.generation.is_none();

        let Query {
            messages,
            tools,
            tool_choice,
            sampling,
            max_tokens,
            top_logprobs,
            grammar,
            stop,
            live,
            deadline,
            ..
        } = query;
        let tools = if tool_choice == ToolChoice::None { Vec::new() } else { tools };
        let grammar = tools::grammar(&tools, &tool_choice).map(Arc::new).or(grammar);
        let request =
            Generate { messages, tools: tools.clone(), sampling, max_tokens, top_logprobs, grammar, forced: None };
        let Lease { generation, .. } = lease.clone();
        let id = generation.id().clone();
        let case = if by_route { self.shadow.case(&id, &request, &stop) } else { None };
        // The permit and the lease stay with the sequence until it has left the engine.
        let place = Box::new((permit, lease));
        // Compiling a schema or counting a long prompt's tokens can take a while, which must not hold up other requests' tokens.
        let stream = if request.grammar.is_some() || request.text_bytes() > SHORT {
            let generate = tokio::task::spawn_blocking(move || generation.generate(request, place));
            let broke = |error| Err(EngineError::Failed(format!("the request broke its engine: {error}")));
            tokio::select! {
                stream = generate => stream.unwrap_or_else(broke).map_err(AnswerError::from),
                () = sleep_until(deadline) => Err(AnswerError::Deadline { after: began.elapsed() }),
                () = self.closing.cancelled() => Err(AnswerError::ShuttingDown),
            }
        } else {
            generation.generate(request, place).map_err(AnswerError::from)
        };
        let stream = stream.inspect_err(|error| account.broke_off(error))?;
        // A stop string must end the answer where it comes.
        if !live && stop.is_empty() {
            stream.be_patient();
        }

        let mut answer = Answer {
            generation: id,
            prompt_tokens: 0,
            stream,
            vocabulary: self.generations.info().vocabulary.clone(),
            text: TextBuilder::new(stop),
            tools,
            buffered: String::new(),
            completion_tokens: 0,
            began,
            deadline: Box::pin(sleep_until(deadline)),
            closing: Box::pin(self.closing.clone().cancelled_owned()),
            ready: VecDeque::new(),
            ended: false,
            account,
            case,
        };
        let first = poll_fn(|cx| answer.poll_event(cx)).await;
        let begun = first.and_then(|event| match event {
            Event::Started { prompt_tokens } => {
                answer.prompt_tokens = prompt_tokens;
                Ok(())
            }
            other => answer.take(other),
        });
        begun.inspect_err(|error| answer.account.broke_off(error))?;
        Ok(answer)
    }

    /// What the query brings along or names; `None`: the route says.
    fn lease(&self, query: &Query) -> Result<Option<Lease>, AnswerError> {
        if query.lease.is_some() {
            return Ok(query.lease.clone());
        }
        let Some(id) = &query.generation else { return Ok(None) };
        let lease = self.generations.get(id).ok_or_else(|| {
            let loaded: Vec<String> = self.generations.list().iter().map(ToString::to_string).collect();
            AnswerError::UnknownGeneration { id: id.clone(), loaded: loaded.join(", ") }
        })?;
        Ok(Some(lease))
    }
}

/// An answer under way. Dropping it cancels the generation and frees its place.
pub struct Answer {
    generation: GenerationId,
    prompt_tokens: usize,
    stream: TokenStream,
    vocabulary: Arc<Vocabulary>,
    text: TextBuilder,
    tools: Vec<serde_json::Value>,
    /// With tools: the text so far, which may turn out to be a call.
    buffered: String,
    completion_tokens: usize,
    began: Instant,
    /// Both live as long as the answer: a timer made anew at each look would be forgotten with the look.
    deadline: Pin<Box<Sleep>>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    ready: VecDeque<Piece>,
    ended: bool,
    account: Account,
    /// With a shadow: what it will be compared with.
    case: Option<Case>,
}

impl Answer {
    /// What answers, from the first token to the last.
    #[must_use]
    pub fn generation(&self) -> &GenerationId {
        &self.generation
    }

    /// Tokens of the prompt, those of images included.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The next piece; `None` after `End` or an error.
    pub async fn next(&mut self) -> Option<Result<Piece, AnswerError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Answer::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, AnswerError>>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let taken = ready!(self.poll_event(cx)).and_then(|event| self.take(event));
            if let Err(error) = taken {
                self.ended = true;
                self.account.broke_off(&error);
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, AnswerError>> {
        // What the engine made in time is given out, however late the caller takes it.
        if let Poll::Ready(event) = self.stream.poll_next(cx)
            && self.stream.reported() <= self.deadline.deadline()
        {
            let died = || EngineError::Failed("it died while it answered; it is being restarted".into()).into();
            return Poll::Ready(event.ok_or_else(died));
        }
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(AnswerError::Deadline { after: self.began.elapsed() }));
        }
        self.closing.as_mut().poll(cx).map(|()| Err(AnswerError::ShuttingDown))
    }

    fn take(&mut self, event: Event) -> Result<(), AnswerError> {
        match event {
            Event::Started { .. } => {}
            Event::Token(token) => self.take_token(token),
            Event::Finished(Finish::Stop) => self.end(FinishReason::Stop),
            Event::Finished(Finish::Length) => self.end(FinishReason::Length),
            Event::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn take_token(&mut self, token: Token) {
        self.completion_tokens += 1;
        self.account.token(self.stream.reported());
        if let Some(case) = &mut self.case {
            case.token(token.id, token.logprob, self.stream.reported());
        }
        if self.vocabulary.ends_turn(token.id) {
            return;
        }
        let text = self.text.push(self.vocabulary.bytes(token.id));
        let tokens = vec![self.answered(token)];
        self.give(text, tokens);
        if self.text.is_stopped() {
            self.end(FinishReason::Stop);
        }
    }

    fn answered(&self, token: Token) -> AnsweredToken {
        let Token { id, logprob, top } = token;
        let top = top.into_iter().map(|(id, logprob)| (self.vocabulary.name(id), logprob)).collect();
        AnsweredToken { id, bytes: self.vocabulary.name(id), logprob, top, at: self.stream.reported() }
    }

    fn give(&mut self, text: String, tokens: Vec<AnsweredToken>) {
        if self.tools.is_empty() {
            self.ready.push_back(Piece::Delta { text, tokens });
        } else {
            self.buffered.push_str(&text);
            self.ready.push_back(Piece::Delta { text: String::new(), tokens });
        }
    }

    fn end(&mut self, mut reason: FinishReason) {
        let rest = self.text.finish();
        // A stop string can complete with the very last bytes.
        if self.text.is_stopped() {
            reason = FinishReason::Stop;
        }
        if !rest.is_empty() {
            self.give(rest, Vec::new());
        }
        let (text, tool_calls) = tools::parse(&std::mem::take(&mut self.buffered), &self.tools);
        if !text.is_empty() {
            self.ready.push_back(Piece::Delta { text, tokens: Vec::new() });
        }
        let reason = if tool_calls.is_empty() { reason } else { FinishReason::ToolCalls };
        let timing = self.account.timing(self.began, self.stream.reported());
        self.ready.push_back(Piece::End { reason, completion_tokens: self.completion_tokens, tool_calls, timing });
        self.ended = true;
        self.account.ended();
        if let Some(case) = self.case.take() {
            case.submit();
        }
    }
}
