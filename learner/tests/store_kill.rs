//! kill -9 at random moments, and logs that lost their end: what was acknowledged is there, and no pair points nowhere.
//!
//! `REGROUND_TEST_KILLS` sets the number of kills; 40 without it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod store_rows;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::store::rows::{Feedback, Pair, Record};
use reground_learner::store::{Query, Store};
use store_rows::{feedback, image, options, pair, record};

const DIR: &str = "REGROUND_TEST_STORE_DIR";
const SEED: &str = "REGROUND_TEST_STORE_SEED";

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: the process that is killed. It says what is acknowledged, and nothing before it is.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let store = Store::open(dir, options()).unwrap();
    say("open");
    // A record is acknowledged once as many changes are on disk as there were with it.
    let mut behind: Vec<(u64, String)> = Vec::new();
    for _ in 0..100_000 {
        let pictures: Vec<u8> = (0..rng.random_range(0..3)).map(|_| rng.random_range(0..40)).collect();
        let mut added = record(&pictures);
        if rng.random_bool(0.05) {
            added.answers[0].text = "long ".repeat(20_000);
        }
        store.add_record(&added, &pictures.iter().map(|n| image(*n).0).collect::<Vec<_>>()).unwrap();
        behind.push((store.written(), added.id.clone()));
        if rng.random_bool(0.3) {
            let row = feedback(&added.id);
            store.insert(&row).unwrap();
            say(&format!("feedback {} {}", row.id, added.id));
        }
        if rng.random_bool(0.3) {
            let row = pair(&added);
            store.insert(&row).unwrap();
            say(&format!("pair {} {}", row.data.id, added.id));
        }
        if rng.random_bool(0.1) {
            let state = store.change_rollout(None, "child", "activate", |state| {
                state.live = format!("ad-{}", state.revision + 1);
                Ok(())
            });
            say(&format!("rollout {}", state.unwrap().revision));
        }
        if rng.random_bool(0.15) {
            let records = store.list::<Record>(&Query { limit: 5, ..Query::default() }).unwrap().rows;
            let oldest = &records[rng.random_range(0..records.len())].id;
            // Said first: whatever becomes of it, nobody may miss it.
            say(&format!("deleting {oldest}"));
            store.delete_record(oldest).unwrap();
            say(&format!("deleted {oldest}"));
        }
        let flushed = store.flushed();
        behind.retain(|(written, id)| {
            if *written <= flushed {
                say(&format!("record {id}"));
            }
            *written > flushed
        });
    }
}

#[derive(Default)]
struct Acknowledged {
    records: BTreeSet<String>,
    /// With the record that each belongs to.
    feedback: BTreeMap<String, String>,
    pairs: BTreeMap<String, String>,
    deleting: BTreeSet<String>,
    deleted: BTreeSet<String>,
    revision: u64,
}

impl Acknowledged {
    fn hear(&mut self, line: &str) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["record", id] => drop(self.records.insert(id.to_owned())),
            ["deleting", id] => drop(self.deleting.insert(id.to_owned())),
            ["deleted", id] => drop(self.deleted.insert(id.to_owned())),
            ["feedback", id, record] => drop(self.feedback.insert(id.to_owned(), record.to_owned())),
            ["pair", id, record] => drop(self.pairs.insert(id.to_owned(), record.to_owned())),
            ["rollout", revision] => self.revision = revision.parse().unwrap(),
            _ => {}
        }
    }

    fn check(&self, dir: &Path) {
        let store = Store::open(dir, options()).unwrap();
        // Among others: no pair without its record and its images.
        assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new());
        for id in self.records.difference(&self.deleting) {
            assert!(store.get::<Record>(id).unwrap().is_some(), "record {id} is lost");
        }
        for id in &self.deleted {
            assert!(store.get::<Record>(id).unwrap().is_none(), "record {id} is back");
        }
        for (id, record) in &self.feedback {
            match store.get::<Feedback>(id).unwrap() {
                Some(_) => assert!(!self.deleted.contains(record), "feedback {id} outlived its record"),
                None => assert!(self.deleting.contains(record), "feedback {id} is lost"),
            }
        }
        for (id, record) in &self.pairs {
            match store.get::<Pair>(id).unwrap() {
                Some(_) => assert!(!self.deleted.contains(record), "pair {id} outlived its record"),
                None => assert!(self.deleting.contains(record), "pair {id} is lost"),
            }
        }
        assert!(store.rollout().unwrap().revision >= self.revision, "a rollout change is lost");
    }
}

#[test]
fn killed_at_random_moments_nothing_acknowledged_is_lost() {
    let kills: u64 = std::env::var("REGROUND_TEST_KILLS").map_or(40, |kills| kills.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(kills);
    let mut heard = Acknowledged::default();
    for kill in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR, dir.path())
            .env(SEED, kill.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "open"), "the child did not open the store");
        // Not after a time: a busy machine would not have done anything by then.
        for line in lines.by_ref().take(rng.random_range(0..60)) {
            heard.hear(&line);
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        for line in lines {
            heard.hear(&line);
        }
        heard.check(dir.path());
    }
    println!(
        "{kills} kills: {} records, {} feedback, {} pairs, {} deletions, rollout revision {}",
        heard.records.len(),
        heard.feedback.len(),
        heard.pairs.len(),
        heard.deleted.len(),
        heard.revision
    );
    assert!(heard.records.len() as u64 > kills, "the children hardly did anything");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A log that lost its end opens with an early part of what was written: never a pair whose record is missing. What is cut
/// here was flushed, so what is missing is no broken promise.
#[test]
fn a_log_without_its_end_opens_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("whole"), options()).unwrap();
    let mut order = Vec::new();
    for _ in 0..200 {
        let added = record(&[]);
        store.write(|rows| rows.insert(&added).and(rows.insert(&pair(&added)))).unwrap();
        order.push(added.id);
    }
    drop(store);
    let log = |dir: &Path| dir.join("store").join("db");
    let whole = std::fs::metadata(log(&dir.path().join("whole"))).unwrap().len();
    let (mut counts, mut cuts) = (Vec::new(), vec![1, 2, 3, 7, 8, 64, 511, 512, 4096, whole / 2]);
    cuts.extend((0..20).map(|n| n * 97 + 5));
    for (number, cut) in cuts.iter().enumerate() {
        let short = dir.path().join(format!("short-{number}"));
        copy(&dir.path().join("whole"), &short);
        let file = std::fs::OpenOptions::new().write(true).open(log(&short)).unwrap();
        file.set_len(whole - cut).unwrap();
        drop(file);
        let store = Store::open(&short, options()).unwrap();
        assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new(), "{cut} bytes cut");
        let found = store.list::<Record>(&Query::default()).unwrap().rows;
        let ids: Vec<_> = found.into_iter().map(|record| record.id).collect();
        assert_eq!(ids, order[..ids.len()], "{cut} bytes cut: not the first of what was written");
        counts.push(ids.len());
        let after = record(&[]);
        store.write(|rows| rows.insert(&after)).unwrap();
        drop(store);
        let again = Store::open(&short, options()).unwrap();
        assert!(again.get::<Record>(&after.id).unwrap().is_some(), "{cut} bytes cut: it takes no more writes");
    }
    println!("{whole} bytes; records left after each cut of {cuts:?}: {counts:?}");
}
