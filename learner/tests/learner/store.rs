//! The store: what is written is found, what is deleted is gone, what fails says so and recovers.

use std::process::Command;
use std::time::{Duration, Instant};

use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::bpo::pair::{NegativeKind, Source};
use reground_learner::store::rows::{
    AdapterRow, AdapterState, Audit, BootstrapState, Feedback, FileRow, Pair, PairState, Record, Row, Run, Verdict,
};
use reground_learner::store::{Edit, FEEDBACK_LIMIT, Health, Options, Query, Store, StoreError, id};

use super::store_rows::{adapter, feedback, image, options, pair, record, run};

fn open(dir: &tempfile::TempDir) -> Store {
    Store::open(dir.path(), options()).unwrap()
}

#[test]
fn pages_go_both_ways_through_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (bytes, _) = image(1);
    let mut ids = Vec::new();
    for number in 0..10 {
        let mut record = record(&[1]);
        record.stored = number % 2 == 0;
        record.metadata.insert("number/of".into(), (number % 4).to_string());
        ids.push(record.id.clone());
        store.add_record(&record, &[&bytes]).unwrap();
    }
    let found = |query: &Query| {
        let page = store.list::<Record>(query).unwrap();
        let at = |record: &Record| ids.iter().position(|id| *id == record.id).unwrap();
        (page.rows.iter().map(at).collect::<Vec<_>>(), page.more)
    };
    let stored = || Query::by("stored", "true");
    assert_eq!(found(&stored()), (vec![0, 2, 4, 6, 8], false));
    assert_eq!(found(&Query { limit: 2, ..stored() }), (vec![0, 2], true));
    assert_eq!(found(&Query { limit: 2, after: Some(ids[4].clone()), ..stored() }), (vec![6, 8], false));
    let newest = Query { newest_first: true, ..stored() };
    assert_eq!(found(&Query { limit: 3, ..newest.clone() }), (vec![8, 6, 4], true));
    assert_eq!(found(&Query { after: Some(ids[4].clone()), ..newest }), (vec![2, 0], false));
    let mut both = Query::by("metadata", "number/of=2");
    both.by.push(("stored", "true".into()));
    assert_eq!(found(&both), (vec![2, 6], false));
    assert_eq!(store.count::<Record>(&Query::default()).unwrap(), 10);
    drop(store);
    assert_eq!(open(&dir).count::<Record>(&stored()).unwrap(), 5, "dropping a store flushes it");
}

#[test]
fn a_change_moves_a_row_from_index_to_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = record(&[]);
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    let pair = pair(&record);
    store.insert(&pair).unwrap();
    assert!(matches!(store.insert(&pair), Err(StoreError::Exists { .. })));
    store.update::<Pair>(pair.data.id.as_str(), |pair| pair.state = PairState::Accepted).unwrap();
    assert_eq!(store.count::<Pair>(&Query::by("state", "new")).unwrap(), 0);
    assert_eq!(store.count::<Pair>(&Query::by("state", "accepted")).unwrap(), 1);
    assert!(matches!(store.update::<Pair>("pair-none", |_| ()), Err(StoreError::Missing { .. })));
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
}

#[test]
fn several_records_are_added_at_once_and_one_that_cannot_be_keeps_no_other_out() {
    const COUNT: u8 = 64;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let of = |first: u8| {
        let with_images = |n: u8| (record(&[first + n, 255]), vec![image(first + n).0, image(255).0]);
        (0..COUNT).map(with_images).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    for (record, images) in of(0) {
        store.add_record(&record, &images).unwrap();
    }
    let singly = begun.elapsed();
    let mut many = of(100);
    many[3].0.id = "no id".into();
    let begun = Instant::now();
    let outcomes = store.add_records(&many).unwrap();
    println!("{COUNT} records with an image each: one by one {singly:?}, at once {:?}", begun.elapsed());
    let refused: Vec<_> = (0..outcomes.len()).filter(|at| outcomes[*at].is_err()).collect();
    assert_eq!(refused, [3]);
    assert_eq!(store.count::<Record>(&Query::default()).unwrap(), 2 * usize::from(COUNT) - 1);
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
    assert_eq!(store.collect_garbage().unwrap().0, 1, "the image of the record that was refused");
    let missing = vec![(record(&[9, 240]), vec![image(9).0])];
    assert!(store.add_records(&missing).unwrap()[0].is_err(), "an image that nobody brought");
}

#[test]
fn no_pair_points_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let stray = pair(&record(&[]));
    assert!(matches!(store.insert(&stray), Err(StoreError::Invalid { .. })));
    let mut bare = pair(&record(&[7]));
    bare.record = None;
    assert!(matches!(store.insert(&bare), Err(StoreError::Invalid { .. })), "its image is not there");
    store.put(&image(7).0).unwrap();
    store.insert(&bare).unwrap();
    let mut same = bare.clone();
    (same.data.id, same.data.rejected) = (id::new("pair"), Some(same.data.chosen.clone()));
    assert!(matches!(store.insert(&same), Err(StoreError::Invalid { .. })));
    let failed: Result<(), _> = store.write(|rows| {
        let mut other = bare.clone();
        other.data.id = id::new("pair");
        rows.insert(&other)?;
        rows.insert(&bare)
    });
    assert!(matches!(failed, Err(StoreError::Exists { .. })));
    assert_eq!(store.count::<Pair>(&Query::default()).unwrap(), 1, "all or nothing");
}

#[test]
fn a_record_goes_with_all_that_hangs_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (first, second) = (record(&[1, 2]), record(&[2]));
    store.add_record(&first, &[image(1).0, image(2).0]).unwrap();
    store.add_record(&second, &[image(2).0]).unwrap();
    let run = Run { adapter: None, ..run() };
    let adapter = AdapterRow { run: Some(run.id.clone()), state: AdapterState::Passed, ..adapter() };
    store.insert(&run).unwrap();
    store.insert(&adapter).unwrap();
    let trained = Pair { runs: vec![run.id.clone()], state: PairState::Used, ..pair(&first) };
    store.write(|rows| rows.insert(&trained).and(rows.insert(&feedback(&first.id)))).unwrap();
    let kept = pair(&second);
    store.insert(&kept).unwrap();
    let deleted = store.delete_record(&first.id).unwrap();
    assert_eq!((deleted.feedback, deleted.pairs, deleted.blobs), (1, 1, 1));
    assert_eq!(deleted.adapters, std::slice::from_ref(&adapter.id));
    assert!(matches!(store.delete_record(&first.id), Err(StoreError::Missing { .. })));
    assert!(Blobs::get(&store, &image(1).1.digest).is_err());
    assert_eq!(Blobs::get(&store, &image(2).1.digest).unwrap(), image(2).0);
    assert!(store.get::<Pair>(&trained.data.id).unwrap().is_none());
    assert_eq!(store.get::<Pair>(&kept.data.id).unwrap(), Some(kept));
    assert_eq!(store.count::<Feedback>(&Query::default()).unwrap(), 0);
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
}

#[test]
fn large_rows_come_and_go_with_their_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut record = record(&[]);
    record.answers[0].text = "long ".repeat(100_000);
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    assert_eq!(store.get::<Record>(&record.id).unwrap(), Some(record.clone()));
    assert_eq!(store.stats().unwrap().blobs, 1);
    store.update::<Record>(&record.id, |record| record.answers[0].text = "short".into()).unwrap();
    assert_eq!(store.stats().unwrap().blobs, 0);
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
}

#[test]
fn the_oldest_go_first_by_age_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    for age in [50, 40, 30, 20, 10] {
        let mut record = record(&[age as u8]);
        record.created_ms = 1_000 - age;
        store.add_record(&record, &[image(age as u8).0]).unwrap();
    }
    assert_eq!(store.retain(1_000, 35, 0).unwrap(), 2);
    assert_eq!(store.count::<Record>(&Query::default()).unwrap(), 3);
    let bytes = store.record_bytes().unwrap();
    assert_eq!(store.retain(1_000, 0, bytes).unwrap(), 0);
    assert_eq!(store.retain(1_000, 0, bytes - 1).unwrap(), 1);
    let left = store.list::<Record>(&Query::default()).unwrap().rows;
    assert_eq!(left.iter().map(|record| record.created_ms).collect::<Vec<_>>(), [980, 990]);
    assert_eq!(store.stats().unwrap().blobs, 2);
}

#[test]
fn an_uploaded_file_deletes_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let digest = store.put(&vec![7; 100_000]).unwrap();
    let file = FileRow {
        id: id::new("file"),
        created_ms: 1,
        filename: "pairs.jsonl".into(),
        purpose: "fine-tune".into(),
        bytes: 100_000,
        digest,
        key: "root".into(),
    };
    store.insert(&file).unwrap();
    // Three records that share an image; nothing is freed before the last of them goes.
    for _ in 0..3 {
        store.add_record(&record(&[1]), &[image(1).0]).unwrap();
    }
    let bytes = store.record_bytes().unwrap();
    assert!((2_001..20_000).contains(&bytes), "{bytes} bytes, those of the file among them?");
    assert_eq!(store.retain(0, 0, bytes).unwrap(), 0);
    assert_eq!(store.retain(0, 0, bytes - 1).unwrap(), 1);
    assert_eq!(store.retain(0, 0, 2_002).unwrap(), 2);
    assert_eq!(store.record_bytes().unwrap(), 0);
    assert_eq!(store.stats().unwrap().blobs, 1, "the file stays");
}

#[test]
fn a_file_that_is_taken_away_is_no_failure_of_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let gone = store.incoming().unwrap().join("gone");
    assert!(matches!(store.adopt(&gone), Err(StoreError::Io(_))));
    assert_eq!(store.health(), Health::Healthy);
    std::fs::write(&gone, "half an upload").unwrap();
    drop(store);
    assert_eq!(open(&dir).incoming().unwrap().read_dir().unwrap().count(), 0, "a restart leaves nothing half done");
}

#[test]
fn feedback_is_bounded_and_goes_with_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let here = record(&[]);
    store.add_record(&here, &[] as &[&[u8]]).unwrap();
    for _ in 0..FEEDBACK_LIMIT {
        store.add_feedback(&feedback(&here.id), false).unwrap();
    }
    let refused = store.add_feedback(&feedback(&here.id), false).unwrap_err();
    assert!(matches!(&refused, StoreError::FeedbackLimit { record, .. } if *record == here.id), "{refused}");
    assert!(!refused.is_failure());
    store.add_feedback(&Feedback { key: "another".into(), ..feedback(&here.id) }, false).unwrap();

    let [under_way, lost, dropped] = ["chatcmpl-way", "chatcmpl-lost", "chatcmpl-dropped"];
    for record in [under_way, lost, dropped, dropped] {
        store.add_feedback(&feedback(record), true).unwrap();
    }
    let missing = store.add_feedback(&feedback("chatcmpl-gone"), false).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "what was deleted just now");
    assert_eq!(store.drop_feedback(dropped).unwrap(), 2);
    assert_eq!(store.drop_feedback(&here.id).unwrap(), 0, "its record is there");
    assert_eq!(store.drop_stray_feedback(|record| record == under_way).unwrap(), 1);
    assert_eq!(store.count::<Feedback>(&Query::by("record", under_way)).unwrap(), 1);
    assert_eq!(store.count::<Feedback>(&Query::default()).unwrap(), FEEDBACK_LIMIT + 2);
    assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
}

#[test]
fn what_answers_changes_only_for_who_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let go = |expected: Option<&str>, to: &str| {
        store.change_rollout(expected, "admin", "activate", |state| {
            state.previous = Some(std::mem::replace(&mut state.live, to.to_owned()));
            Ok(())
        })
    };
    assert_eq!(go(Some("base"), "ad-1").unwrap().revision, 1);
    assert!(matches!(go(Some("base"), "ad-2"), Err(StoreError::Stale { live, .. }) if live == "ad-1"));
    assert_eq!(store.rollout().unwrap().live, "ad-1");
    let winners = std::thread::scope(|scope| {
        let race: Vec<_> = (0..8).map(|n| scope.spawn(move || go(Some("ad-1"), &format!("ad-x{n}")).is_ok())).collect();
        race.into_iter().filter(|_| true).map(|thread| usize::from(thread.join().unwrap())).sum::<usize>()
    });
    assert_eq!(winners, 1);
    let audit = store.audit(10).unwrap();
    assert_eq!(audit.len(), 2);
    assert_eq!((&audit[1].before["live"], &audit[1].after["live"]), (&"base".into(), &"ad-1".into()));
}

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = record(&[]);
    store.keep_free(u64::MAX);
    let refused = store.add_record(&record, &[] as &[&[u8]]).unwrap_err();
    assert!(matches!(refused, StoreError::Full { .. }) && refused.is_failure());
    assert!(matches!(store.health(), Health::Degraded(_)));
    assert!(store.get::<Record>(&record.id).unwrap().is_none(), "reading goes on");
    store.keep_free(0);
    let begun = Instant::now();
    while store.health() != Health::Healthy {
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
}

#[test]
fn a_full_disk_can_be_made_room_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (bytes, _) = image(1);
    let (old, new) = (record(&[1]), record(&[]));
    store.add_record(&old, &[&bytes]).unwrap();
    store.add_record(&new, &[] as &[&[u8]]).unwrap();
    store.keep_free(u64::MAX);
    assert!(store.add_record(&record(&[]), &[] as &[&[u8]]).is_err());
    let deleted = store.delete_record(&old.id).unwrap();
    assert_eq!(deleted.blobs, 1, "its image is gone, too");
    assert_eq!(store.retain(new.created_ms + 2, 1, 0).unwrap(), 1);
    assert_eq!(store.count::<Record>(&Query::default()).unwrap(), 0);
}

#[test]
fn what_a_crash_left_unfinished_is_gone_when_the_store_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, picture) = image(1);
    let kept = record(&[1]);
    open(&dir).add_record(&kept, &[&bytes]).unwrap();
    let shelf = dir.path().join("blobs").join(&picture.digest[..2]);
    let unfinished = [
        shelf.join(format!(".{}.tmp-17-3", picture.digest)),
        dir.path().join("adapters/.ad-1.tmp-17-4/adapter_model.safetensors"),
        dir.path().join("incoming/upload"),
    ];
    for path in &unfinished {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "half of somebody's picture").unwrap();
    }
    let store = open(&dir);
    assert!(unfinished.iter().all(|path| !path.exists()), "{unfinished:?}");
    assert_eq!(std::fs::read_dir(dir.path().join("adapters")).unwrap().count(), 0);
    assert_eq!(Blobs::get(&store, &picture.digest).unwrap(), bytes);
}

#[test]
fn a_second_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    // In another process, as two servers would be.
    let other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::second", "--nocapture"])
        .env("REGROUND_TEST_SECOND", dir.path())
        .output()
        .unwrap();
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stderr));
    assert!(String::from_utf8_lossy(&other.stdout).contains("is in use by another process"), "{other:?}");
    drop(store);
    open(&dir);
}

/// Not a test of its own: the other process.
#[test]
fn second() {
    let Some(dir) = std::env::var_os("REGROUND_TEST_SECOND") else { return };
    match Store::open(dir, options()) {
        Err(error @ StoreError::Locked(_)) => println!("{error}"),
        other => panic!("{:?}", other.map(drop)),
    }
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("data");
    let error = Store::open(&below, Options::default()).map(drop).unwrap_err();
    assert!(matches!(&error, StoreError::Open { path, .. } if *path == below), "{error}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let closed = dir.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).unwrap();
        // Root may write anywhere: there is nothing to see then.
        if std::fs::write(closed.join("probe"), "").is_err() {
            assert!(matches!(Store::open(&closed, Options::default()), Err(StoreError::Open { .. })));
        }
    }
}

#[test]
fn feedback_brings_its_record_before_the_bootstrapper_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = record(&[]);
    // The record may come later.
    store.add_feedback(&feedback(&record.id), true).unwrap();
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    store.update::<Record>(&record.id, |record| record.bootstrap = BootstrapState::Done).unwrap();
    store.add_feedback(&feedback(&record.id), false).unwrap();
    assert_eq!(store.count::<Record>(&Query::by("bootstrap", "waiting")).unwrap(), 1);
    assert_eq!(store.count::<Feedback>(&Query::by("record", record.id)).unwrap(), 2);
}

#[test]
fn a_review_decides_and_leaves_an_audit_without_texts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = record(&[]);
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    let pair = pair(&record);
    let id = pair.data.id.as_str();
    store.insert(&pair).unwrap();
    let review = |verdict, edit| store.review(id, "ann", verdict, edit);
    let swapped = review(Verdict::Swap, Edit::default()).unwrap();
    assert_eq!((swapped.data.chosen.as_str(), swapped.data.rejected.as_deref()), ("A square.", Some("A circle.")));
    assert_eq!(
        (swapped.state, swapped.data.source, swapped.data.negative),
        (PairState::Accepted, Source::Accepted, Some(NegativeKind::Given))
    );
    let edit = Edit { chosen: Some(" A triangle.\n".into()), rejected: None };
    let edited = review(Verdict::Edit, edit).unwrap();
    assert_eq!((edited.data.chosen.as_str(), edited.data.source), ("A triangle.", Source::Correction));
    let spaced = Edit { chosen: None, rejected: Some("\tA circle. ".into()) };
    assert_eq!(review(Verdict::Edit, spaced).unwrap().data.rejected.as_deref(), Some("A circle."));
    let same = Edit { chosen: Some("a circle".into()), rejected: None };
    assert!(matches!(review(Verdict::Edit, same), Err(StoreError::Invalid { .. })));
    let empty = Edit { chosen: None, rejected: Some(" \n".into()) };
    assert!(matches!(review(Verdict::Edit, empty), Err(StoreError::Invalid { .. })));
    assert_eq!(review(Verdict::Discard, Edit::default()).unwrap().state, PairState::Discarded);
    store.update::<Pair>(id, |pair| pair.state = PairState::Used).unwrap();
    let accepted = review(Verdict::Accept, Edit::default()).unwrap();
    assert_eq!((accepted.state, accepted.reviews.len(), accepted.reason), (PairState::Used, 5, None));
    assert!(matches!(store.review("pair-x", "ann", Verdict::Accept, Edit::default()), Err(StoreError::Missing { .. })));
    let audit = store.list::<Audit>(&Query::by("who", "ann")).unwrap().rows;
    let actions: Vec<_> = audit.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["pair.swap", "pair.edit", "pair.edit", "pair.discard", "pair.accept"]);
    assert!(audit.iter().all(|row| !format!("{row:?}").contains("circle")));
}

#[test]
fn a_run_that_cannot_be_read_keeps_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = record(&[]);
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    let large = Run { request: "long ".repeat(20_000).into(), ..run() };
    store.insert(&large).unwrap();
    store.insert(&Pair { runs: vec![large.id.clone()], state: PairState::Used, ..pair(&record) }).unwrap();
    let text = blake3::hash(&serde_json::to_vec(&large).unwrap()).to_hex().to_string();
    std::fs::write(store.blob_path(&text).unwrap(), "damaged").unwrap();
    assert!(matches!(store.get::<Run>(&large.id), Err(StoreError::Damaged { .. })));
    let deleted = store.delete_record(&record.id).unwrap();
    assert_eq!((deleted.pairs, deleted.adapters), (1, Vec::<String>::new()));
}

#[test]
fn no_text_of_a_deleted_record_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut record = record(&[]);
    record.answers[0].text = "long ".repeat(100_000);
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    store.update::<Record>(&record.id, |record| record.bootstrap = BootstrapState::Done).unwrap();
    assert_eq!(store.stats().unwrap().blobs, 1, "the text as it was before");
    assert_eq!(store.delete_record(&record.id).unwrap().blobs, 1);
    assert_eq!(store.stats().unwrap().blobs, 0);
}

#[test]
fn a_blob_that_a_row_claimed_goes_with_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    store.put(&image(7).0).unwrap();
    let mut bare = pair(&record(&[7]));
    bare.record = None;
    store.insert(&bare).unwrap();
    store.write(|rows| rows.remove::<Pair>(&bare.data.id)).unwrap();
    assert_eq!(store.stats().unwrap().blobs, 0);
}

#[test]
fn a_large_row_can_be_read_while_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let mut record = record(&[]);
    record.answers[0].text = "long ".repeat(20_000);
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for time in 0..200 {
                store.update::<Record>(&record.id, |record| record.created_ms = time).unwrap();
            }
        });
        while !changes.is_finished() {
            assert!(store.get::<Record>(&record.id).unwrap().is_some());
            assert_eq!(store.list::<Record>(&Query::default()).unwrap().rows.len(), 1);
        }
    });
    assert_eq!(store.stats().unwrap().blobs, 1);
}

#[test]
fn what_would_take_the_space_that_stays_free_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    store.check_room(1).unwrap();
    assert!(matches!(store.check_room(u64::MAX), Err(StoreError::Full { .. })));
    assert_eq!(store.health(), Health::Healthy, "that failed nothing");
}

/// A row under the name of feedback that is none.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Broken {
    id: String,
    record: String,
}

impl Row for Broken {
    const KIND: &'static str = Feedback::KIND;
    const PREFIX: &'static str = Feedback::PREFIX;

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        vec![("record", self.record.clone())]
    }
}

#[test]
fn damaged_feedback_keeps_nobody_from_saying_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let record = record(&[]);
    store.add_record(&record, &[] as &[&[u8]]).unwrap();
    store.insert(&Broken { id: id::new(Feedback::PREFIX), record: record.id.clone() }).unwrap();
    store.add_feedback(&feedback(&record.id), false).unwrap();
    assert_eq!(store.list_readable::<Feedback>(&Query::by("record", record.id.as_str())).unwrap().rows.len(), 1);
}
