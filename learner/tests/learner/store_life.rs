//! A process that works on a store until it is killed, and what it was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::store::rows::{Feedback, Pair, Record};
use reground_learner::store::{Query, Store};

use super::store_rows::{feedback, image, options, pair, record};

const DIR: &str = "REGROUND_TEST_STORE_DIR";
const SEED: &str = "REGROUND_TEST_STORE_SEED";

/// This binary's test of this name, which must call [`live`].
pub(crate) fn command(child: &str, directory: &Path, seed: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", child, "--nocapture"])
        .env(DIR, directory)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// What the process does that is killed: it says what is acknowledged, and nothing before it is. In a process that is none, nothing.
pub(crate) fn live() {
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

/// What was promised.
#[derive(Default)]
pub(crate) struct Acknowledged {
    pub(crate) records: BTreeSet<String>,
    /// With the record that each belongs to.
    pub(crate) feedback: BTreeMap<String, String>,
    pub(crate) pairs: BTreeMap<String, String>,
    deleting: BTreeSet<String>,
    pub(crate) deleted: BTreeSet<String>,
    pub(crate) revision: u64,
}

impl Acknowledged {
    pub(crate) fn hear(&mut self, line: &str) {
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

    pub(crate) fn check(&self, dir: &Path) {
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
