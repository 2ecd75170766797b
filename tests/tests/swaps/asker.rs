//! A client that streams one answer after the other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};
use reground_tests::Client;
use serde_json::{Value, json};

use super::route::Routes;

/// Users that the clients ask for, in turn.
pub(super) const USERS: usize = 24;
/// Questions that clients ask in turn.
const QUESTIONS: usize = 12;

/// What the clients are in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Warming up, and from one stretch to the next.
    Between,
    Quiet,
    Changes,
    Canary,
    Over,
}

/// What all clients see.
#[derive(Default)]
pub(super) struct Shared {
    phase: AtomicU8,
    /// Answers that came.
    pub(super) answers: AtomicUsize,
    /// Clients that gave up.
    failed: AtomicUsize,
}

impl Shared {
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    /// Whether no client has failed.
    pub(super) fn is_well(&self) -> bool {
        self.failed.load(Ordering::Relaxed) == 0
    }
}

/// One answer.
pub(super) struct Answer {
    pub(super) question: usize,
    pub(super) user: usize,
    pub(super) generation: String,
    pub(super) text: String,
    /// The route that held from before it was asked for until it had begun; `None` if that changed meanwhile.
    pub(super) route: Option<usize>,
}

/// Everything that clients saw. Of two lists the first is what came without changes, the second what came with them.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) answers: Vec<Answer>,
    /// Seconds from the question to the first token.
    pub(super) first_tokens: [Vec<f64>; 2],
    /// Seconds between two tokens of an answer.
    pub(super) gaps: [Vec<f64>; 2],
}

impl Seen {
    pub(super) fn add(&mut self, other: Self) {
        self.answers.extend(other.answers);
        for (all, more) in [(&mut self.first_tokens, other.first_tokens), (&mut self.gaps, other.gaps)] {
            all.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
        }
    }
}

pub(super) fn question(model: &str, at: usize, user: usize) -> Value {
    json!({"model": model, "temperature": 0, "max_tokens": 48, "stream": true, "logit_bias": {"2": -100},
        "user": format!("user-{user}"),
        "messages": [{"role": "user", "content": format!("what is left of circle number {at}?")}]})
}

/// The generation that answered and what it said; `token` sees when each token came.
pub(super) async fn ask(
    client: &Client,
    body: &Value,
    token: &mut (dyn FnMut(Instant) + Send),
) -> Result<(String, String)> {
    let mut stream = client.open(body).await?;
    let (mut prints, mut text) = (BTreeSet::new(), String::new());
    while let Some(chunk) = stream.next().await? {
        ensure!(chunk["error"].is_null(), "{chunk}");
        prints.extend(chunk["system_fingerprint"].as_str().map(str::to_owned));
        if let Some(piece) = chunk["choices"][0]["delta"]["content"].as_str().filter(|piece| !piece.is_empty()) {
            text.push_str(piece);
            token(Instant::now());
        }
    }
    ensure!(prints.len() == 1, "one answer, several generations: {prints:?}");
    Ok((prints.into_iter().next().unwrap_or_default(), text))
}

/// Asks the questions from `from` on, in steps.
pub(super) async fn keep_asking(
    client: Client,
    (from, step): (usize, usize),
    shared: Arc<Shared>,
    routes: Arc<Routes>,
) -> Result<Seen> {
    let mut seen = Seen::default();
    for at in (from..).step_by(step) {
        if shared.phase() == Phase::Over as u8 {
            break;
        }
        let asked = ask_once(&client, at, &shared, &routes, &mut seen).await;
        if asked.is_err() {
            shared.failed.fetch_add(1, Ordering::Relaxed);
        }
        asked?;
    }
    Ok(seen)
}

async fn ask_once(client: &Client, at: usize, shared: &Shared, routes: &Routes, seen: &mut Seen) -> Result<()> {
    let (question_at, user) = (at % QUESTIONS, at % USERS);
    let route = routes.now();
    // A time counts if one phase lasts from its beginning to its end.
    let (mut before, mut still) = ((Instant::now(), shared.phase()), None);
    let (mut is_first, first_tokens, gaps) = (true, &mut seen.first_tokens, &mut seen.gaps);
    let (generation, text) = ask(client, &question("reground", question_at, user), &mut |now| {
        let times = if is_first { &mut *first_tokens } else { &mut *gaps };
        if is_first {
            still = routes.now();
        }
        is_first = false;
        let phase = shared.phase();
        if phase == before.1 && (phase == Phase::Quiet as u8 || phase == Phase::Changes as u8) {
            times[usize::from(phase - Phase::Quiet as u8)].push((now - before.0).as_secs_f64());
        }
        before = (now, phase);
    })
    .await?;
    let route = route.filter(|route| still == Some(*route));
    seen.answers.push(Answer { question: question_at, user, generation, text, route });
    shared.answers.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
