//! Power cuts: only what was flushed survives, and what was being written may be torn at any byte.
//!
//! The process works on a disk that keeps, beside the real files, what POSIX promises to survive: a file's bytes as of its last
//! fsync, and a directory's entries as of the directory's. Power is cut in the place of a flush, because between two flushes what
//! would survive does not change. `REGROUND_TEST_CUTS` sets the number of cuts; 60 without it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::store::rows::{Audit, Record};
use reground_learner::store::{Query, Store};

use super::disk::Disk;
use super::store_life::{self, Acknowledged, command};
use super::store_rows::{options, record};

const CHILD: &str = "store_power::child";
const COMPACT: &str = "REGROUND_TEST_COMPACT";

/// Not a test of its own: the process that loses its power.
#[test]
fn child() {
    store_life::live();
    if let Some(dir) = std::env::var_os(COMPACT) {
        Store::open(dir, options()).unwrap().compact().unwrap();
    }
}

/// One life of the process, up to its `flush`-th flush or the end of what it does; what it says is heard.
fn live_until(disk: &Disk, seed: u64, flush: i64, heard: &mut Acknowledged) {
    disk.settle().unwrap();
    disk.cut_power(flush).unwrap();
    let mut child = command(CHILD, &disk.data(), seed).envs(disk.environment(true)).spawn().unwrap();
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap) {
        heard.hear(&line);
    }
    assert!(!child.wait().unwrap().success(), "its power was not cut");
    disk.lose_what_was_not_flushed().unwrap();
}

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    let cuts: u64 = std::env::var("REGROUND_TEST_CUTS").map_or(60, |cuts| cuts.parse().unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(cuts);
    // At each flush of a life that begins with an empty directory.
    for flush in 1..=(cuts as i64 / 3).min(60) {
        let disk = Disk::new().unwrap();
        let mut heard = Acknowledged::default();
        live_until(&disk, 7, flush, &mut heard);
        heard.check(&disk.data());
    }
    // At a random flush of many lives, one after the other.
    let disk = Disk::new().unwrap();
    let mut heard = Acknowledged::default();
    for cut in 0..cuts - cuts / 3 {
        live_until(&disk, cut, rng.random_range(1..60), &mut heard);
        heard.check(&disk.data());
    }
    println!(
        "{cuts} cuts: {} records, {} feedback, {} pairs, {} deletions, rollout revision {}, {} flushes",
        heard.records.len(),
        heard.feedback.len(),
        heard.pairs.len(),
        heard.deleted.len(),
        heard.revision,
        disk.flushes().unwrap()
    );
    assert!(heard.records.len() as u64 > cuts, "the lives hardly did anything");
}

#[test]
fn a_compaction_survives_a_power_cut_at_each_flush() {
    let disk = Disk::new().unwrap();
    let store = Store::open(disk.data(), options()).unwrap();
    for _ in 0..50 {
        store.add_record(&record(&[]), &[] as &[&[u8]]).unwrap();
    }
    drop(store);
    let mut cut = 0;
    for flush in 1.. {
        disk.settle().unwrap();
        disk.cut_power(flush).unwrap();
        let mut child = command(CHILD, &disk.data(), 0);
        child.env_clear().envs(disk.environment(true)).env(COMPACT, disk.data()).stdout(Stdio::null());
        let ended = child.status().unwrap().success();
        disk.lose_what_was_not_flushed().unwrap();
        let store = Store::open(disk.data(), options()).unwrap();
        assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new(), "flush {flush}");
        assert_eq!(store.count::<Record>(&Query::default()).unwrap(), 50, "flush {flush}");
        if ended {
            break;
        }
        cut += 1;
    }
    assert!(cut >= 5, "only {cut} flushes");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The log ends inside the last write, at each of its bytes: cut off there, or with what was there before behind it. What was
/// flushed before is there, and the store takes more.
#[test]
fn a_write_torn_at_any_byte_takes_nothing_else_along() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let log = data.join("store/db");
    // A log that was opened before goes on with zeros to the end of its segment.
    drop(Store::open(&data, options()).unwrap());
    let store = Store::open(&data, options()).unwrap();
    let kept: Vec<Record> = (0..20).map(|_| record(&[])).collect();
    store.write(|rows| kept.iter().try_for_each(|record| rows.insert(record))).unwrap();
    // One that writes no whole pages, or this takes minutes.
    let mut made = 0;
    let (before, after, torn) = loop {
        let before = fs::read(&log).unwrap();
        store.change_rollout(None, "test", "change", |_| Ok(())).unwrap();
        made += 1;
        let after = fs::read(&log).unwrap();
        assert_eq!(before.len(), after.len());
        let is_written = |at: &usize| before[*at] != after[*at];
        let first = (0..after.len()).find(is_written).expect("nothing was written");
        let last = (0..after.len()).rfind(is_written).unwrap_or(first);
        if made > 1 && last - first < 2_000 {
            break (before, after, first..=last);
        }
        assert!(made < 100, "every change writes whole pages");
    };
    assert!(torn.clone().count() > 100, "the last write has bytes {torn:?}");
    // As a kill leaves it: a store that is closed writes more.
    let killed = dir.path().join("killed");
    copy(&data, &killed);
    drop(store);

    // Whether the last change is there in a log of this content.
    let is_whole = |directory: &Path, at: usize, content: &[u8]| {
        if directory.exists() {
            fs::remove_dir_all(directory).unwrap();
        }
        copy(&killed, directory);
        fs::write(directory.join("store/db"), content).unwrap();
        let store = Store::open(directory, options()).unwrap_or_else(|error| panic!("torn at {at}: {error}"));
        assert_eq!(store.verify(false).unwrap().problems, Vec::<String>::new(), "torn at {at}");
        assert_eq!(store.count::<Record>(&Query::default()).unwrap(), kept.len(), "torn at {at}");
        let changes = store.count::<Audit>(&Query::default()).unwrap();
        assert!((made - 1..=made).contains(&changes), "torn at {at}: {changes} changes of {made}");
        store.insert(&record(&[])).unwrap();
        changes == made
    };
    let all = |behind: bool| {
        let directory = dir.path().join(format!("torn-{behind}"));
        let behind_of = |at: usize| if behind { &before[at..] } else { &[] };
        let lost =
            torn.clone().filter(|at| !is_whole(&directory, *at, &[&after[..*at], behind_of(*at)].concat())).count();
        println!("bytes {torn:?}, with what was there before: {behind}; the last change is lost {lost} times");
        assert!(lost > 0, "the last change is there without a byte of it");
        // With the zeros that it may end in.
        assert!(is_whole(&directory, after.len(), &after), "the log of an acknowledged change does not have it");
    };
    std::thread::scope(|scope| {
        for behind in [false, true] {
            let all = &all;
            scope.spawn(move || all(behind));
        }
    });
}
