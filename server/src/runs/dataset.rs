//! The pairs of a run, frozen when it begins.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use reground_learner::bpo::data::blobs::{BlobDir, Blobs};
use reground_learner::bpo::dataset;
use reground_learner::bpo::files::make_directories;
use reground_learner::bpo::pair::PreferencePair;
use reground_learner::store::rows::{Pair, Run};
use reground_learner::store::{Query, Store};

use super::settings::BLOBS;
use super::{RunRequest, RunsError, Training, files};
use crate::config::TrainConfig;
use crate::images::Format;
use crate::recorder::without_metadata;

/// A run's frozen pairs, in its directory.
pub(super) const FILE: &str = "dataset.jsonl";

/// What was frozen.
pub(super) struct Frozen {
    /// BLAKE3 digest of dataset.jsonl.
    pub(super) digest: String,
    /// Pairs in it.
    pub(super) count: usize,
    /// Those that are rows of the store.
    pub(super) collected: Vec<Collected>,
    /// Collected pairs whose image is gone.
    pub(super) without_image: usize,
}

/// A pair of the store as it was frozen.
pub(super) struct Collected {
    pub(super) id: String,
    /// BLAKE3 of its answers.
    answers: blake3::Hash,
}

impl Collected {
    pub(super) fn new(pair: &PreferencePair) -> Self {
        Self { id: pair.id.clone(), answers: answers(pair) }
    }

    /// Whether a pair has the answers still that were frozen.
    pub(super) fn is(&self, pair: &PreferencePair) -> bool {
        self.answers == answers(pair)
    }
}

fn answers(pair: &PreferencePair) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for answer in [Some(&pair.chosen), pair.rejected.as_ref()] {
        // With its length before each, two pairs of answers differ wherever they are cut.
        hasher.update(&answer.map_or(u64::MAX, |answer| answer.len() as u64).to_le_bytes());
        hasher.update(answer.map_or(&[], |answer| answer.as_bytes()));
    }
    hasher.finalize()
}

/// Writes `directory/dataset.jsonl` and has its images beside it, so that what is deleted meanwhile does not end the run.
///
/// # Errors
/// There is nothing to train on, or something cannot be read or written.
pub(super) fn freeze(store: &Store, run: &Run, train: &TrainConfig, directory: &Path) -> Result<Frozen, RunsError> {
    make_directories(directory)?;
    let images = Images { store, kept: BlobDir::new(directory.join(BLOBS)) };
    let request = RunRequest::of(run);
    let mut chosen = match request.training {
        Training::File(id) => {
            let mut pairs = Vec::new();
            let file = files::get(store, &id)?;
            let gone = files::read_again(&store.blob_path(&file.digest)?, &images, &mut |pair| pairs.push(pair))?;
            Chosen { pairs, without_image: gone, ..Chosen::default() }
        }
        Training::New => {
            let new = fresh(store)?;
            if new.is_empty() {
                let why = "there is no new pair to train on; `pairs:all` trains on those that earlier runs had, too";
                return Err(RunsError::NoData(why.to_owned()));
            }
            let replayed = share(train.replay_share, new.len());
            let old = sample_used(store, replayed, &run.id)?;
            images.collected(new.into_iter().chain(old))?
        }
        Training::All => images.collected(fresh(store)?.into_iter().chain(in_state(store, "used")?))?,
    };
    if chosen.pairs.is_empty() {
        return Err(RunsError::NoData("there is no pair to train on".to_owned()));
    }
    if !chosen.collected.is_empty() {
        let most = share(train.anchor_share, chosen.pairs.len());
        let files = request.anchors.as_ref().unwrap_or(&train.anchors);
        let (anchors, gone) = anchors(store, files, &images, most, &run.id)?;
        chosen.pairs.extend(anchors);
        chosen.without_image += gone;
    }
    let mut seen = HashSet::new();
    chosen.pairs.retain(|pair| seen.insert(pair.id.clone()));
    images.kept.sync()?;
    let (digest, count) = dataset::freeze(&directory.join(FILE), &chosen.pairs)?;
    Ok(Frozen { digest, count, collected: chosen.collected, without_image: chosen.without_image })
}

/// Number of collected pairs that a run on `pairs` would begin with: those that no run had.
///
/// # Errors
/// The store failed.
pub(super) fn count_new(store: &Store) -> Result<usize, RunsError> {
    Ok(store.count::<Pair>(&Query::by("state", "new"))? + store.count::<Pair>(&Query::by("state", "accepted"))?)
}

/// Number of collected pairs that may be trained on.
///
/// # Errors
/// The store failed.
pub(super) fn count_all(store: &Store) -> Result<usize, RunsError> {
    Ok(count_new(store)? + store.count::<Pair>(&Query::by("state", "used"))?)
}

#[derive(Default)]
struct Chosen {
    pairs: Vec<PreferencePair>,
    collected: Vec<Collected>,
    without_image: usize,
}

/// The images of a run: what is put goes beside its dataset, what is looked for comes from the store.
struct Images<'a> {
    store: &'a Store,
    kept: BlobDir,
}

impl Images<'_> {
    fn collected(&self, pairs: impl Iterator<Item = PreferencePair>) -> io::Result<Chosen> {
        let mut chosen = Chosen::default();
        for pair in pairs {
            if self.keep(&pair)? {
                chosen.collected.push(Collected::new(&pair));
                chosen.pairs.push(pair);
            } else {
                chosen.without_image += 1;
            }
        }
        Ok(chosen)
    }

    /// Keeps the images of a pair; whether all are there.
    fn keep(&self, pair: &PreferencePair) -> io::Result<bool> {
        for image in &pair.images {
            match self.store.link_blob(&image.digest, &self.kept) {
                // Its record was deleted just now.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                other => other?,
            }
        }
        Ok(true)
    }
}

impl Blobs for Images<'_> {
    /// Without metadata, as the recorder keeps images: held out or trained on is decided by the digest, and the same photograph must
    /// not be both.
    fn put(&self, bytes: &[u8]) -> io::Result<String> {
        let cleaned = Format::of_bytes(bytes).ok().and_then(|format| without_metadata(bytes, format));
        self.kept.put(cleaned.as_deref().unwrap_or(bytes))
    }

    fn get(&self, digest: &str) -> io::Result<Vec<u8>> {
        Blobs::get(self.store, digest)
    }
}

/// Pairs that no run had, oldest first.
fn fresh(store: &Store) -> Result<Vec<PreferencePair>, RunsError> {
    let mut pairs = in_state(store, "new")?;
    pairs.extend(in_state(store, "accepted")?);
    pairs.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(pairs)
}

/// Of the pairs that a run had at most so many, as [`sample`] chooses; read in pages, since a store can have millions.
fn sample_used(store: &Store, most: usize, run: &str) -> Result<Vec<PreferencePair>, RunsError> {
    const PAGE: usize = 1000;
    let mut chosen = BTreeMap::new();
    let mut query = Query { limit: PAGE, ..Query::by("state", "used") };
    if most == 0 {
        return Ok(Vec::new());
    }
    loop {
        let page = store.list_readable::<Pair>(&query)?;
        let Some(last) = page.rows.last() else { break };
        query.after = Some(last.data.id.clone());
        for row in page.rows {
            chosen.insert(rank(run, &row.data.id), row.data);
            if chosen.len() > most {
                chosen.pop_last();
            }
        }
        if !page.more {
            break;
        }
    }
    Ok(chosen.into_values().collect())
}

fn in_state(store: &Store, state: &str) -> Result<Vec<PreferencePair>, RunsError> {
    Ok(store.list_readable::<Pair>(&Query::by("state", state))?.rows.into_iter().map(|row| row.data).collect())
}

/// Pairs of `files`, at most so many, and how many there would be if no image were gone.
fn anchors(
    store: &Store,
    files: &[String],
    images: &Images<'_>,
    most: usize,
    run: &str,
) -> Result<(Vec<PreferencePair>, usize), RunsError> {
    let (mut pairs, mut gone) = (Vec::new(), 0);
    for id in files {
        let file = files::get(store, id)?;
        gone += files::read_again(&store.blob_path(&file.digest)?, images, &mut |pair| pairs.push(pair))?;
    }
    Ok((sample(pairs, most, run, |pair| pair.id.as_str()), gone))
}

/// How many others make up `share` of a set that has so many already.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts of pairs"
)]
fn share(share: f64, others: usize) -> usize {
    (others as f64 * share / (1.0 - share)).round() as usize
}

/// Where an item comes in a run's choice.
fn rank(run: &str, id: &str) -> [u8; 32] {
    *blake3::hash(format!("{run} {id}").as_bytes()).as_bytes()
}

/// At most so many, another choice for each run and the same for the same one.
fn sample<T>(mut all: Vec<T>, most: usize, run: &str, id: impl Fn(&T) -> &str) -> Vec<T> {
    if all.len() > most {
        all.sort_by_cached_key(|item| rank(run, id(item)));
        all.truncate(most);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_one_of_the_whole() {
        assert_eq!([share(0.3, 70), share(0.0, 70), share(0.5, 10)], [30, 0, 10]);
    }

    #[test]
    fn each_run_samples_anew_and_repeats_itself() {
        let all: Vec<String> = (0..50).map(|n| format!("pair-{n}")).collect();
        let of = |run: &str| sample(all.clone(), 10, run, String::as_str);
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_eq!(of("a").len(), 10);
        assert_eq!(sample(all.clone(), 60, "a", String::as_str), all);
    }
}
