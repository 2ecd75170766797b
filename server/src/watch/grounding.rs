//! The grounding probe: how much recorded answers rest on their pictures, for one generation and for another.
//!
//! ```text
//! margin = 1/T Σ_t [ log π(y_t | v, x, y_<t) − log π(y_t | blank, x, y_<t) ]        nats per token
//! ```
//!
//! The same answers are scored by both generations, so that what differs is the generations. An answer that the language model would
//! give without looking has a margin near 0.

use reground_learner::bootstrap::distort::{Distortion, DistortionKind, Normalisation};
use reground_learner::bootstrap::ground::{Grounding as Settings, OwnAnswer, ground};
use reground_learner::bootstrap::weaken;
use reground_learner::generator::{Generator, GeneratorError, Turn};
use reground_learner::store::rows::{Finish, Record};
use reground_learner::store::{Query, Store, StoreError};

/// The mean colour of the picture, everywhere.
const BLANK: Distortion = Distortion { kind: DistortionKind::Blank, strength: 0.0, seed: 0 };
/// Longest side of the blank picture, pixels.
const EDGE: u32 = 512;
/// Records that are read at once.
const PAGE: usize = 64;
/// Records that are looked at until there are enough with a picture.
const MOST: usize = 1024;

/// The latest records whose answer can be scored, at most so many. What is damaged is left out.
pub(super) fn candidates(store: &Store, most: usize) -> Result<Vec<Record>, StoreError> {
    let mut query = Query { limit: PAGE, newest_first: true, ..Query::default() };
    let (mut found, mut seen) = (Vec::new(), 0);
    while found.len() < most && seen < MOST {
        let page = store.list_readable::<Record>(&query)?;
        seen += page.rows.len();
        query.after = page.rows.last().map(|record| record.id.clone());
        found.extend(page.rows.into_iter().filter(can_be_scored));
        if !page.more {
            break;
        }
    }
    found.truncate(most);
    Ok(found)
}

fn can_be_scored(record: &Record) -> bool {
    let whole = |finish| matches!(finish, Finish::Stop | Finish::Length);
    let answered = record.answers.first().is_some_and(|answer| whole(answer.finish) && !answer.token_ids.is_empty());
    // What was redacted is not what the model saw.
    answered && !record.images.is_empty() && record.redactions == 0 && record.training_messages().is_some()
}

/// What the picture adds to an answer's log-probability under a generation, nats per token.
///
/// # Errors
/// The generation is not loaded, or the model failed.
pub(super) async fn margin(
    generator: &dyn Generator,
    generation: &str,
    turns: &[Turn],
    tokens: &[u32],
) -> Result<f64, GeneratorError> {
    let clean = turns.to_vec();
    let blank = move || weaken::distorted(&clean, &BLANK, EDGE, &Normalisation::default());
    let blank = tokio::task::spawn_blocking(blank).await;
    let blank = blank.map_err(|_| GeneratorError::Failed("the thread that blanked an image is gone".to_owned()))?;
    let blank = blank.map_err(|error| GeneratorError::Invalid(error.to_string()))?;
    let settings = Settings {
        threshold: f64::INFINITY,
        samples: 0,
        agree: 0,
        temperature: 0.0,
        max_tokens: tokens.len(),
        seed: 0,
    };
    let answer = OwnAnswer { text: "", tokens };
    Ok(ground(generator, Some(generation), turns, &blank, answer, &settings).await?.margin)
}
