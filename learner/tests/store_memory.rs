//! The memory that the store takes has a bound, however many rows it gets.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "the other tests use the rest")]
#[path = "learner/store_rows.rs"]
mod store_rows;

use anyhow::{Context, Result, ensure};
use reground_learner::store::rows::{Answer, Finish, Record};
use reground_learner::store::{Options, Store, id};
use store_rows::record;

/// More than sled takes to trim each part of its cache once: it does so at every 64th access to one of 256 parts.
const RECORDS: usize = 12_000;

fn answered() -> Record {
    const TOKENS: u32 = 40;
    let answer = Answer {
        text: "A circle. ".repeat(10),
        finish: Finish::Stop,
        token_ids: (0..TOKENS).collect(),
        token_logprobs: (0..TOKENS).map(|token| -0.123_456_7 * token as f32).collect(),
        completion_tokens: TOKENS as usize,
        ..Answer::default()
    };
    Record { conversation: id::new("conversation"), answers: vec![answer], ..record(&[]) }
}

/// What this process has in memory.
fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Adds records one by one and tells the most memory that was taken meanwhile.
fn peak_kib(store: &Store) -> Result<u64> {
    let mut peak = 0;
    for at in 0..RECORDS {
        store.add_records(&[(answered(), Vec::new())])?.pop().context("no outcome")??;
        if at % 100 == 0 {
            peak = peak.max(resident_kib()?);
        }
    }
    Ok(peak)
}

#[test]
fn memory_does_not_grow_with_the_number_of_records() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path(), Options { cache_bytes: 1 << 20, ..Options::default() })?;
    let empty = resident_kib()?;
    let (first, second) = (peak_kib(&store)?, peak_kib(&store)?);
    println!("resident KiB: {empty} empty, at most {first} in the first {RECORDS} records, {second} in the next");
    // The saw's teeth are not alike: up to 1.4 was seen. Were nothing trimmed, it would be 1.9 times as much.
    ensure!(second * 10 <= first * 17, "memory grew from {first} to {second} KiB");
    Ok(())
}
