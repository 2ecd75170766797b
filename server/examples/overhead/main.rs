//! What the endpoint costs over the bare engine: `cargo run --release -p reground --example overhead [seconds [factor]]`.
//!
//! The same model and the same prompts go through mistralrs directly (`send_chat_request` in the same process) and through the
//! endpoint over HTTP (client and server in one process). One sequence is inside the engine at a time on both sides,
//! because more give wrong answers on a CPU; the bare calls queue on a semaphore. The model has random weights and is `factor`
//! times as wide as the golden one.
//!
//! Each side is a process of its own, because two engines in one share a thread pool. Both stay loaded and take turns in
//! short blocks, bare, endpoint, endpoint, bare: what the machine does meanwhile falls on both. The processes are started
//! anew a few times, because a process can be lucky for its whole life with where its memory lies.
//!
//! # Layout
//! - [`model`]: the model. [`side`]: a process. [`statistics`]: ratios, differences and their intervals.

mod model;
mod side;
mod statistics;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::side::Block;
use self::statistics::{Round, added, bare, endpoint, estimate, latencies, percentile, rate, ratio};

/// Times that both processes are started.
const STARTS: usize = 3;
/// Askers, and the requests of one block: few, so that the sides of a round meet the same machine, and enough that most are
/// asked while the other askers wait.
const BLOCKS: [(usize, usize); 3] = [(1, 8), (8, 24), (32, 64)];
/// Uncounted requests after a start.
const WARM: usize = 50;
/// Tokens of each answer.
const TOKENS: usize = 64;
/// Measuring time unless another is given.
const SECONDS: u64 = 600;
/// Widths of the model over those of the golden one, unless another number is given.
const FACTOR: usize = 4;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["bare", directory] => side::bare(directory).await,
        ["endpoint", directory] => side::endpoint(directory).await,
        [] => compare(SECONDS, FACTOR),
        [seconds] => compare(seconds.parse().context("seconds")?, FACTOR),
        [seconds, factor] => compare(seconds.parse().context("seconds")?, factor.parse().context("factor")?),
        _ => anyhow::bail!("at most two arguments: seconds, factor"),
    }
}

/// Runs the processes and prints the table.
fn compare(seconds: u64, factor: usize) -> Result<()> {
    let time = Duration::from_secs(seconds);
    let directory = tempfile::tempdir()?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/idefics3/model");
    model::grow(&golden, directory.path(), factor)?;
    let began = Instant::now();
    let mut rounds: [Vec<Round>; BLOCKS.len()] = Default::default();
    for start in 1..=STARTS {
        let mut bare = Side::start("bare", directory.path())?;
        let mut endpoint = Side::start("endpoint", directory.path())?;
        bare.block(1, WARM)?;
        endpoint.block(1, WARM)?;
        let until = time * u32::try_from(start)? / u32::try_from(STARTS)?;
        loop {
            for (rounds, (concurrency, requests)) in rounds.iter_mut().zip(BLOCKS) {
                let block = |side: &mut Side| side.block(concurrency, requests);
                let (a, b) = (block(&mut bare)?, block(&mut endpoint)?);
                let (c, d) = (block(&mut endpoint)?, block(&mut bare)?);
                rounds.push(Round { bare: [a, d], endpoint: [b, c] });
            }
            eprintln!("{:.0} s of {:.0}", began.elapsed().as_secs_f32(), time.as_secs_f32());
            if began.elapsed() >= until {
                break;
            }
        }
    }
    report(&rounds);
    Ok(())
}

fn report(rounds: &[Vec<Round>; BLOCKS.len()]) {
    println!(
        "{STARTS} starts, {} rounds of two blocks a side at each concurrency, {TOKENS} tokens an answer; in brackets 95 % intervals\n",
        rounds[0].len()
    );
    println!(
        "| concurrency | requests a side | bare requests/s | endpoint requests/s | endpoint/bare | bare p50 ms | difference | bare p99 ms | difference | outside of the engine p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (rounds, (concurrency, requests)) in rounds.iter().zip(BLOCKS) {
        let all: Vec<&Round> = rounds.iter().collect();
        let ratio = estimate(rounds, ratio);
        let difference = |percent| {
            estimate(rounds, |drawn| {
                percentile(latencies(&endpoint(drawn)), percent) - percentile(latencies(&bare(drawn)), percent)
            })
        };
        let outside = |percent| estimate(rounds, |drawn| percentile(added(&endpoint(drawn)), percent));
        let (bare, endpoint) = (bare(&all), endpoint(&all));
        println!(
            "| {concurrency} | {} | {:.2} | {:.2} | {ratio:.4} | {:.2} | {:+.2} | {:.2} | {:+.2} | {:.2} | {:.2} |",
            rounds.len() * 2 * requests,
            rate(&bare),
            rate(&endpoint),
            percentile(latencies(&bare), 50),
            difference(50),
            percentile(latencies(&bare), 99),
            difference(99),
            outside(50),
            outside(99),
        );
    }
}

/// A process of one side.
struct Side {
    process: Child,
    orders: ChildStdin,
    results: BufReader<ChildStdout>,
}

impl Side {
    fn start(name: &str, directory: &Path) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([name.as_ref(), directory.as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take().context("its input")?;
        let results = BufReader::new(process.stdout.take().context("its output")?);
        Ok(Self { process, orders, results })
    }

    fn block(&mut self, concurrency: usize, requests: usize) -> Result<Block> {
        writeln!(self.orders, "{concurrency} {requests}")?;
        let mut line = String::new();
        ensure!(self.results.read_line(&mut line)? > 0, "a side ended");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Nothing is lost by it: the figures are here.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}
