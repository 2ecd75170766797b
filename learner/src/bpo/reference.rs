//! log π_ref of every sequence, computed once per run and kept in `DIR/reference.safetensors`.
//!
//! The reference is frozen, so its second forward pass in every step, which common trainers make, is not needed. A part of
//! the table is saved every [`SAVE_EVERY`], so that a run killed here loses little.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use fs_err as fs;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::config::Reference as Which;
use super::error::TrainError;
use super::examples::{Example, Examples};
use super::files;
use super::order::micro_batches;
use super::policy::{Group, Policy};
use crate::eval::preference::ScoredPair;

/// How often an unfinished table is saved.
pub const SAVE_EVERY: Duration = Duration::from_secs(30);

/// log π_ref of one example's sequences, nats; NaN for one that is not there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// y⁺ given the clean image.
    pub chosen: f64,
    /// y⁻ given the clean image.
    pub rejected: f64,
    /// y⁺ given the distorted image.
    pub distorted: f64,
}

/// One row for each example of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    rows: Vec<Option<Row>>,
}

/// How examples are scored.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    /// The base alone, or base + adapter.
    pub which: Which,
    /// Score rejected answers.
    pub rejected: bool,
    /// Score distorted images.
    pub distorted: bool,
    /// Most pairs in one forward pass.
    pub micro_batch: usize,
    /// Most tokens in one forward pass; 0 for no limit.
    pub micro_tokens: usize,
}

impl Reference {
    /// The row of example `index`; `None` until it was scored.
    pub fn row(&self, index: usize) -> Option<Row> {
        self.rows.get(index).copied().flatten()
    }

    /// Loads what there is in `path` under `key` for the set called `name`, and scores the rest. Returns `None` when
    /// `keep_going` said no; what was scored by then is saved.
    ///
    /// # Errors
    /// The model or an example fails, or the table cannot be saved. A damaged table is computed anew.
    pub fn load_or_score<P: Policy>(
        path: &Path,
        key: &str,
        policy: &P,
        examples: &dyn Examples,
        scoring: Scoring,
        keep_going: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Option<Self>, TrainError> {
        let mut table = Self::load(path, key, examples.len()).unwrap_or(Self { rows: vec![None; examples.len()] });
        let mut missing = (0..examples.len()).filter(|index| table.rows[*index].is_none()).collect::<Vec<_>>();
        if missing.is_empty() {
            return Ok(Some(table));
        }
        missing.sort_by_key(|index| (std::cmp::Reverse(examples.tokens(*index)), *index));
        let micros = micro_batches(&missing, |index| examples.tokens(index), scoring.micro_batch, scoring.micro_tokens);
        let mut done = examples.len() - missing.len();
        let mut saved = Instant::now();
        for micro in micros {
            if !keep_going(done, examples.len()) {
                table.save(path, key)?;
                return Ok(None);
            }
            let batch = load(examples, &micro, scoring.rejected, scoring.distorted)?;
            let rows = score(policy, &batch, scoring.which == Which::Start)?;
            for (index, row) in micro.iter().zip(rows) {
                table.rows[*index] = Some(row);
            }
            done += micro.len();
            if saved.elapsed() > SAVE_EVERY {
                table.save(path, key)?;
                saved = Instant::now();
            }
        }
        table.save(path, key)?;
        keep_going(done, examples.len());
        Ok(Some(table))
    }

    fn load(path: &Path, key: &str, len: usize) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        if header.metadata().as_ref()?.get("key")? != key {
            return None;
        }
        let tensors = SafeTensors::deserialize(&bytes).ok()?;
        let table = tensors.tensor("logps").ok()?;
        let digest = header.metadata().as_ref()?.get("digest")?;
        if table.dtype() != Dtype::F64
            || table.shape() != [len, 4]
            || blake3::hash(table.data()).to_hex().as_str() != digest
        {
            tracing::warn!(file = %path.display(), "the table of reference log-probabilities is damaged and is computed anew");
            return None;
        }
        let mut numbers = table.data().chunks_exact(8).map(|bytes| {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            f64::from_le_bytes(eight)
        });
        let mut rows = Vec::with_capacity(len);
        while let Some(known) = numbers.next() {
            let row = Row { chosen: numbers.next()?, rejected: numbers.next()?, distorted: numbers.next()? };
            rows.push((known == 1.0).then_some(row));
        }
        Some(Self { rows })
    }

    fn save(&self, path: &Path, key: &str) -> Result<(), TrainError> {
        let nothing = Row { chosen: f64::NAN, rejected: f64::NAN, distorted: f64::NAN };
        let numbers = self.rows.iter().flat_map(|row| {
            let known = f64::from(u8::from(row.is_some()));
            let row = row.unwrap_or(nothing);
            [known, row.chosen, row.rejected, row.distorted]
        });
        let data = numbers.flat_map(f64::to_le_bytes).collect::<Vec<_>>();
        let digest = blake3::hash(&data).to_hex().to_string();
        let about = HashMap::from([("key".to_owned(), key.to_owned()), ("digest".to_owned(), digest)]);
        let failed = || TrainError::io(format!("cannot save {}", path.display()));
        let other = |error: safetensors::SafeTensorError| std::io::Error::other(error.to_string());
        let table = TensorView::new(Dtype::F64, vec![self.rows.len(), 4], &data).map_err(other).map_err(failed())?;
        let bytes = safetensors::serialize([("logps", table)], Some(about)).map_err(other).map_err(failed())?;
        files::write_atomic(path, |file| file.write_all(&bytes)).map_err(failed())
    }
}

/// Prepares the examples of a forward pass; `rejected = false` leaves rejected answers out.
pub(super) fn load(
    examples: &dyn Examples,
    indices: &[usize],
    rejected: bool,
    distorted: bool,
) -> Result<Vec<Example>, TrainError> {
    let one = |index: &usize| {
        let what = || format!("example {index}");
        let mut example =
            examples.example(*index, distorted).map_err(|source| TrainError::Example { what: what(), source })?;
        let answers = example.clean.answers.len();
        if answers == 0 || example.clean.answers.iter().any(|answer| answer.is_empty()) {
            return Err(TrainError::Example { what: what(), source: "it has an answer without tokens".into() });
        }
        example.clean.answers.truncate(if rejected { 2 } else { 1 });
        Ok(example)
    };
    let first = || indices.first().copied().unwrap_or(0);
    examples
        .prepare(indices, distorted)
        .map_err(|source| TrainError::Example { what: format!("the forward pass of example {}", first()), source })?;
    indices.iter().map(one).collect()
}

/// The groups of a forward pass: the clean ones, each followed by its distorted one.
pub(super) fn groups(examples: &[Example]) -> Vec<Group> {
    examples
        .iter()
        .flat_map(|example| std::iter::once(example.clean.clone()).chain(example.distorted.clone()))
        .collect()
}

/// Turns a policy's answer for [`groups`] into one row per example.
pub(super) fn rows(examples: &[Example], logps: &[Vec<f64>]) -> Result<Vec<Row>, TrainError> {
    let got = logps.iter().map(Vec::len).sum();
    let want = groups(examples).iter().map(|group| group.answers.len()).sum();
    let wrong = || TrainError::WrongCount { got, want };
    let mut groups = logps.iter();
    let mut rows = Vec::with_capacity(examples.len());
    for example in examples {
        let clean = groups.next().ok_or_else(wrong)?;
        if clean.len() != example.clean.answers.len() {
            return Err(wrong());
        }
        let distorted = match &example.distorted {
            Some(_) => *groups.next().and_then(|group| group.first()).ok_or_else(wrong)?,
            None => f64::NAN,
        };
        let chosen = *clean.first().ok_or_else(wrong)?;
        rows.push(Row { chosen, rejected: clean.get(1).copied().unwrap_or(f64::NAN), distorted });
    }
    Ok(rows)
}

/// Scores pairs under the policy and under its base, in their order, distorted images included. `progress` is called with
/// the pairs done.
///
/// # Errors
/// The model or an example fails.
pub fn score_pairs<P: Policy>(
    policy: &P,
    examples: &dyn Examples,
    micro_batch: usize,
    micro_tokens: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<ScoredPair>, TrainError> {
    let indices = (0..examples.len()).collect::<Vec<_>>();
    let mut pairs = Vec::with_capacity(indices.len());
    for micro in micro_batches(&indices, |index| examples.tokens(index), micro_batch, micro_tokens) {
        let batch = load(examples, &micro, true, true)?;
        for (own, base) in score(policy, &batch, true)?.into_iter().zip(score(policy, &batch, false)?) {
            pairs.push(ScoredPair {
                chosen: own.chosen,
                rejected: own.rejected,
                reference_chosen: base.chosen,
                reference_rejected: base.rejected,
                chosen_distorted: Some(own.distorted).filter(|score| !score.is_nan()),
            });
        }
        progress(pairs.len());
    }
    Ok(pairs)
}

/// Scores examples without a tape.
pub(super) fn score<P: Policy>(policy: &P, examples: &[Example], adapter: bool) -> Result<Vec<Row>, TrainError> {
    rows(examples, &policy.score(&groups(examples), adapter)?)
}
