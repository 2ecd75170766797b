//! The grounding filter: whether an answer rests on the picture, and whether the model would say it again.
//!
//! ```text
//! margin = 1/T Σ_t [ log π(y_t | v, x, y_<t) − log π(y_t | ṽ, x, y_<t) ]        nats per token
//! ```
//!
//! An answer that the language model would give without looking is about as likely for the distorted image, and its margin is
//! near 0. Besides, the same claim must be made in k of n answers that are drawn anew.

use std::collections::BTreeSet;

use crate::generator::{Generated, Generator, GeneratorError, Question, Turn};

/// Words that carry no claim. What negates is not among them.
const FUNCTION_WORDS: [&str; 42] = [
    "a", "also", "am", "an", "and", "any", "are", "at", "be", "been", "being", "but", "by", "can", "did", "do", "does",
    "for", "has", "have", "i", "image", "in", "is", "it", "its", "of", "on", "or", "photo", "picture", "see", "shows",
    "some", "that", "the", "there", "this", "to", "was", "were", "with",
];

/// Words that turn a claim round.
const NEGATIONS: [&str; 8] = ["cannot", "neither", "never", "no", "none", "nor", "not", "without"];

/// When an answer counts as grounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grounding {
    /// Least margin, nats per token.
    pub threshold: f64,
    /// n, answers drawn anew; 0: none are.
    pub samples: usize,
    /// k, how many of them must make the same claim.
    pub agree: usize,
    /// Temperature of the answers drawn anew.
    pub temperature: f64,
    /// Most tokens of each of them.
    pub max_tokens: usize,
    /// Where their draws come from; the i-th takes `seed + i`.
    pub seed: u64,
}

/// What the filter measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grounded {
    /// Nats per token.
    pub margin: f64,
    /// Answers drawn anew that make the same claim; 0 where the margin was too small to ask for any.
    pub agreeing: usize,
    /// Whether it counts as grounded.
    pub passes: bool,
}

/// An answer as the model gave it.
#[derive(Clone, Copy, Debug)]
pub struct OwnAnswer<'a> {
    /// Its text.
    pub text: &'a str,
    /// Its token ids.
    pub tokens: &'a [u32],
}

/// Measures how much `answer` rests on the images of `clean`; `blurred` is the same conversation with ṽ in their place. All of
/// it is asked of one generation: `generation`, or the one that is live at the first question.
///
/// # Errors
/// Whatever keeps the model from answering; an answer without tokens.
pub async fn ground(
    generator: &dyn Generator,
    generation: Option<&str>,
    clean: &[Turn],
    blurred: &[Turn],
    answer: OwnAnswer<'_>,
    grounding: &Grounding,
) -> Result<Grounded, GeneratorError> {
    let with_image = score(generator, generation, clean, answer.tokens).await?;
    let generation = Some(with_image.generation.as_str());
    let without = score(generator, generation, blurred, answer.tokens).await?;
    let margin = margin(&with_image, &without, answer.tokens.len())?;
    if margin < grounding.threshold {
        return Ok(Grounded { margin, agreeing: 0, passes: false });
    }
    let mut agreeing = 0;
    for sample in 0..grounding.samples {
        let left = grounding.samples - sample;
        // Decided already, one way or the other.
        if agreeing >= grounding.agree || agreeing + left < grounding.agree {
            break;
        }
        let question = Question {
            generation: generation.map(str::to_owned),
            turns: clean.to_vec(),
            temperature: grounding.temperature,
            top_p: 1.0,
            seed: grounding.seed.wrapping_add(sample as u64),
            max_tokens: grounding.max_tokens,
            answer: None,
        };
        agreeing += usize::from(same_claim(answer.text, &generator.generate(question).await?.text));
    }
    Ok(Grounded { margin, agreeing, passes: agreeing >= grounding.agree })
}

/// Whether `sample` claims what `answer` claims: it has all its content words, and negates where that negates. Words are compared
/// as they stand, so this errs towards "no"; which colour goes with which object is not looked at.
pub fn same_claim(answer: &str, sample: &str) -> bool {
    let (claimed, sampled) = (Claim::of(answer), Claim::of(sample));
    claimed.negations == sampled.negations && claimed.content.is_subset(&sampled.content)
}

struct Claim {
    content: BTreeSet<String>,
    negations: BTreeSet<String>,
}

impl Claim {
    fn of(text: &str) -> Self {
        let text = text.to_lowercase().replace('’', "'").replace("n't", " not");
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        let (negations, content): (BTreeSet<_>, BTreeSet<_>) =
            words.map(str::to_owned).partition(|word| NEGATIONS.contains(&word.as_str()));
        Self {
            content: content.into_iter().filter(|word| !FUNCTION_WORDS.contains(&word.as_str())).collect(),
            negations,
        }
    }
}

async fn score(
    generator: &dyn Generator,
    generation: Option<&str>,
    turns: &[Turn],
    answer: &[u32],
) -> Result<Generated, GeneratorError> {
    let question = Question {
        generation: generation.map(str::to_owned),
        turns: turns.to_vec(),
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        max_tokens: answer.len(),
        answer: Some(answer.to_vec()),
    };
    generator.generate(question).await
}

fn margin(with_image: &Generated, without: &Generated, tokens: usize) -> Result<f64, GeneratorError> {
    let scored = [with_image, without].map(|generated| generated.tokens.len());
    if tokens == 0 || scored != [tokens; 2] {
        let message = format!("an answer of {tokens} tokens was scored with {} and {} tokens", scored[0], scored[1]);
        return Err(GeneratorError::Invalid(message));
    }
    let sum = |generated: &Generated| generated.tokens.iter().map(|(_, logprob)| f64::from(*logprob)).sum::<f64>();
    Ok((sum(with_image) - sum(without)) / tokens as f64)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::sync::Mutex;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Scores tokens by what the question says, and draws these answers in turn.
    struct Scripted {
        drawn: Mutex<Vec<&'static str>>,
    }

    impl Generator for Scripted {
        fn generate(
            &self,
            question: Question,
        ) -> Pin<Box<dyn Future<Output = Result<Generated, GeneratorError>> + Send + '_>> {
            let blurred = question.turns[0].text() == "blurred";
            let generated = match question.answer {
                Some(tokens) => {
                    assert_eq!(question.generation.as_deref(), blurred.then_some("base"));
                    let logprob = if blurred { -1.5 } else { -0.5 };
                    let tokens = tokens.into_iter().map(|id| (id, logprob)).collect();
                    Generated { generation: "base".into(), text: String::new(), tokens }
                }
                None => {
                    assert!(!blurred && question.generation.as_deref() == Some("base"));
                    let text = self.drawn.lock().unwrap().remove(0).to_owned();
                    Generated { generation: "base".into(), text, tokens: Vec::new() }
                }
            };
            Box::pin(std::future::ready(Ok(generated)))
        }
    }

    fn grounded(drawn: &[&'static str], grounding: &Grounding) -> (Result<Grounded, GeneratorError>, usize) {
        let turn = |text: &str| vec![Turn::user([], text)];
        let generator = Scripted { drawn: Mutex::new(drawn.to_vec()) };
        let (clean, blurred) = (turn("clean"), turn("blurred"));
        let answer = OwnAnswer { text: "There is a red apple.", tokens: &[1, 2, 3] };
        let mut work = pin!(ground(&generator, None, &clean, &blurred, answer, grounding));
        let Poll::Ready(result) = work.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("a script does not wait");
        };
        let left = generator.drawn.lock().unwrap().len();
        (result, left)
    }

    const GROUNDING: Grounding =
        Grounding { threshold: 0.9, samples: 3, agree: 2, temperature: 0.7, max_tokens: 9, seed: 1 };

    #[test]
    fn an_answer_must_rest_on_the_picture_and_be_repeated() {
        let (same, other) = ("A red apple, and a hat.", "A green apple.");
        for (drawn, passes, left) in [
            (&[same, same, other][..], true, 1),
            (&[other, same, same][..], true, 0),
            (&[other, other, same][..], false, 1),
        ] {
            let (result, unasked) = grounded(drawn, &GROUNDING);
            let result = result.unwrap();
            assert_eq!((result.passes, unasked), (passes, left), "{drawn:?}");
            assert!((result.margin - 1.0).abs() < 1e-6);
        }
        let strict = Grounding { threshold: 1.1, ..GROUNDING };
        let (result, unasked) = grounded(&[same, same, same], &strict);
        assert_eq!(result.unwrap(), Grounded { margin: 1.0, agreeing: 0, passes: false });
        assert_eq!(unasked, 3, "nothing more is asked about an answer that rests on nothing");
    }

    #[test]
    fn a_claim_is_its_words_and_what_negates_them() {
        for (answer, sample, same) in [
            ("There is a red apple.", "The picture shows a hat and a red apple!", true),
            ("There is a red apple.", "There is an apple.", false),
            ("Yes, there is a cat.", "No, there is no cat.", false),
            ("There is no cat.", "There is a cat.", false),
            ("It isn’t red.", "It is not red", true),
            ("It is red.", "It isn't red.", false),
            ("Two birds.", "There are two birds.", true),
            ("Two birds.", "There are three birds.", false),
        ] {
            assert_eq!(same_claim(answer, sample), same, "{answer} / {sample}");
        }
    }
}
