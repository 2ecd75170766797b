//! What a server takes: memory and threads.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use reground_tests::{Server, say};

/// How often a server is looked at that has nothing to do, and the pause between: 15 s. A thread of tokio's pools for calls that block
/// ends when it had nothing to do for 10 s; how many there are under load is how many calls happened to block at once.
const LOOKS: usize = 60;
const PAUSE: Duration = Duration::from_millis(250);
/// How often memory is looked at: 10 s.
const MEMORY_LOOKS: usize = 40;
/// Threads that may be there after all changes and were not before: fewer than a leak with every tenth change leaves.
pub(super) const SPARE_THREADS: usize = 5;

/// The memory that the server takes under load, KiB: the median of several looks, since the allocator gives back what is free when it
/// comes to it.
pub(super) async fn memory(server: &Server, swaps: usize) -> Result<u64> {
    let mut looks = Vec::with_capacity(MEMORY_LOOKS);
    for _ in 0..MEMORY_LOOKS {
        looks.push(server.memory_kib()?);
        tokio::time::sleep(PAUSE).await;
    }
    looks.sort_unstable();
    let (memory, threads) = (looks[MEMORY_LOOKS / 2], server.threads()?);
    let mib = |kib: u64| kib as f64 / 1024.0;
    say!(
        "swaps: after {swaps}: {:.1} MiB resident ({:.1} to {:.1}), {threads} threads",
        mib(memory),
        mib(looks[0]),
        mib(looks[MEMORY_LOOKS - 1])
    );
    Ok(memory)
}

/// Whether the suite runs against that engine.
pub(super) fn is_mistralrs() -> bool {
    std::env::var("REGROUND__MODEL__ENGINE").as_deref() == Ok("mistralrs")
}

/// The fewest threads that a server without callers has, by name.
pub(super) async fn threads_at_rest(server: &Server) -> Result<BTreeMap<String, usize>> {
    let counted = |threads: &BTreeMap<String, usize>| threads.values().sum::<usize>();
    let mut fewest = BTreeMap::new();
    for _ in 0..LOOKS {
        let mut threads = server.threads_by_name()?;
        // sled keeps 7 to 128 threads, by how much it once had to write at a time, and not all of them ever end.
        threads.retain(|name, _| !name.starts_with("sled-io-"));
        if is_mistralrs() {
            // mistralrs leaves a sleeping thread behind with every engine; it has the name of the thread that loaded.
            threads.retain(|name, _| name != "reground-load");
        }
        if fewest.is_empty() || counted(&threads) < counted(&fewest) {
            fewest = threads;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(fewest)
}
