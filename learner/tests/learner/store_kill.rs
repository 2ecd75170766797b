//! kill -9 at random moments, and logs that lost their end: what was acknowledged is there, and no pair points nowhere.
//!
//! `REGROUND_TEST_KILLS` sets the number of kills; 40 without it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::store::rows::Record;
use reground_learner::store::{Query, Store};

use super::store_life::{self, Acknowledged, command};
use super::store_rows::{options, pair, record};

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    store_life::live();
}

#[test]
fn killed_at_random_moments_nothing_acknowledged_is_lost() {
    let kills: u64 = std::env::var("REGROUND_TEST_KILLS").map_or(40, |kills| kills.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(kills);
    let mut heard = Acknowledged::default();
    for kill in 0..kills {
        let mut child = command("store_kill::child", dir.path(), kill).spawn().unwrap();
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
