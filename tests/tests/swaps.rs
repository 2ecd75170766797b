//! Many activations and rollbacks under eight streams: nobody notices, and nothing grows.
//!
//! A hundred of each by default; `REGROUND_SWAPS=1000` makes as many and also holds times and memory to their limits, which
//! wants a quiet machine. Stretches with and without changes alternate, so that whatever else the machine does falls on both.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, say};
use serde_json::{Value, json};

const CLIENTS: usize = 8;
/// Questions that clients ask in turn.
const QUESTIONS: usize = 12;
const STRETCHES: usize = 10;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(40);
/// From here on times and memory are held to their limits.
const MANY: usize = 1000;

/// What the clients are in the middle of.
const WARM_UP: u8 = 0;
const QUIET: u8 = 1;
const CHANGES: u8 = 2;
const OVER: u8 = 3;

/// Everything that one client saw.
#[derive(Default)]
struct Seen {
    answers: Vec<(usize, String, String)>,
    /// Seconds between two tokens of an answer, without changes and with.
    gaps: [Vec<f64>; 2],
}

fn swaps() -> Result<usize> {
    std::env::var("REGROUND_SWAPS").map_or(Ok(100), |count| count.parse().context("REGROUND_SWAPS is no number"))
}

fn question(model: &str, at: usize) -> Value {
    json!({"model": model, "temperature": 0, "max_tokens": 48, "stream": true, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": format!("what is left of circle number {}?", at % QUESTIONS)}]})
}

/// The generation that answered and what it said.
async fn ask(client: &Client, body: &Value, phase: &AtomicU8, gaps: &mut [Vec<f64>; 2]) -> Result<(String, String)> {
    let mut stream = client.open(body).await?;
    let (mut prints, mut text) = (BTreeSet::new(), String::new());
    let mut before: Option<(Instant, u8)> = None;
    while let Some(chunk) = stream.next().await? {
        ensure!(chunk["error"].is_null(), "{chunk}");
        prints.extend(chunk["system_fingerprint"].as_str().map(str::to_owned));
        let Some(piece) = chunk["choices"][0]["delta"]["content"].as_str().filter(|piece| !piece.is_empty()) else {
            continue;
        };
        text.push_str(piece);
        let now = (Instant::now(), phase.load(Ordering::Relaxed));
        if let Some(before) = before
            && before.1 == now.1
            && let QUIET | CHANGES = now.1
        {
            gaps[usize::from(now.1 - QUIET)].push((now.0 - before.0).as_secs_f64());
        }
        before = Some(now);
    }
    ensure!(prints.len() == 1, "one answer, several generations: {prints:?}");
    Ok((prints.into_iter().next().unwrap_or_default(), text))
}

async fn keep_asking(client: Client, from: usize, phase: Arc<AtomicU8>) -> Result<Seen> {
    let mut seen = Seen::default();
    for at in (from..).step_by(CLIENTS) {
        if phase.load(Ordering::Relaxed) == OVER {
            break;
        }
        let (generation, text) = ask(&client, &question("reground", at), &phase, &mut seen.gaps).await?;
        seen.answers.push((at % QUESTIONS, generation, text));
    }
    Ok(seen)
}

/// Takes in an adapter of the golden checkpoint.
async fn import(client: &Client) -> Result<String> {
    let adapter = client.post("/v1/adapters", &json!({"path": "adapter"})).await?.ok()?;
    adapter["id"].as_str().map(str::to_owned).context("no id")
}

/// Seconds that an activation and a rollback took their caller.
async fn change(client: &Client, adapter: &str) -> Result<[f64; 2]> {
    let began = Instant::now();
    let route = client.post(&format!("/v1/adapters/{adapter}/activate"), &json!({})).await?.ok()?;
    let activation = began.elapsed();
    ensure!(route["live"] == adapter, "{route}");
    tokio::time::sleep(PAUSE).await;
    let began = Instant::now();
    let route = client.post("/v1/adapters/rollback", &json!({})).await?.ok()?;
    let rollback = began.elapsed();
    ensure!(route["live"] == "base", "{route}");
    tokio::time::sleep(PAUSE).await;
    Ok([activation.as_secs_f64(), rollback.as_secs_f64()])
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

/// What the server takes.
#[derive(Clone, Copy, Debug)]
struct Size {
    memory_kib: u64,
    threads: u64,
}

fn size(server: &Server, swaps: usize) -> Result<Size> {
    let size = Size { memory_kib: server.memory_kib()?, threads: server.threads()? };
    say!("swaps: after {swaps}: {:.1} MiB resident, {} threads", size.memory_kib as f64 / 1024.0, size.threads);
    Ok(size)
}

fn settings(data: &Path) -> Settings {
    let settings = Settings::golden().section("record", "enabled = false").section("bootstrap", "enabled = false");
    // Records would fill the cache of the store, which has nothing to do with who answers; so would the log of the changes
    // themselves, slowly, up to the limit: it is set so low that the warm-up reaches it.
    settings.section("data", &format!("dir = {data:?}\ncache_bytes = 1048576"))
}

/// How long a server is watched that has nothing to do. A thread of tokio's pools for calls that block ends when it had nothing to do
/// for 10 s; how many there are under load is how many calls happened to block at once.
const REST: Duration = Duration::from_secs(15);
/// Threads that may be there after all changes and were not before: fewer than a leak with every tenth change leaves.
const SPARE_THREADS: usize = 5;

fn is_mistralrs() -> bool {
    std::env::var("REGROUND__MODEL__ENGINE").as_deref() == Ok("mistralrs")
}

/// The fewest threads that a server without callers has, by name.
async fn threads_at_rest(server: &Server) -> Result<BTreeMap<String, usize>> {
    let counted = |threads: &BTreeMap<String, usize>| threads.values().sum::<usize>();
    let (began, mut fewest) = (Instant::now(), BTreeMap::new());
    while began.elapsed() < REST {
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
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(fewest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_notice_nothing_of_many_activations_and_rollbacks() -> Result<()> {
    let swaps = swaps()?;
    let data = tempfile::tempdir()?;
    let server = Server::start(settings(data.path())).await?;
    let client = server.client();
    let adapter = import(&client).await?;
    change(&client, &adapter).await?;
    let threads_before = threads_at_rest(&server).await?;
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let askers: Vec<_> =
        (0..CLIENTS).map(|from| tokio::spawn(keep_asking(server.client(), from, phase.clone()))).collect();

    // Allocator and thread pools reach their size with the first changes, the cache of the store with some 1,300.
    let warm_up = if swaps >= MANY { 1500 } else { 10 };
    for _ in 0..warm_up {
        change(&client, &adapter).await?;
    }
    let shown = [swaps / 10, swaps / 2, swaps];
    let mut sizes = vec![size(&server, 0)?];
    let (mut activations, mut rollbacks) = (Vec::new(), Vec::new());
    for stretch in 0..STRETCHES {
        phase.store(CHANGES, Ordering::Relaxed);
        let began = Instant::now();
        for _ in stretch * swaps / STRETCHES..(stretch + 1) * swaps / STRETCHES {
            let [activation, rollback] = change(&client, &adapter).await?;
            activations.push(activation);
            rollbacks.push(rollback);
            if shown.contains(&activations.len()) {
                sizes.push(size(&server, activations.len())?);
            }
        }
        let took = began.elapsed();
        phase.store(QUIET, Ordering::Relaxed);
        tokio::time::sleep(took).await;
    }
    phase.store(OVER, Ordering::Relaxed);
    let mut of_askers = Vec::new();
    for asker in askers {
        of_askers.push(asker.await??);
    }
    let threads_after = threads_at_rest(&server).await?;

    // Loaded once more, to be asked alone.
    client.post(&format!("/v1/adapters/{adapter}/activate"), &json!({})).await?.ok()?;
    let mut alone: BTreeMap<(String, usize), String> = BTreeMap::new();
    let (mut answers, mut gaps, mut seen) = (0, [Vec::new(), Vec::new()], BTreeSet::new());
    for of_asker in of_askers {
        for (gaps, more) in gaps.iter_mut().zip(of_asker.gaps) {
            gaps.extend(more);
        }
        for (at, generation, text) in of_asker.answers {
            answers += 1;
            let key = (generation.clone(), at);
            if !alone.contains_key(&key) {
                let body = question(&format!("reground@{generation}"), at);
                alone.insert(key.clone(), ask(&client, &body, &phase, &mut Default::default()).await?.1);
            }
            ensure!(alone[&key] == text, "{generation} said {text:?}, alone it says {:?}", alone[&key]);
            seen.insert(generation);
        }
    }
    ensure!(seen == BTreeSet::from(["base".to_owned(), adapter]), "{seen:?}");
    let [quiet, changing] = gaps.each_mut().map(|gaps| percentile(gaps, 0.99) * 1e3);
    let switches = Switches::read(&client).await?;
    say!(
        "swaps: {swaps} activations and rollbacks, {answers} answers, {} tokens; p99 between tokens {quiet:.2} ms without, \
         {changing:.2} ms with ({:.3} times); median activation {:.1} ms, rollback {:.1} ms; {} of {} switches took under 1 ms",
        gaps[0].len() + gaps[1].len(),
        changing / quiet,
        percentile(&mut activations, 0.5) * 1e3,
        percentile(&mut rollbacks, 0.5) * 1e3,
        switches.short,
        switches.all,
    );
    let (first, last) = (sizes[1], sizes[sizes.len() - 1]);
    let [before, after] = [&threads_before, &threads_after].map(|threads| threads.values().sum::<usize>());
    say!("swaps: {before} threads at rest before, {after} after");
    ensure!(after <= before + SPARE_THREADS, "threads grow: {threads_before:?}, {threads_after:?}");
    ensure!(switches.all >= 2.0 * swaps as f64, "{} switches were timed", switches.all);
    if swaps >= MANY {
        let growth = last.memory_kib as f64 / first.memory_kib as f64;
        ensure!(growth < 1.02, "memory grew by a factor of {growth:.3}: {sizes:?}");
        ensure!(switches.short >= 0.999 * switches.all, "only {} of {} took under 1 ms", switches.short, switches.all);
        ensure!(changing < 1.1 * quiet, "p99 between tokens: {quiet:.2} ms without changes, {changing:.2} ms with");
    }
    Ok(())
}

/// How often the route was switched, and how often in less than a millisecond.
struct Switches {
    all: f64,
    short: f64,
}

impl Switches {
    async fn read(client: &Client) -> Result<Self> {
        let metrics = client.get("/metrics").await?.text();
        let value = |name: &str| -> Result<f64> {
            let line = metrics.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
            Ok(line.rsplit(' ').next().context("no value")?.parse()?)
        };
        Ok(Self {
            all: value("reground_route_switch_seconds_count")?,
            short: value("reground_route_switch_seconds_bucket{le=\"0.001\"}")?,
        })
    }
}
