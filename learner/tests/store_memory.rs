//! The memory that the store takes has a bound, however many rows it gets.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use reground_learner::bpo::pair::Part;
use reground_learner::store::rows::{Answer, BootstrapState, Finish, Record, RecordedMessage, Timings};
use reground_learner::store::{Options, Store, id};

/// More than sled takes to trim each part of its cache once: it does so at every 64th access to one of 256 parts.
const RECORDS: usize = 12_000;

fn record() -> Record {
    const TOKENS: u32 = 40;
    let content = vec![Part::Text { text: "What is it?".to_owned() }];
    Record {
        id: id::new("chatcmpl"),
        created_ms: id::now_ms(),
        model: "pocket".to_owned(),
        generation: "base".to_owned(),
        key: "local".to_owned(),
        user: None,
        conversation: id::new("conversation"),
        stored: false,
        metadata: BTreeMap::new(),
        images: Vec::new(),
        messages: vec![RecordedMessage { role: "user".to_owned(), content, ..RecordedMessage::default() }],
        tools: Vec::new(),
        parameters: serde_json::Map::new(),
        answers: vec![Answer {
            text: "A circle. ".repeat(10),
            finish: Finish::Stop,
            token_ids: (0..TOKENS).collect(),
            token_logprobs: (0..TOKENS).map(|token| -0.123_456_7 * token as f32).collect(),
            completion_tokens: TOKENS as usize,
            ..Answer::default()
        }],
        prompt_tokens: 3,
        timings: Timings::default(),
        config_digest: String::new(),
        redactions: 0,
        bootstrap: BootstrapState::Waiting,
    }
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
        store.add_records(&[(record(), Vec::new())])?.pop().context("no outcome")??;
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
