//! How much readers that are slow or leave change the speed of others: tokens per second of streams beside them, over
//! tokens per second without them, in one run.
//!
//! Both are measured in turns, so that whatever else the machine does falls on both. An answer's rate counts from its
//! first token to its last: what a queue does before that is another question.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use reground_tests::{Client, Server, Settings, say};
use serde_json::{Value, json};

const TURNS: usize = 6;
const ANSWERS: usize = 12;
const TOKENS: usize = 200;
const LEAVING: usize = 50;

fn question(tokens: usize) -> Value {
    json!({
        "model": "reground", "stream": true, "max_tokens": tokens, "temperature": 0, "logit_bias": {"2": -100},
        "logprobs": true,
        "messages": [{"role": "user", "content": "how many objects are there?"}],
    })
}

/// Tokens per second of one answer after its first token.
async fn rate(client: &Client) -> Result<f64> {
    let mut stream = client.open(&question(TOKENS)).await?;
    let (mut first, mut last, mut tokens) = (None, Instant::now(), 0);
    while let Some(chunk) = stream.next().await? {
        let arrived = chunk["choices"][0]["logprobs"]["content"].as_array().map_or(0, Vec::len);
        if arrived > 0 {
            last = Instant::now();
            match first {
                None => first = Some(last),
                Some(_) => tokens += arrived,
            }
        }
    }
    let first = first.context("an answer without tokens")?;
    ensure!(tokens > TOKENS / 4, "only {tokens} tokens after the first event: too few to measure");
    Ok(tokens as f64 / (last - first).as_secs_f64())
}

async fn rates(client: &Client) -> Result<Vec<f64>> {
    let mut rates = Vec::new();
    for _ in 0..ANSWERS {
        rates.push(rate(client).await?);
    }
    Ok(rates)
}

/// Takes one byte a second until it is told to stop.
fn crawl(server: &Server, stop: Arc<AtomicBool>) -> Result<std::thread::JoinHandle<Result<()>>> {
    let body = question(900).to_string();
    let mut connection = TcpStream::connect(server.address())?;
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        connection,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        server.address(),
        body.len()
    )?;
    Ok(std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            connection.read_exact(&mut [0])?;
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    }))
}

/// Fifty clients that take three events and leave, spread over the turn.
async fn leave(client: &Client, left: &AtomicUsize) -> Result<()> {
    for _ in 0..LEAVING {
        let mut stream = client.open(&question(900)).await?;
        for _ in 0..3 {
            stream.next().await?;
        }
        drop(stream);
        left.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() -> Result<()> {
    let server = Server::start(Settings::golden()).await?;
    let client = server.client();
    rates(&client).await?;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let left = AtomicUsize::new(0);
    for turn in 0..TURNS {
        alone.extend(rates(&client).await?);
        let stop = Arc::new(AtomicBool::new(false));
        let crawler = crawl(&server, stop.clone())?;
        let (measured, gone) = tokio::join!(rates(&client), join_all([leave(&client, &left)]));
        gone.into_iter().collect::<Result<()>>()?;
        beside.extend(measured?);
        stop.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(|| crawler.join()).await?.map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        say!("turn {} of {TURNS}: {} readers left", turn + 1, left.load(Ordering::Relaxed));
    }
    let (alone, beside) = (median(&mut alone), median(&mut beside));
    println!("| streams measured | tokens/s, median |");
    println!("|---|---|");
    println!("| alone | {alone:.0} |");
    println!("| beside one reader at 1 byte/s and {LEAVING} that leave, per turn | {beside:.0} |");
    println!("| change | {:+.1} % |", (beside / alone - 1.0) * 100.0);
    Ok(())
}
