//! Preference data from files: three shapes, one entry at a time, every refusal with file and line.
//!
//! # Shapes
//! - `preference`: OpenAI's preference fine-tuning rows, `{"input": {"messages": […]}, "preferred_output": […],
//!   "non_preferred_output": […]}`, with `image_url` parts.
//! - `llava`: `{"image": …, "conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}`: annotations,
//!   one per answer.
//! - `bpo`: the BPO authors' `{"image": …, "prompt": …, "completions": [{"response", "score", "type"}]}`: the best score is
//!   chosen, every lower one is rejected in a pair of its own.
//!
//! Each is read as JSONL or as one JSON array. Images are data URLs, `blob:<digest>`, or paths under `image_root`.
//!
//! # Layout
//! - `stream`: entries out of bytes · [`preference`], `llava`, `bpo`: pairs out of entries · `images`: checked images ·
//!   [`blobs`]: where they are kept · `error`: what can be wrong.

pub mod blobs;
mod bpo;
mod draft;
mod error;
mod images;
mod llava;
pub mod preference;
mod stream;

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::blobs::Blobs;
use self::draft::Draft;
pub use self::draft::check_turns;
pub use self::error::{DataError, Fault};
use self::images::Importer;
use self::stream::{Entries, Entry, StreamError};
use super::pair::PreferencePair;

/// Which shape a file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// By the keys of each entry.
    #[default]
    Auto,
    /// OpenAI's preference rows.
    Preference,
    /// LLaVA's conversations.
    Llava,
    /// BPO's scored completions.
    Bpo,
}

/// What to do with an entry that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Report it and go on, up to `max_errors`; the other answers of the entry are kept.
    #[default]
    Skip,
    /// Stop at the first.
    Fail,
}

/// How to read and where to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadOptions {
    /// Shape of the file. Default `auto`.
    pub shape: Shape,
    /// Directory that image paths are relative to and confined to. Default none: paths are refused.
    pub image_root: Option<PathBuf>,
    /// Skip or fail on a bad entry. Default `skip`.
    pub on_error: OnError,
    /// Bad entries, or answers of one, after which a file is given up even with `skip`. Default 1000.
    pub max_errors: usize,
    /// Largest file, bytes. Default 8 GiB.
    pub max_file_bytes: u64,
    /// Largest entry, bytes; an image as data URL counts. Default 32 MiB.
    pub max_entry_bytes: usize,
    /// Longest answer, words. Default 350, the paper's.
    pub max_answer_words: usize,
    /// Most images in one conversation. Default 8.
    pub max_images: usize,
    /// Largest image file, bytes. Default 20 MiB.
    pub max_image_bytes: u64,
    /// Largest image, pixels. Default 40,000,000.
    pub max_image_pixels: u64,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            shape: Shape::Auto,
            image_root: None,
            on_error: OnError::Skip,
            max_errors: 1000,
            max_file_bytes: 8 << 30,
            max_entry_bytes: 32 << 20,
            max_answer_words: 350,
            max_images: 8,
            max_image_bytes: 20 << 20,
            max_image_pixels: 40_000_000,
        }
    }
}

/// One entry that was skipped, or an answer of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Line on which it starts, from 1.
    pub line: u64,
    /// Why, in a sentence.
    pub reason: String,
}

/// What came of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReadReport {
    /// Entries seen.
    pub entries: usize,
    /// Pairs with a rejected answer.
    pub pairs: usize,
    /// Chosen answers without one.
    pub annotations: usize,
    /// Pairs that an earlier entry had already given, word for word; dropped.
    pub duplicates: usize,
    /// Entries, or answers of one, that could not be used.
    pub faults: usize,
    /// The first [`ReadReport::SHOWN`] of them.
    pub skipped: Vec<Skipped>,
}

impl ReadReport {
    /// How many skipped entries are described; the rest are counted.
    pub const SHOWN: usize = 100;
}

/// Reads `path` and hands each pair to `keep`.
///
/// # Errors
/// A file that cannot be read at all, a bad entry where `on_error` is [`OnError::Fail`], too many of them, or none that is good.
pub fn read(
    path: &Path,
    options: &ReadOptions,
    blobs: &dyn Blobs,
    keep: &mut dyn FnMut(PreferencePair),
) -> Result<ReadReport, DataError> {
    let mut entries = open(path, options)?;
    let mut importer = Importer::new(options, blobs);
    let mut report = ReadReport::default();
    let mut seen = HashSet::new();
    while let Some(entry) = entries.next().map_err(|error| stream_error(path, error))? {
        report.entries += 1;
        let line = entry.line;
        // What several answers of an entry have wrong is told once.
        let mut told = HashSet::new();
        let pairs = match drafts(entry, options) {
            Ok(drafts) => drafts.into_iter().map(|draft| draft.check(options, &mut importer)).collect(),
            Err(fault) => vec![Err(fault)],
        };
        for pair in pairs {
            match pair {
                Ok(pair) if !seen.insert(pair.id.clone()) => report.duplicates += 1,
                Ok(pair) => {
                    *if pair.rejected.is_some() { &mut report.pairs } else { &mut report.annotations } += 1;
                    keep(pair);
                }
                Err(Fault::Blob(error)) => return Err(DataError::Blob(error)),
                Err(fault) if told.insert(fault.to_string()) => refuse(path, line, fault, options, &mut report)?,
                Err(_) => {}
            }
        }
    }
    if report.entries == 0 {
        return Err(DataError::Empty(path.to_owned()));
    }
    if report.pairs + report.annotations == 0 {
        return Err(DataError::NothingUsable { path: path.to_owned(), faults: report.faults });
    }
    Ok(report)
}

fn refuse(
    path: &Path,
    line: u64,
    fault: Fault,
    options: &ReadOptions,
    report: &mut ReadReport,
) -> Result<(), DataError> {
    let path = path.to_owned();
    if options.on_error == OnError::Fail {
        return Err(DataError::Entry { path, line, fault: Box::new(fault) });
    }
    report.faults += 1;
    if report.faults > options.max_errors {
        return Err(DataError::TooManyFaults { path, limit: options.max_errors, line, fault: Box::new(fault) });
    }
    if report.skipped.len() < ReadReport::SHOWN {
        report.skipped.push(Skipped { line, reason: fault.to_string() });
    }
    Ok(())
}

fn drafts(entry: Entry, options: &ReadOptions) -> Result<Vec<Draft>, Fault> {
    let limit = options.max_entry_bytes;
    let bytes = entry.bytes.ok_or(Fault::EntryTooLong { bytes: entry.size, limit })?;
    let text = std::str::from_utf8(&bytes).map_err(|error| Fault::NotUtf8(error.valid_up_to()))?;
    let value: Value = serde_json::from_str(text).map_err(|error| Fault::Json(error.to_string()))?;
    let has = |key: &str| value.get(key).is_some();
    let shape = match options.shape {
        Shape::Auto if has("completions") => Shape::Bpo,
        Shape::Auto if has("conversations") => Shape::Llava,
        Shape::Auto if has("input") || has("preferred_output") => Shape::Preference,
        Shape::Auto => return Err(Fault::UnknownShape),
        given => given,
    };
    match shape {
        Shape::Llava => llava::parse(value, bytes.len()),
        Shape::Bpo => bpo::parse(value, bytes.len()),
        Shape::Auto | Shape::Preference => preference::parse(value),
    }
}

/// Opens a file of entries after looking at its size and its first bytes.
fn open(path: &Path, options: &ReadOptions) -> Result<Entries<BufReader<fs::File>>, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(io)?;
    let about = file.metadata().map_err(io)?;
    if !about.is_file() {
        return Err(DataError::NotAFile(path.to_owned()));
    }
    let (bytes, limit) = (about.len(), options.max_file_bytes);
    if bytes > limit {
        return Err(DataError::TooLarge { path: path.to_owned(), bytes, limit });
    }
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let start = reader.fill_buf().map_err(io)?;
    let what = match start {
        [0x1f, 0x8b, ..] => Some("compressed with gzip"),
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [b'P', b'A', b'R', b'1', ..] => Some("a Parquet file"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some("UTF-16"),
        _ => None,
    };
    if let Some(what) = what {
        return Err(DataError::NotText { path: path.to_owned(), what });
    }
    if start.starts_with(&[0xef, 0xbb, 0xbf]) {
        reader.consume(3);
    }
    Ok(Entries::new(reader, options.max_entry_bytes))
}

fn stream_error(path: &Path, error: StreamError) -> DataError {
    let path = path.to_owned();
    match error {
        StreamError::Io(source) => DataError::Io { path, source },
        StreamError::Array { line, what } => DataError::Array { path, line, what },
    }
}
