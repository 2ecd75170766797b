//! How two generations differ in what they answer.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};

use super::case::Timed;
use crate::engine::GenerationId;
use crate::rollout::Sample;

/// Second answers by what became of them.
pub(super) const OUTCOMES: &str = "reground_shadow_answers_total";
const SAME: &str = "reground_shadow_same_share";
const TOKENS: &str = "reground_shadow_answer_tokens";
const LOGPROB: &str = "reground_shadow_token_logprob_nats";
const FIRST_TOKEN: &str = "reground_shadow_first_token_seconds";
const PER_TOKEN: &str = "reground_shadow_token_seconds";

/// How a shadow's answers differ from those of the live generation to the same queries.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What answers a second time.
    pub shadow: GenerationId,
    /// What answered before.
    pub live: GenerationId,
    /// Share of the answers that are the same, token by token.
    pub same: Sample,
    /// Share of the live answer's tokens up to the first one that differs.
    pub common: Sample,
    /// How the live answers are.
    pub of_live: Side,
    /// How the shadow's are.
    pub of_shadow: Side,
    /// Second answers that failed.
    pub failed: u64,
}

/// How the answers of one generation are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Side {
    /// Tokens of an answer.
    pub tokens: Sample,
    /// Mean log-probability of an answer's tokens, nats.
    pub logprob: Sample,
    /// Natural logarithm of the seconds to the first token, the queue left out; of a shadow's only those beside which nobody else was
    /// answered.
    pub first_token: Sample,
    /// Natural logarithm of the seconds per token after it, of the same answers.
    pub per_token: Sample,
}

impl Default for Comparison {
    fn default() -> Self {
        Self::new(GenerationId::base(), GenerationId::base())
    }
}

impl Comparison {
    pub(super) fn new(shadow: GenerationId, live: GenerationId) -> Self {
        Self {
            shadow,
            live,
            same: Sample::default(),
            common: Sample::default(),
            of_live: Side::default(),
            of_shadow: Side::default(),
            failed: 0,
        }
    }

    pub(super) fn is_of(&self, shadow: &GenerationId, live: &GenerationId) -> bool {
        self.shadow == *shadow && self.live == *live
    }

    /// One more query was answered by both.
    pub(super) fn add(&mut self, live: &Timed, shadow: &Timed) {
        let pairs = live.tokens.iter().zip(&shadow.tokens);
        let common = pairs.take_while(|((live, _), (shadow, _))| live == shadow).count();
        let same = common == live.tokens.len() && common == shadow.tokens.len();
        self.same.add(f64::from(u8::from(same)));
        self.common.add(common as f64 / live.tokens.len().max(1) as f64);
        self.of_live.add(live);
        self.of_shadow.add(shadow);
        counter!(OUTCOMES, "outcome" => "compared").increment(1);
        gauge!(SAME).set(self.same.mean());
        self.of_live.tell("live");
        self.of_shadow.tell("shadow");
    }
}

impl Side {
    fn add(&mut self, answer: &Timed) {
        self.tokens.add(answer.tokens.len() as f64);
        answer.logprob().into_iter().for_each(|value| self.logprob.add(value));
        let logarithm = |time: Duration| time.max(Duration::from_micros(1)).as_secs_f64().ln();
        answer.first_token().into_iter().for_each(|time| self.first_token.add(logarithm(time)));
        answer.per_token().into_iter().for_each(|time| self.per_token.add(logarithm(time)));
    }

    fn tell(&self, side: &'static str) {
        gauge!(TOKENS, "side" => side).set(self.tokens.mean());
        gauge!(LOGPROB, "side" => side).set(self.logprob.mean());
        gauge!(FIRST_TOKEN, "side" => side).set(self.first_token.mean().exp());
        gauge!(PER_TOKEN, "side" => side).set(self.per_token.mean().exp());
    }
}

pub(super) fn describe() {
    describe_counter!(OUTCOMES, "Second answers: compared, dropped (the queue was full), preempted, failed, overtaken");
    describe_gauge!(SAME, "Share of the shadow's answers that are those of the live generation");
    describe_gauge!(TOKENS, "Tokens of an answer in the mean, by side: live, shadow");
    describe_gauge!(LOGPROB, "Log-probability of a token in the mean, by side");
    describe_gauge!(
        FIRST_TOKEN,
        "Seconds to the first token, the queue left out, geometric mean, by side; the shadow's where nobody else was answered"
    );
    describe_gauge!(
        PER_TOKEN,
        "Seconds per token after the first, geometric mean, by side; the shadow's where nobody else was answered"
    );
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn answer(tokens: &[u32], logprob: f32) -> Timed {
        let mut timed = Timed::begin();
        tokens.iter().for_each(|id| timed.token(*id, logprob, Instant::now()));
        timed
    }

    #[test]
    fn times_count_as_long_as_nobody_else_is_answered() {
        let mut comparison = Comparison::default();
        let (live, mut late) = (answer(&[1, 2, 3], -0.5), answer(&[1, 2, 3], -0.5));
        late.disturb();
        let mut early = Timed::begin();
        early.disturb();
        let after = Instant::now() + Duration::from_secs(1);
        [1, 2, 3].into_iter().for_each(|id| early.token(id, -0.5, after));
        for shadow in [&late, &early, &live] {
            comparison.add(&live, shadow);
        }
        let shadow = comparison.of_shadow;
        assert_eq!((shadow.tokens.count(), shadow.first_token.count(), shadow.per_token.count()), (3, 2, 1));
        assert_eq!(comparison.of_live.per_token.count(), 3);
    }

    #[test]
    fn answers_are_compared_token_by_token() {
        let mut comparison = Comparison::new("ad-1".into(), "base".into());
        let live = answer(&[1, 2, 3, 4], -0.5);
        comparison.add(&live, &answer(&[1, 2, 3, 4], -0.5));
        comparison.add(&live, &answer(&[1, 2, 9], -1.5));
        comparison.add(&live, &answer(&[1, 2, 3, 4, 5], -1.0));
        assert_eq!(comparison.same.count(), 3);
        assert!((comparison.same.mean() - 1.0 / 3.0).abs() < 1e-12);
        assert!((comparison.common.mean() - 2.5 / 3.0).abs() < 1e-12);
        assert_eq!((comparison.of_live.tokens.mean(), comparison.of_shadow.tokens.mean()), (4.0, 4.0));
        assert!((comparison.of_live.logprob.mean() + 0.5).abs() < 1e-12);
        assert!((comparison.of_shadow.logprob.mean() + 1.0).abs() < 1e-12);
    }
}
