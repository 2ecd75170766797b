//! A record with all that hangs on it: read from the store, and written back as one transaction.

use reground_learner::bootstrap::filter::{Candidate, Limits, PairFilter, Standing, source_name};
use reground_learner::bpo::pair::{Message, PreferencePair, Source};
use reground_learner::store::rows::{BootstrapState, Feedback, Pair, PairState, Record};
use reground_learner::store::{Query, Store, StoreError};

use super::choose::{SUPERSEDED, can_be_withdrawn, is_withdrawn};
use crate::config::BootstrapConfig;
use crate::recorder::replay::text;

/// Pairs that are read at once while the filter is filled.
const PAGE: usize = 1024;

/// A record, what was said of it, and the pairs that were made of it before.
pub(super) struct Case {
    pub(super) record: Record,
    /// Oldest first.
    pub(super) feedback: Vec<Feedback>,
    pub(super) pairs: Vec<Pair>,
}

/// What came of a look at a record.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) pairs: Vec<Pair>,
    /// Ids of older pairs that go.
    pub(super) withdrawn: Vec<String>,
    /// Whether it has pairs now, older ones among them.
    pub(super) has_pairs: bool,
}

/// Whether an outcome was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// All of it.
    Yes,
    /// Nothing of it: the record changed or went while it was looked at.
    Overtaken,
}

impl Case {
    pub(super) fn read(store: &Store, record: Record) -> Result<Self, StoreError> {
        let feedback = store.list_readable::<Feedback>(&Query::by("record", record.id.as_str()))?.rows;
        let pairs = store.list_readable::<Pair>(&Query::by("record", record.id.as_str()))?.rows;
        Ok(Self { record, feedback, pairs })
    }

    /// Writes what came of the look, all of it or nothing.
    pub(super) fn store(&self, store: &Store, outcome: &Outcome) -> Result<Stored, StoreError> {
        let id = &self.record.id;
        store.write(|rows| {
            let waits = rows.get::<Record>(id)?.is_some_and(|record| record.bootstrap == BootstrapState::Waiting);
            let heard: Vec<&str> = self.feedback.iter().map(|feedback| feedback.id.as_str()).collect();
            let mut said = rows.ids::<Feedback>("record", id)?;
            said.retain(|id| !matches!(rows.get::<Feedback>(id), Err(StoreError::Damaged { .. })));
            if !waits || said != heard {
                return Ok(Stored::Overtaken);
            }
            for old in &outcome.withdrawn {
                // A person may have decided about it meanwhile, which counts more.
                if rows.get::<Pair>(old)?.is_some_and(|pair| can_be_withdrawn(&pair)) {
                    rows.update::<Pair>(old, |pair| {
                        pair.state = PairState::Discarded;
                        pair.reason = Some(SUPERSEDED.to_owned());
                    })?;
                }
            }
            for pair in &outcome.pairs {
                rows.insert(pair)?;
            }
            let state = if outcome.has_pairs { BootstrapState::Done } else { BootstrapState::Skipped };
            rows.update::<Record>(id, |record| record.bootstrap = state)?;
            Ok(Stored::Yes)
        })
    }
}

/// A filter that knows all pairs of the store, but for those that were withdrawn or are about to be.
pub(super) fn filter(store: &Store, config: &BootstrapConfig, withdrawn: &[String]) -> Result<PairFilter, StoreError> {
    let limit = |most: usize| (most > 0).then_some(most);
    let sources = [Source::Annotation, Source::Correction, Source::Accepted, Source::OwnAnswer];
    let per_source =
        sources.into_iter().filter_map(|source| Some((source_name(source), limit(config.max_per_source)?)));
    let mut filter = PairFilter::new(Limits {
        max_words: config.max_words,
        max_length_ratio: config.max_length_ratio,
        per_source: per_source.collect(),
        per_key: limit(config.max_per_key),
        per_template: limit(config.max_per_template),
    });
    let mut query = Query { limit: PAGE, ..Query::default() };
    loop {
        let page = store.list_readable::<Pair>(&query)?;
        for pair in page.rows.iter().filter(|pair| !is_withdrawn(pair) && !withdrawn.contains(&pair.data.id)) {
            let (images, question) = (images(&pair.data), question(&pair.data.conversation));
            filter.know(&candidate(pair, &images, &question));
        }
        query.after = page.rows.last().map(|pair| pair.data.id.clone());
        if !page.more {
            return Ok(filter);
        }
    }
}

/// A pair as the filter sees it.
pub(super) fn candidate<'a>(pair: &'a Pair, images: &'a str, question: &'a str) -> Candidate<'a> {
    let standing = match pair.state {
        PairState::Discarded => Standing::Refused,
        PairState::Review => Standing::Waiting,
        _ => Standing::Chosen,
    };
    let PreferencePair { chosen, rejected, source, .. } = &pair.data;
    let rejected = rejected.as_deref().unwrap_or_default();
    Candidate { images, question, chosen, rejected, source: *source, key: pair.key.as_deref(), standing }
}

/// The images by content.
pub(super) fn images(pair: &PreferencePair) -> String {
    pair.images.iter().map(|image| image.digest.as_str()).collect::<Vec<_>>().join("+")
}

/// All that was said up to the answer.
pub(super) fn question(conversation: &[Message]) -> String {
    conversation.iter().map(text).collect::<Vec<_>>().join("\n")
}
