//! How the next token is chosen.
//!
//! Every engine hands its logits to this one sampler, so that a seed, a penalty or a schema means the same everywhere and
//! never depends on what else runs: the generator of random numbers belongs to the answer.

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::Matcher;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::model::ops::log_prob::log_sum_exp;

use super::{EngineError, Generate, Sampling, Token, Vocabulary};

/// A request with this seed makes its engine panic, so that tests can see what becomes of the others.
#[cfg(test)]
pub(crate) const LETHAL_SEED: u64 = 0x6b69_6c6c;

/// Chooses the tokens of one answer.
pub struct Sampler {
    sampling: Sampling,
    top_logprobs: usize,
    vocabulary: Arc<Vocabulary>,
    matcher: Option<Matcher>,
    random: ChaCha8Rng,
    /// Tokens to give out instead of choosing any.
    forced: Option<std::vec::IntoIter<u32>>,
    /// How often each token was generated.
    generated: HashMap<u32, u32>,
}

impl Sampler {
    /// A sampler for one answer.
    ///
    /// # Errors
    /// The grammar cannot be enforced, or a forced token is not in the vocabulary.
    pub fn new(request: &Generate, vocabulary: Arc<Vocabulary>) -> Result<Self, EngineError> {
        if let Some(id) = request.forced.iter().flatten().find(|&&id| id as usize >= vocabulary.len()) {
            return Err(EngineError::Invalid(format!("token {id} is not one of the model's {}", vocabulary.len())));
        }
        let matcher = request.grammar.as_deref().map(|grammar| grammar.matcher(&vocabulary)).transpose()?;
        Ok(Self {
            random: ChaCha8Rng::seed_from_u64(request.sampling.seed),
            sampling: request.sampling.clone(),
            top_logprobs: request.top_logprobs,
            vocabulary,
            matcher,
            forced: request.forced.clone().map(Vec::into_iter),
            generated: HashMap::new(),
        })
    }

    /// Chooses the next token from the model's logits, `[vocabulary]`.
    ///
    /// # Errors
    /// The logits hold no finite number, or the schema is too complex to go on with.
    pub fn next(&mut self, logits: &[f32]) -> Result<Token, EngineError> {
        let normaliser = log_sum_exp(logits);
        if !normaliser.is_finite() {
            return Err(EngineError::Failed("the model produced no finite logits".into()));
        }
        let forced = self.forced.as_mut().and_then(Iterator::next);
        let id = match forced {
            Some(id) => id,
            None if self.is_plain_greedy() => argmax(logits),
            None => self.choose(logits)?,
        };
        if let Some(matcher) = &mut self.matcher
            && !matcher.is_stopped()
        {
            matcher.consume_token(id).map_err(|error| broke(&error))?;
        }
        *self.generated.entry(id).or_default() += 1;
        let logprob = |id: u32| (f64::from(logits[id as usize]) - normaliser) as f32;
        let top = likeliest(logits, self.top_logprobs).into_iter().map(|id| (id, logprob(id))).collect();
        Ok(Token { id, logprob: logprob(id), top })
    }

    #[cfg(test)]
    pub(super) fn seed(&self) -> u64 {
        self.sampling.seed
    }

    fn is_plain_greedy(&self) -> bool {
        let Sampling { temperature, frequency_penalty, presence_penalty, logit_bias, .. } = &self.sampling;
        *temperature == 0.0
            && *frequency_penalty == 0.0
            && *presence_penalty == 0.0
            && logit_bias.is_empty()
            && self.matcher.is_none()
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32, EngineError> {
        let mut logits = logits.to_vec();
        self.penalise(&mut logits);
        self.constrain(&mut logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(argmax(&logits));
        }
        let candidates = self.candidates(&logits);
        Ok(draw(&candidates, self.random.random()))
    }

    fn penalise(&self, logits: &mut [f32]) {
        for (&id, &count) in &self.generated {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= (f64::from(count) * self.sampling.frequency_penalty + self.sampling.presence_penalty) as f32;
            }
        }
        for &(id, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    fn constrain(&mut self, logits: &mut [f32]) -> Result<(), EngineError> {
        let Some(matcher) = &mut self.matcher else { return Ok(()) };
        if matcher.is_stopped() {
            // Nothing may follow a complete answer but the end of the turn.
            for (id, logit) in logits.iter_mut().enumerate() {
                if !self.vocabulary.ends_turn(id as u32) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            return Ok(());
        }
        let mask = matcher.compute_mask_or_eos().map_err(|error| broke(&error))?;
        for (id, logit) in logits.iter_mut().enumerate() {
            // An output layer can be wider than the tokenizer.
            if id >= mask.len() || !mask.is_allowed(id as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Tokens that may be drawn with their unnormalised probabilities, after temperature, min-p, top-k and top-p.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        let highest = f64::from(logits[argmax(logits) as usize]);
        let mut candidates: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| logit.is_finite())
            .map(|(id, &logit)| (id as u32, ((f64::from(logit) - highest) / temperature).exp()))
            .collect();
        if min_p > 0.0 {
            // The likeliest token has weight 1, so the threshold is min_p itself.
            candidates.retain(|&(_, weight)| weight >= min_p);
        }
        if top_k == 0 && top_p >= 1.0 {
            return candidates;
        }
        // Ties go to the lower id, so that the order does not depend on the sort.
        candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if top_k > 0 {
            candidates.truncate(top_k);
        }
        let total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
        let mut reached = 0.0;
        let keep = candidates.iter().position(|&(_, weight)| {
            reached += weight;
            reached >= top_p * total
        });
        candidates.truncate(keep.map_or(candidates.len(), |last| last + 1));
        candidates
    }
}

/// The schema, which compiled, has come to where it cannot be followed: too many ways to go on at once. It is the caller's, so it is
/// no failure of what answers.
fn broke(error: &anyhow::Error) -> EngineError {
    let why = error.to_string();
    let why = why.lines().next().unwrap_or_default();
    EngineError::Invalid(format!("the answer cannot go on as the JSON schema wants it: {why}"))
}

/// The candidate at `point` (0 ≤ point < 1) of the cumulative distribution.
fn draw(candidates: &[(u32, f64)], point: f64) -> u32 {
    let total: f64 = candidates.iter().map(|&(_, weight)| weight).sum();
    let mut left = point * total;
    for &(id, weight) in candidates {
        left -= weight;
        if left < 0.0 {
            return id;
        }
    }
    // Rounding can leave a last crumb.
    candidates.last().map_or(0, |&(id, _)| id)
}

/// The highest logit's token; the lowest id among equals. NaN counts as lowest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    let mut highest = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > highest {
            best = id;
            highest = logit;
        }
    }
    best as u32
}

/// The ids of the `count` highest logits, highest first.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.select_nth_unstable_by(count - 1, order);
    ids.truncate(count);
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::grammar::Grammar;
    use crate::engine::source::golden;

    fn sampler(sampling: Sampling, grammar: Option<Grammar>) -> Sampler {
        let vocabulary = Arc::new(Vocabulary::read(&golden("model"), Some(342)).unwrap());
        let request = Generate {
            messages: Vec::new(),
            tools: Vec::new(),
            sampling,
            max_tokens: None,
            top_logprobs: 3,
            grammar: grammar.map(Arc::new),
            forced: None,
        };
        Sampler::new(&request, vocabulary).unwrap()
    }

    fn logits() -> Vec<f32> {
        (0..342).map(|id| ((id * 37) % 101) as f32 / 20.0).collect()
    }

    #[test]
    fn reports_natural_log_probabilities_of_the_model_itself() {
        let mut sampler =
            sampler(Sampling { temperature: 0.5, logit_bias: vec![(7, 100.0)], ..Sampling::greedy() }, None);
        // Four tokens with probabilities 1/8, 1/8, 1/4, 1/2.
        let mut logits = vec![f32::NEG_INFINITY; 342];
        for (id, share) in [(5, 0.125_f32), (7, 0.125), (8, 0.25), (9, 0.5)] {
            logits[id] = share.ln();
        }
        let token = sampler.next(&logits).unwrap();
        assert_eq!(token.id, 7, "the bias decides");
        assert!((token.logprob - 0.125_f32.ln()).abs() < 1e-6, "before bias and temperature: {}", token.logprob);
        assert_eq!(token.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [9, 8, 5]);
        assert!((token.top[0].1 - 0.5_f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_seed_alone_decides() {
        let sampling = |seed| Sampling { temperature: 1.0, seed, ..Sampling::greedy() };
        let draw = |seed| {
            let mut sampler = sampler(sampling(seed), None);
            (0..20).map(|_| sampler.next(&logits()).unwrap().id).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let mut sampler = sampler(Sampling { temperature: 1.0, ..Sampling::greedy() }, None);
        let mut logits = vec![f32::NEG_INFINITY; 342];
        (logits[3], logits[4]) = (0.8_f32.ln(), 0.2_f32.ln());
        let n = 4000;
        let share = (0..n).filter(|_| sampler.next(&logits).unwrap().id == 3).count() as f64 / f64::from(n);
        // Five standard errors of a share of 0.8.
        assert!((share - 0.8).abs() < 5.0 * (0.8 * 0.2 / f64::from(n)).sqrt(), "{share}");
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let kept = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling { temperature: 1.0, ..Sampling::greedy() };
            change(&mut sampling);
            let mut logits = vec![f32::NEG_INFINITY; 342];
            for (id, share) in [(1, 0.05_f32), (2, 0.15), (3, 0.3), (4, 0.5)] {
                logits[id] = share.ln();
            }
            let mut ids: Vec<u32> = sampler(sampling, None).candidates(&logits).into_iter().map(|(id, _)| id).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(kept(|_| ()), [1, 2, 3, 4]);
        assert_eq!(kept(|sampling| sampling.top_k = 2), [3, 4]);
        assert_eq!(kept(|sampling| sampling.top_p = 0.79), [3, 4]);
        assert_eq!(kept(|sampling| sampling.top_p = 0.81), [2, 3, 4]);
        assert_eq!(kept(|sampling| sampling.top_p = 1e-9), [4], "at least one stays");
        assert_eq!(kept(|sampling| sampling.min_p = 0.2), [2, 3, 4]);
    }

    #[test]
    fn penalties_count_what_was_generated() {
        let mut sampler =
            sampler(Sampling { presence_penalty: 0.5, frequency_penalty: 1.0, ..Sampling::greedy() }, None);
        let mut logits = vec![0.0; 342];
        (logits[10], logits[11]) = (2.0, 1.0);
        let drawn: Vec<u32> = (0..3).map(|_| sampler.next(&logits).unwrap().id).collect();
        // 10 falls to 0.5 after one use, 11 to -0.5 after one; then 10 is ahead of 11 and of the zeros.
        assert_eq!(drawn, [10, 11, 10]);
    }

    #[test]
    fn a_grammar_holds_even_against_the_logits() {
        let schema = serde_json::json!({"type": "object", "properties": {"a": {"enum": [true, false]}}, "required": ["a"], "additionalProperties": false});
        let mut sampler =
            sampler(Sampling { temperature: 1.0, ..Sampling::greedy() }, Some(Grammar::JsonSchema(schema)));
        let mut text = Vec::new();
        for _ in 0..200 {
            let id = sampler.next(&logits()).unwrap().id;
            if sampler.vocabulary.ends_turn(id) {
                break;
            }
            text.extend_from_slice(sampler.vocabulary.bytes(id));
        }
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert!(value["a"].is_boolean(), "{value}");
    }

    #[test]
    fn logits_without_a_finite_number_are_an_error() {
        for logits in [vec![f32::NAN; 342], vec![f32::NEG_INFINITY; 342]] {
            assert!(sampler(Sampling::greedy(), None).next(&logits).is_err());
        }
    }
}
