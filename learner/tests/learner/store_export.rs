//! A data directory is written out, taken in again and compacted: the same afterwards, and whole after a crash in between.

use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;
use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::store::rows::{
    AdapterRow, EventKind, EventLevel, FileRow, Pair, Record, RolloutState, Row, Run, RunEvent,
};
use reground_learner::store::{Query, Store, StoreError, id};
use serde_json::Value;

use super::store_rows::{adapter, feedback, image, options, pair, record, run};

/// Every kind of row, shared images, a large row, and files beside the store.
fn fill(directory: &Path) -> Store {
    let store = Store::open(directory, options()).unwrap();
    for number in 0..20_u8 {
        let mut added = record(&[number, number % 3]);
        added.answers[0].token_logprobs = vec![-0.1, -1e-7, -3.333_333_3, f32::MIN_POSITIVE];
        if number == 7 {
            added.answers[0].text = "long ".repeat(20_000);
        }
        store.add_record(&added, &[image(number).0, image(number % 3).0]).unwrap();
        let mut made = pair(&added);
        made.filters.insert("margin".into(), 0.1 + f64::from(number) / 3.0);
        store.write(|rows| rows.insert(&made).and(rows.insert(&feedback(&added.id)))).unwrap();
    }
    let (run, adapter) = (run(), adapter());
    let event = RunEvent {
        id: id::new("ftevent"),
        run: run.id.clone(),
        created_ms: 1,
        level: EventLevel::Info,
        kind: EventKind::Checkpoint,
        message: "Checkpoint.".into(),
        data: Value::Null,
    };
    let digest = store.put(b"an uploaded file").unwrap();
    let file = FileRow {
        id: id::new("file"),
        created_ms: 1,
        filename: "pairs.jsonl".into(),
        purpose: "fine-tune".into(),
        bytes: 16,
        digest,
        key: "root".into(),
    };
    store
        .write(|rows| rows.insert(&run).and(rows.insert(&adapter)).and(rows.insert(&event)).and(rows.insert(&file)))
        .unwrap();
    let live = adapter.id.clone();
    let activate = |state: &mut RolloutState| {
        state.live = live;
        Ok(())
    };
    store.change_rollout(None, "test", "activate", activate).unwrap();
    for (file, text) in
        [(store.adapter_directory("ad-1").join("w"), "weights"), (store.run_directory("r").join("t"), "x")]
    {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    store
}

/// All files below a directory with their content.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(path, bytes)| (format!("{name}/{path}"), bytes)));
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}

#[test]
fn an_import_of_what_was_exported_is_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let [first, out, second, again] = ["first", "out", "second", "again"].map(|name| dir.path().join(name));
    let store = fill(&first);
    let exported = store.export(&out).unwrap();
    let verified = store.verify(false).unwrap();
    assert_eq!((exported.rows, exported.blobs), (verified.rows.values().sum(), verified.blobs));
    assert_eq!(exported.left_out, Vec::<String>::new());
    assert!(store.export(&out).unwrap_err().to_string().contains("is not empty"));
    drop(store);

    let other = Store::open(&second, options()).unwrap();
    let imported = other.import(&out).unwrap();
    assert_eq!((imported.rows, imported.same, imported.blobs), (exported.rows, 0, exported.blobs));
    let twice = other.import(&out).unwrap();
    assert_eq!((twice.rows, twice.same), (0, exported.rows), "an import can be run again");
    assert_eq!(other.verify(false).unwrap(), verified);
    assert_eq!(other.stats().unwrap().rows.len(), 9);
    other.export(&again).unwrap();
    let (before, after) = (files(&out), files(&again));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before.contains_key("adapters/ad-1/w") && before.contains_key("runs/r/t"));
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{name} is another one");
    }
}

#[test]
fn an_import_contradicts_nothing_and_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let [first, out, second] = ["first", "out", "second"].map(|name| dir.path().join(name));
    let store = fill(&first);
    store.export(&out).unwrap();
    let taken = store.list::<Record>(&Query { limit: 1, ..Query::default() }).unwrap().rows[0].id.clone();
    store.update::<Record>(&taken, |record| record.user = Some("other".into())).unwrap();
    let refused = store.import(&out).unwrap_err();
    assert!(matches!(&refused, StoreError::Import { line: 1, why } if why.contains(&taken)), "{refused}");
    assert_eq!(store.need::<Record>(&taken).unwrap().user.as_deref(), Some("other"));

    let other = Store::open(&second, options()).unwrap();
    assert!(matches!(other.import(&first), Err(StoreError::Io(_))), "that is no export");
    let whole = fs::read_to_string(out.join("rows.jsonl")).unwrap();
    let lines = whole.lines().count();
    for (added, said) in [
        ("{\"kind\"", "EOF"),
        ("{\"kind\":\"thing\",\"version\":1,\"row\":{}}", "no rows of kind `thing`"),
        ("{\"kind\":\"run\",\"version\":9,\"row\":{}}", "format 9"),
        ("{\"kind\":\"run\",\"version\":1,\"row\":{}}", "damaged"),
    ] {
        fs::write(out.join("rows.jsonl"), format!("{whole}{added}\n")).unwrap();
        let refused = other.import(&out).unwrap_err();
        let named = matches!(&refused, StoreError::Import { line, .. } if *line == lines + 1);
        assert!(named && refused.to_string().contains(said), "{added}: {refused}");
    }
    assert_eq!(other.verify(false).unwrap().problems, Vec::<String>::new());
}

#[test]
fn an_export_leaves_out_what_is_damaged_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(&dir.path().join("data"));
    let whole = store.export(&dir.path().join("whole")).unwrap();
    let record = store.list::<Record>(&Query { limit: 8, ..Query::default() }).unwrap().rows.remove(7);
    let large = store.stats().unwrap().rows["record"];
    let blob = store.blob_path(&record.images[0].digest).unwrap();
    fs::write(blob, b"damaged").unwrap();
    let written = store.export(&dir.path().join("out")).unwrap();
    assert_eq!((written.rows, written.blobs, large), (whole.rows, whole.blobs - 1, 20));
    assert!(written.left_out.len() == 1 && written.left_out[0].contains(&record.images[0].digest), "{written:?}");
    // Without its image the rows that need it are refused, and named.
    let other = Store::open(dir.path().join("other"), options()).unwrap();
    let refused = other.import(&dir.path().join("out")).unwrap_err();
    assert!(refused.to_string().contains(&record.images[0].digest), "{refused}");
}

#[test]
fn compacting_keeps_everything_and_frees_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let [data, before, after] = ["data", "before", "after"].map(|name| dir.path().join(name));
    let store = fill(&data);
    for _ in 0..30 {
        let many: Vec<Pair> = store.list(&Query::default()).unwrap().rows;
        store.write(|rows| many.iter().try_for_each(|pair| rows.put(pair))).unwrap();
    }
    let gone = store.list::<Record>(&Query { limit: 5, ..Query::default() }).unwrap().rows;
    gone.iter().for_each(|record| drop(store.delete_record(&record.id).unwrap()));
    store.export(&before).unwrap();
    let compacted = store.compact().unwrap();
    assert!(compacted.bytes_after < compacted.bytes_before, "{compacted:?}");
    assert!(!data.join("store.old").exists() && !data.join("store.new").exists());
    let store = Store::open(&data, options()).unwrap();
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
    store.export(&after).unwrap();
    assert!(files(&before) == files(&after), "not the same");
    store.insert(&run()).unwrap();
}

#[test]
fn a_compaction_that_was_killed_leaves_the_old_files_or_the_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    drop(fill(&data));
    let move_to = |from: &str, to: &str| fs::rename(data.join(from), data.join(to)).unwrap();
    let is_whole = |when: &str| {
        let store = Store::open(&data, options()).unwrap();
        assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new(), "{when}");
        assert_eq!(store.count::<Record>(&Query::default()).unwrap(), 20, "{when}");
        assert!(!data.join("store.old").exists() && !data.join("store.new").exists(), "{when}");
    };
    fs::create_dir_all(data.join("store.new")).unwrap();
    fs::write(data.join("store.new/db"), b"half").unwrap();
    is_whole("while the new files were written");
    move_to("store", "store.old");
    fs::create_dir_all(data.join("store.new")).unwrap();
    is_whole("between the renames");
    fs::create_dir_all(data.join("store.old")).unwrap();
    fs::write(data.join("store.old/db"), b"old").unwrap();
    is_whole("before the old files went");
    // Nobody gets an empty store while another process is between its renames.
    move_to("store", "store.old");
    let lock = std::fs::File::open(data.join("store.old/db")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(Store::open(&data, options()), Err(StoreError::Locked(_))));
    drop(lock);
    is_whole("after it was killed");
}

/// A row under the name of a record that is none.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Broken {
    id: String,
}

impl Row for Broken {
    const KIND: &'static str = Record::KIND;
    const PREFIX: &'static str = Record::PREFIX;

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        vec![("bootstrap", "waiting".into()), ("key", "local".into())]
    }
}

#[test]
fn a_damaged_row_hides_no_other_and_can_be_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(&dir.path().join("data"));
    // Older than any other.
    let broken = Broken { id: "chatcmpl-0".into() };
    store.insert(&broken).unwrap();
    store.insert(&feedback(&broken.id)).unwrap();
    assert!(matches!(store.list::<Record>(&Query::default()), Err(StoreError::Damaged { .. })));
    let three = Query { limit: 3, ..Query::by("bootstrap", "waiting") };
    let page = store.list_readable::<Record>(&three).unwrap();
    assert!(page.rows.len() == 3 && page.more, "{page:?}");
    assert_eq!(store.list_readable::<Record>(&Query::default()).unwrap().rows.len(), 20);
    assert_eq!(store.list_readable::<Run>(&Query::default()).unwrap().rows.len(), 1);
    // Too old, all of them: what can be read goes.
    assert_eq!(store.retain(u64::MAX, 1, 0).unwrap(), 20);
    assert_eq!(store.verify(false).unwrap().problems.len(), 1);
    let deleted = store.delete_record(&broken.id).unwrap();
    assert_eq!(deleted.feedback, 1);
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new(), "nothing of it is left");
    assert!(matches!(store.delete_record(&broken.id), Err(StoreError::Missing { .. })));
    assert_eq!(store.count::<AdapterRow>(&Query::default()).unwrap(), 1);
}
