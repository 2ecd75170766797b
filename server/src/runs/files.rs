//! Uploaded preference data: checked line by line when it comes, kept as a blob.

use std::io;
use std::path::Path;

use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::bpo::data::{self, DataError, OnError, ReadOptions, ReadReport};
use reground_learner::bpo::pair::PreferencePair;
use reground_learner::store::rows::{FileRow, Run};
use reground_learner::store::{Page, Query, Store, StoreError, Transaction, id};

use super::{RunRequest, RunsError};

/// OpenAI's name for what training reads; nothing else is taken.
pub const PURPOSE: &str = "fine-tune";
/// Longest name that is kept, characters.
const NAME: usize = 255;

/// An upload on its way in.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Its name, as the caller gave it.
    pub filename: String,
    /// Name of the API key.
    pub key: String,
}

/// Checks every line of `file`, which is in the data directory, and takes it in; the file is gone afterwards.
///
/// # Errors
/// The first line that training cannot read, or a failure of the store.
pub fn add(store: &Store, file: &Path, upload: Upload) -> Result<FileRow, RunsError> {
    read(file, &Looked(store), &mut |_| ())?;
    let bytes = fs_err::metadata(file)?.len();
    let row = FileRow {
        id: id::new("file"),
        created_ms: id::now_ms(),
        filename: bare(&upload.filename),
        purpose: PURPOSE.to_owned(),
        bytes,
        digest: store.adopt(file)?,
        key: upload.key,
    };
    store.insert(&row)?;
    Ok(row)
}

/// The file of an id.
///
/// # Errors
/// There is none.
pub fn get(store: &Store, id: &str) -> Result<FileRow, RunsError> {
    store.get(id)?.ok_or_else(|| RunsError::UnknownFile(shown(id)))
}

/// Files, a page at a time.
///
/// # Errors
/// The store failed.
pub fn list(store: &Store, query: &Query) -> Result<Page<FileRow>, RunsError> {
    Ok(store.list_readable(query)?)
}

/// Removes a file. Runs that have begun keep what they froze of it.
///
/// # Errors
/// There is none, `anchors` (`train.anchors`) names it, or a run that has not begun needs it.
pub fn remove(store: &Store, id: &str, anchors: &[String]) -> Result<(), RunsError> {
    get(store, id)?;
    if anchors.iter().any(|anchor| anchor == id) {
        return Err(RunsError::Anchor(id.to_owned()));
    }
    store.write(|rows| {
        if let Some(run) = needed_by(rows, id)? {
            return Ok(Err(RunsError::FileInUse { file: id.to_owned(), run }));
        }
        Ok(rows.remove::<FileRow>(id)?.map(drop).ok_or_else(|| RunsError::UnknownFile(shown(id))))
    })?
}

/// The run that has not begun and needs a file.
fn needed_by(rows: &Transaction<'_>, file: &str) -> Result<Option<String>, StoreError> {
    let needs = |run: &Run| run.dataset_digest.is_none() && RunRequest::of(run).reads(file);
    // One may be paused before it began.
    for state in ["queued", "paused"] {
        for id in rows.ids::<Run>("state", state)? {
            match rows.get::<Run>(&id) {
                // What cannot be read does not begin.
                Err(StoreError::Damaged { .. }) => {}
                found => {
                    if found?.is_some_and(|run| needs(&run)) {
                        return Ok(Some(id));
                    }
                }
            }
        }
    }
    Ok(None)
}

/// Reads preference data; the error names the line, and no path.
fn read(path: &Path, blobs: &dyn Blobs, keep: &mut dyn FnMut(PreferencePair)) -> Result<ReadReport, RunsError> {
    let options = ReadOptions { on_error: OnError::Fail, ..ReadOptions::default() };
    data::read(path, &options, blobs, keep).map_err(bad_file)
}

/// Reads preference data that were checked when they were uploaded, but for what is of no use any more: lines that name an image
/// whose record was deleted since. Gives their number.
pub(super) fn read_again(
    path: &Path,
    blobs: &dyn Blobs,
    keep: &mut dyn FnMut(PreferencePair),
) -> Result<usize, RunsError> {
    let options = ReadOptions { on_error: OnError::Skip, max_errors: usize::MAX, ..ReadOptions::default() };
    match data::read(path, &options, blobs, keep) {
        Ok(report) => Ok(report.faults),
        Err(DataError::NothingUsable { faults, .. }) => Ok(faults),
        Err(error) => Err(bad_file(error)),
    }
}

fn bad_file(error: DataError) -> RunsError {
    match error {
        DataError::Entry { line, fault, .. } => RunsError::BadFile(format!("line {line}: {fault}")),
        DataError::Array { line, what, .. } => RunsError::BadFile(format!("line {line}: {what}")),
        DataError::Empty(_) => RunsError::BadFile("it is empty".to_owned()),
        DataError::NotText { what, .. } => RunsError::BadFile(format!("it is {what}, not JSON lines or a JSON array")),
        DataError::TooLarge { bytes, limit, .. } => {
            RunsError::BadFile(format!("it has {bytes} bytes; at most {limit} are read"))
        }
        DataError::NothingUsable { .. } => RunsError::BadFile("it has no usable line".to_owned()),
        DataError::Io { source, .. } | DataError::Blob(source) => RunsError::Io(source),
        DataError::TooManyFaults { line, fault, .. } => RunsError::BadFile(format!("line {line}: {fault}")),
        DataError::NotAFile(_) => RunsError::BadFile("it is no regular file".to_owned()),
        DataError::Digest { .. } => RunsError::BadFile("it is not what was taken in".to_owned()),
    }
}

/// Images are looked at and forgotten; those that the store has can be referred to.
struct Looked<'a>(&'a Store);

impl Blobs for Looked<'_> {
    fn put(&self, bytes: &[u8]) -> io::Result<String> {
        Ok(blake3::hash(bytes).to_hex().to_string())
    }

    fn get(&self, digest: &str) -> io::Result<Vec<u8>> {
        Blobs::get(self.0, digest)
    }
}

/// A name without directories and control characters.
fn bare(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let kept: String = last.chars().filter(|c| !c.is_control()).take(NAME).collect();
    if kept.trim().is_empty() { "upload".to_owned() } else { kept }
}

fn shown(id: &str) -> String {
    id.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use reground_learner::store::Options;
    use reground_learner::store::rows::RunState;
    use serde_json::json;

    use super::*;
    use crate::api::testing::data_url;
    use crate::runs::Training;

    fn line(question: &str, url: &str) -> String {
        let user = json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]);
        let says = |text: &str| json!([{"role": "assistant", "content": text}]);
        json!({"input": {"messages": [{"role": "user", "content": user}]},
            "preferred_output": says("A red circle."), "non_preferred_output": says("A blue square.")})
        .to_string()
    }

    struct Place {
        store: Store,
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), Options { min_free_bytes: 0, ..Options::default() }).unwrap();
            Self { store, dir }
        }

        fn add(&self, content: &str, filename: &str) -> Result<FileRow, RunsError> {
            let path = self.dir.path().join("incoming");
            fs_err::write(&path, content).unwrap();
            add(&self.store, &path, Upload { filename: filename.to_owned(), key: "test".to_owned() })
        }
    }

    #[test]
    fn a_file_comes_is_read_again_and_goes() {
        let place = Place::new();
        let row = place.add(&line("What is it?", &data_url()), "/home/x/pairs.jsonl").unwrap();
        assert_eq!((row.filename.as_str(), row.purpose.as_str()), ("pairs.jsonl", "fine-tune"));
        assert_eq!(get(&place.store, &row.id).unwrap(), row);
        let path = place.store.blob_path(&row.digest).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().len(), row.bytes);
        let mut pairs = Vec::new();
        read(&path, &place.store, &mut |pair| pairs.push(pair)).unwrap();
        assert_eq!(pairs.len(), 1);
        remove(&place.store, &row.id, &[]).unwrap();
        assert!(!path.exists());
        assert!(matches!(remove(&place.store, &row.id, &[]), Err(RunsError::UnknownFile(_))));
    }

    #[test]
    fn a_bad_line_is_named_and_leaves_nothing() {
        let place = Place::new();
        let good = line("What?", &data_url());
        for (content, said) in [
            (format!("{good}\n\n{{\"x\": 1}}\n"), "line 3: none of the known shapes"),
            (
                format!("{good}\n{}\n", line("Who?", "http://example.com/a.png")),
                "line 2: http://example.com/a.png is a web",
            ),
            (format!("{good}\n{}\n", line("Who?", "../a.png")), "line 2: image ../a.png is a path"),
            (String::new(), "it is empty"),
            ("PK\u{3}\u{4}".to_owned(), "it is a zip archive"),
            ("[1,".to_owned(), "line 1"),
        ] {
            let error = place.add(&content, "x").unwrap_err();
            assert!(matches!(error, RunsError::BadFile(_)) && error.to_string().contains(said), "{error}");
            assert!(!error.to_string().contains("incoming"), "{error}");
        }
        assert_eq!(place.store.count::<FileRow>(&Query::default()).unwrap(), 0);
    }

    #[test]
    fn what_is_needed_stays() {
        let place = Place::new();
        let row = place.add(&line("What is it?", &data_url()), "pairs.jsonl").unwrap();
        let anchors = ["file-other".to_owned(), row.id.clone()];
        assert!(matches!(remove(&place.store, &row.id, &anchors), Err(RunsError::Anchor(_))));
        let request = RunRequest { training: Training::File(row.id.clone()), ..RunRequest::default() };
        let run = Run {
            id: id::new("ftjob"),
            created_ms: 1,
            started_ms: None,
            finished_ms: None,
            state: RunState::Queued,
            trigger: "test".into(),
            parent: "base".into(),
            dataset_digest: None,
            pairs: 0,
            request: request.json(),
            adapter: None,
            restarts: 0,
            error: None,
            refused: false,
        };
        place.store.insert(&run).unwrap();
        // Paused before it began, too.
        for state in [RunState::Queued, RunState::Paused] {
            place.store.update::<Run>(&run.id, |run| run.state = state).unwrap();
            assert!(matches!(remove(&place.store, &row.id, &[]), Err(RunsError::FileInUse { .. })), "{state:?}");
        }
        place.store.update::<Run>(&run.id, |run| run.dataset_digest = Some("0".repeat(64))).unwrap();
        remove(&place.store, &row.id, &[]).unwrap();
    }

    #[test]
    fn names_are_bare() {
        for (given, kept) in [("a\\b\\c.jsonl", "c.jsonl"), ("../", "upload"), ("x\ny", "xy"), ("", "upload")] {
            assert_eq!(bare(given), kept);
        }
    }
}
