//! Many activations and rollbacks and some canaries under eight streams: nobody notices, and nothing grows.
//!
//! A hundred activations and rollbacks, 40 ms from one change to the next, and eight clients by default; `REGROUND_SWAPS`,
//! `REGROUND_PAUSE_MS` and `REGROUND_CLIENTS` set other numbers. What every answer says, who gets which generation and how many threads
//! there are is always held to; times and memory are printed, and held to their limits with
//! `REGROUND_LIMITS=1`, which wants a quiet machine and a thousand changes. Stretches with and without changes alternate, so that
//! whatever else the machine does falls on both.
//!
//! - `asker`: a client that streams. `route`: who was to answer when. `size`: memory and threads.

mod asker;
mod route;
mod size;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::{Client, Server, Settings, say};
use serde_json::{Value, json};

use self::asker::{Answer, Phase, Seen, Shared, ask, keep_asking, question};
use self::route::Routes;
use self::size::{SPARE_THREADS, is_mistralrs, memory, threads_at_rest};

const STRETCHES: usize = 10;
/// Between two changes while all warms up, and without `REGROUND_PAUSE_MS`, milliseconds.
const PAUSE_MS: usize = 40;
/// From one look at the answers that came to the next.
const LOOK: Duration = Duration::from_millis(40);
/// Of the users, in a canary.
const PERCENT: u8 = 50;
/// Answers for which a canary lasts: each user gets some.
const CANARY_ANSWERS: usize = 4 * asker::USERS;
/// What is allowed with `REGROUND_LIMITS=1`: percentiles with changes over those without, memory after all changes over that after a
/// tenth of them, seconds of a rollback in the middle.
const MOST_FIRST_TOKEN: f64 = 1.2;
const MOST_BETWEEN: f64 = 1.1;
const MOST_MEMORY: f64 = 1.02;
const MOST_ROLLBACK_S: f64 = 0.01;

fn number(variable: &str, default: usize, least: usize) -> Result<usize> {
    let number = std::env::var(variable).map_or(Ok(default), |count| count.parse());
    number.ok().filter(|number| *number >= least).with_context(|| format!("{variable} is no number from {least} on"))
}

/// Takes in an adapter of the golden checkpoint.
async fn import(client: &Client) -> Result<String> {
    let adapter = client.post("/v1/adapters", &json!({"path": "adapter"})).await?.ok()?;
    adapter["id"].as_str().map(str::to_owned).context("no id")
}

/// Changes the route, and what it took the caller of each change, seconds.
struct Changer {
    client: Client,
    adapter: String,
    routes: Arc<Routes>,
    /// After each change.
    pause: Duration,
    activations: Vec<f64>,
    rollbacks: Vec<f64>,
}

impl Changer {
    async fn post(&self, path: &str, body: &Value, live: &str, canary: bool) -> Result<f64> {
        self.routes.changes();
        let began = Instant::now();
        let route = self.client.post(path, body).await?.ok()?;
        let took = began.elapsed().as_secs_f64();
        ensure!(route["live"] == live && route["canary"].is_null() != canary, "{route}");
        self.routes.is(live, canary.then_some(&*self.adapter));
        tokio::time::sleep(self.pause).await;
        Ok(took)
    }

    /// What it took.
    async fn activate(&self) -> Result<f64> {
        let path = format!("/v1/adapters/{}/activate", self.adapter);
        self.post(&path, &json!({}), &self.adapter, false).await
    }

    /// What it took.
    async fn roll_back(&self) -> Result<f64> {
        self.post("/v1/adapters/rollback", &json!({}), "base", false).await
    }

    async fn activate_and_roll_back(&mut self) -> Result<()> {
        self.activations.push(self.activate().await?);
        self.rollbacks.push(self.roll_back().await?);
        Ok(())
    }

    /// Lets each generation answer without changes for half of a time, as with changes each does.
    async fn rest(&self, time: Duration, shared: &Shared) -> Result<()> {
        let quiet = async || {
            shared.enter(Phase::Quiet);
            tokio::time::sleep(time / 2).await;
            shared.enter(Phase::Between);
        };
        quiet().await;
        self.activate().await?;
        quiet().await;
        self.roll_back().await?;
        Ok(())
    }

    /// A share of the users gets the adapter for a while.
    async fn canary(&self, shared: &Shared) -> Result<()> {
        let path = format!("/v1/adapters/{}/canary", self.adapter);
        self.post(&path, &json!({"percent": PERCENT}), "base", true).await?;
        let until = shared.answers.load(Ordering::Relaxed) + CANARY_ANSWERS;
        while shared.answers.load(Ordering::Relaxed) < until && shared.is_well() {
            tokio::time::sleep(LOOK).await;
        }
        self.post(&path, &json!({"percent": 0}), "base", false).await?;
        Ok(())
    }
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

fn settings(data: &Path) -> Settings {
    let settings = Settings::golden().section("record", "enabled = false").section("bootstrap", "enabled = false");
    // Records would fill the cache of the store, which has nothing to do with who answers; so would the log of the changes
    // themselves, slowly, up to the limit: it is set so low that a long warm-up reaches it.
    settings.section("data", &format!("dir = {data:?}\ncache_bytes = 1048576"))
}

/// Every answer must be what its generation says alone; gives the number of answers of each.
async fn compare_with_alone(client: &Client, answers: &[Answer]) -> Result<BTreeMap<String, usize>> {
    let (mut alone, mut counts) = (BTreeMap::new(), BTreeMap::new());
    for answer in answers {
        let key = (answer.generation.clone(), answer.question);
        if !alone.contains_key(&key) {
            let body = question(&format!("reground@{}", answer.generation), answer.question, 0);
            alone.insert(key.clone(), ask(client, &body, &mut |_| ()).await?.1);
        }
        let (generation, text) = (&answer.generation, &answer.text);
        ensure!(alone[&key] == *text, "{generation} said {text:?}, alone it says {:?}", alone[&key]);
        *counts.entry(generation.clone()).or_default() += 1;
    }
    Ok(counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_notice_nothing_of_many_activations_rollbacks_and_canaries() -> Result<()> {
    let swaps = number("REGROUND_SWAPS", 100, STRETCHES)?;
    let clients = number("REGROUND_CLIENTS", 8, 1)?;
    let pause_ms = number("REGROUND_PAUSE_MS", PAUSE_MS, 1)?;
    let has_limits = std::env::var("REGROUND_LIMITS").as_deref() == Ok("1");
    let data = tempfile::tempdir()?;
    let server = Server::start(settings(data.path())).await?;
    let client = server.client();
    let (adapter, routes) = (import(&client).await?, Arc::new(Routes::default()));
    let mut changer = Changer {
        client: client.clone(),
        adapter: adapter.clone(),
        routes: routes.clone(),
        pause: Duration::from_millis(PAUSE_MS as u64),
        activations: Vec::new(),
        rollbacks: Vec::new(),
    };
    changer.activate_and_roll_back().await?;
    let threads_before = threads_at_rest(&server).await?;

    let shared = Arc::new(Shared::default());
    let askers: Vec<_> = (0..clients)
        .map(|from| tokio::spawn(keep_asking(server.client(), (from, clients), shared.clone(), routes.clone())))
        .collect();
    shared.enter(Phase::Between);
    // Allocator and thread pools reach their size with the first changes, the cache of the store with some 1,300; mistralrs loads an
    // engine with each, which a limit counts.
    let warm_up = if has_limits && !is_mistralrs() { 1500 } else { 10 };
    for _ in 0..warm_up {
        changer.activate_and_roll_back().await?;
    }
    (changer.activations, changer.rollbacks) = (Vec::new(), Vec::new());
    changer.pause = Duration::from_millis(pause_ms as u64);
    let shown = [swaps / 10, swaps / 2, swaps];
    memory(&server, 0).await?;
    let mut sizes = Vec::new();
    for stretch in 0..STRETCHES {
        shared.enter(Phase::Changes);
        let began = Instant::now();
        for _ in stretch * swaps / STRETCHES..(stretch + 1) * swaps / STRETCHES {
            changer.activate_and_roll_back().await?;
        }
        changer.rest(began.elapsed(), &shared).await?;
        let made = (stretch + 1) * swaps / STRETCHES;
        if has_limits || shown.contains(&made) {
            shared.enter(Phase::Between);
            sizes.push(memory(&server, made).await?);
        }
        shared.enter(Phase::Canary);
        changer.canary(&shared).await?;
    }
    shared.enter(Phase::Over);
    let mut seen = Seen::default();
    for asker in askers {
        seen.add(asker.await??);
    }
    let threads_after = threads_at_rest(&server).await?;

    let users = routes.check(&seen.answers)?;
    // Loaded once more, to be asked alone.
    changer.activate().await?;
    let counts = compare_with_alone(&client, &seen.answers).await?;
    ensure!(counts.keys().collect::<BTreeSet<_>>() == BTreeSet::from([&"base".to_owned(), &adapter]), "{counts:?}");
    let switches = Switches::read(&client).await?;
    let table = Table::new(&mut seen, &mut changer, &switches, users);
    say!(
        "swaps: {swaps} activations, {swaps} rollbacks, {pause_ms} ms apart, {STRETCHES} canaries, {clients} streams\n{table}",
        table = table.text
    );

    let [before, after] = [&threads_before, &threads_after].map(|threads| threads.values().sum::<usize>());
    say!("swaps: {before} threads at rest before, {after} after");
    ensure!(after <= before + SPARE_THREADS, "threads grow: {threads_before:?}, {threads_after:?}");
    ensure!(switches.all >= 2.0 * swaps as f64, "{} switches were timed", switches.all);
    if has_limits {
        let growth = sizes[sizes.len() - 1] as f64 / sizes[0] as f64;
        ensure!(switches.short >= 0.999 * switches.all, "only {} of {} took under 1 ms", switches.short, switches.all);
        ensure!(table.rollback < MOST_ROLLBACK_S, "a rollback takes {:.1} ms", table.rollback * 1e3);
        ensure!(table.first_token < MOST_FIRST_TOKEN, "the first token takes {:.3} times as long", table.first_token);
        ensure!(table.between < MOST_BETWEEN, "a token takes {:.3} times as long", table.between);
        ensure!(growth < MOST_MEMORY, "memory grew by a factor of {growth:.3}: {sizes:?} KiB");
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

/// What was measured, for people, and what of it has limits.
struct Table {
    text: String,
    /// 99th percentile of the time to the first token with changes over that without.
    first_token: f64,
    /// The same of the time between two tokens.
    between: f64,
    /// Median, seconds.
    rollback: f64,
}

impl Table {
    fn new(seen: &mut Seen, changer: &mut Changer, switches: &Switches, users: usize) -> Self {
        let mut text = "| ms | without changes | with changes | factor |\n|---|---|---|---|\n".to_owned();
        let mut row = |name: &str, times: &mut [Vec<f64>; 2], share: f64| {
            let [quiet, changing] = times.each_mut().map(|times| percentile(times, share) * 1e3);
            text += &format!("| {name} | {quiet:.2} | {changing:.2} | {:.3} |\n", changing / quiet);
            changing / quiet
        };
        row("time to first token, median", &mut seen.first_tokens, 0.5);
        let first_token = row("time to first token, 99th percentile", &mut seen.first_tokens, 0.99);
        row("between two tokens, median", &mut seen.gaps, 0.5);
        let between = row("between two tokens, 99th percentile", &mut seen.gaps, 0.99);
        text += "\n| ms | median | 99th percentile | longest |\n|---|---|---|---|\n";
        let mut row = |name: &str, times: &mut [f64]| {
            let [median, most, longest] = [0.5, 0.99, 1.0].map(|share| percentile(times, share) * 1e3);
            text += &format!("| {name} | {median:.1} | {most:.1} | {longest:.1} |\n");
            median / 1e3
        };
        row("activation, with loading and probing, for its caller", &mut changer.activations);
        let rollback = row("rollback to a warm generation, for its caller", &mut changer.rollbacks);
        let [quiet, changing] = seen.first_tokens.each_ref().map(Vec::len);
        text += &format!(
            "\n{} answers ({changing} began with changes, {quiet} without), none failed, each is what its generation says alone; {users} \
             times a user asked again under one route, and got the same generation; {} of {} switches of the route took under 1 ms\n",
            seen.answers.len(),
            switches.short,
            switches.all
        );
        Self { text, first_token, between, rollback }
    }
}
