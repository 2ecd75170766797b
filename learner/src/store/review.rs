//! What a person decides about a pair.

use serde_json::{Value, json};

use super::rows::{Audit, Pair, PairState, Review, Row, Verdict, word};
use super::{Store, StoreError, id};
use crate::bpo::pair::{NegativeKind, Source};

/// Why a pair is not trained on.
const REVIEWED: &str = "reviewed";

/// New texts of a pair's answers, without the white space around them; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// y⁺.
    pub chosen: Option<String>,
    /// y⁻.
    pub rejected: Option<String>,
}

impl Store {
    /// Does with a pair what a person decided; `edit` counts for [`Verdict::Edit`] only. Pair and audit are on disk when this
    /// returns. The audit names the pair and holds none of its text, so that deleting a record leaves nothing of it.
    ///
    /// # Errors
    /// [`StoreError::Missing`]; [`StoreError::Invalid`] where the pair would be none afterwards; or a failure of the store.
    pub fn review(&self, pair: &str, by: &str, verdict: Verdict, edit: Edit) -> Result<Pair, StoreError> {
        self.write(|rows| {
            let mut pair = rows.need::<Pair>(pair)?;
            let before = told(&pair);
            apply(&mut pair, verdict, edit)?;
            pair.reviews.push(Review { at_ms: id::now_ms(), by: by.to_owned(), verdict });
            rows.put(&pair)?;
            rows.insert(&Audit {
                id: id::new(Audit::PREFIX),
                at_ms: id::now_ms(),
                who: by.to_owned(),
                action: format!("pair.{}", word(verdict)),
                before,
                after: told(&pair),
            })?;
            Ok(pair)
        })
    }
}

fn apply(pair: &mut Pair, verdict: Verdict, edit: Edit) -> Result<(), StoreError> {
    let used = pair.state == PairState::Used;
    (pair.state, pair.reason) = (PairState::Accepted, None);
    match verdict {
        // Replayed as it is.
        Verdict::Accept if used => pair.state = PairState::Used,
        Verdict::Accept => {}
        Verdict::Discard => (pair.state, pair.reason) = (PairState::Discarded, Some(REVIEWED.to_owned())),
        Verdict::Swap => {
            let Some(rejected) = pair.data.rejected.as_mut() else {
                let why = "it has no rejected answer to swap with".to_owned();
                return Err(StoreError::Invalid { kind: Pair::KIND, id: pair.data.id.clone(), why });
            };
            std::mem::swap(&mut pair.data.chosen, rejected);
            (pair.data.source, pair.data.negative) = (Source::Accepted, Some(NegativeKind::Given));
        }
        Verdict::Edit => {
            if let Some(chosen) = edit.chosen {
                (pair.data.chosen, pair.data.source) = (chosen.trim().to_owned(), Source::Correction);
            }
            if let Some(rejected) = edit.rejected {
                (pair.data.rejected, pair.data.negative) =
                    (Some(rejected.trim().to_owned()), Some(NegativeKind::Given));
            }
        }
    }
    Ok(())
}

fn told(pair: &Pair) -> Value {
    json!({
        "pair": pair.data.id,
        "state": word(pair.state),
        "source": word(pair.data.source),
        "kind": pair.data.negative.map(word),
    })
}
