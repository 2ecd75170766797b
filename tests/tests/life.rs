//! Clients that ask, judge, review, delete and change the route until their server is gone, and what they were promised.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::upload::{lines, preferences};
use reground_tests::{Client, Reply, Server, Settings, command, pictures};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A record that a read has shown is on disk after this time. The promise is a tenth of a second and what the disk itself takes, which is
/// more where other tests use it, too, and where a flush copies the log (`disk.c`).
const WINDOW: Duration = Duration::from_millis(500);
/// Clients that ask.
const ASKERS: usize = 3;
const RIGHT: &str = "There are two blue birds, a green tree and a red apple.";

/// What clients were promised, over all lives of a server.
#[derive(Default)]
pub(crate) struct Promises {
    /// Records that a read has shown, and when.
    records: BTreeMap<String, Instant>,
    /// Feedback that was acknowledged, with its record.
    feedback: BTreeMap<String, String>,
    /// Pairs that were reviewed, with their record and their state then.
    reviews: BTreeMap<String, (String, &'static str)>,
    /// Pairs whose review was not acknowledged.
    reviewing: BTreeSet<String>,
    /// Records whose deletion was asked for.
    deleting: BTreeSet<String>,
    /// Records whose deletion was acknowledged.
    deleted: BTreeSet<String>,
    /// Changes of the route that were acknowledged.
    changes: usize,
    /// What is live by the last of them.
    live: Option<String>,
    /// What is live if a change that was not acknowledged was made.
    perhaps: Option<String>,
    /// Answers that came, and when.
    answers: BTreeMap<String, Instant>,
    /// Answers that came longer than the window before a kill and whose record is not there: they waited to be written.
    pub(crate) unwritten: usize,
}

/// The promises of all clients of a server.
#[derive(Clone, Default)]
pub(crate) struct Promised(Arc<Mutex<Promises>>);

/// A live that is under way.
pub(crate) struct Life {
    clients: JoinSet<Result<()>>,
}

/// Makes an adapter of the model inside the binary: `root/adapter`.
pub(crate) async fn make_adapter(root: &Path) -> Result<()> {
    let settings = "[lora]\nrank = 4\nalpha = 8.0\n[optimizer]\nlearning_rate = 1e-3\n[train]\nmax_steps = 2\nbatch = 2\n\
        micro_batch = 2\nthreads = 1\n[data]\nblobs = \"blobs\"\nheld_out = 0.0\n[evaluation]\nevery = 0\n";
    std::fs::write(root.join("run.toml"), settings)?;
    let data = root.join("pairs.jsonl");
    std::fs::write(&data, lines(&preferences(4)?))?;
    let mut train = command("train")?;
    train.arg("--run").arg(root).arg("--import").arg(data);
    let output = tokio::task::spawn_blocking(move || train.output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Few tokens at once, many pairs soon: what these servers have in common.
pub(crate) fn settings(root: &Path) -> Settings {
    Settings::builtin()
        .adapter_root(root)
        .section("model", "device = \"cpu\"")
        .section("bootstrap", "injected = 0\nweakened = 0\nmax_length_ratio = 100.0")
        .section("train", "min_pairs = 0")
        .environment("RAYON_NUM_THREADS", "1")
}

/// `reground store` on a data directory.
pub(crate) async fn store(data: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = command("store")?;
    command.args(arguments).arg("--data").arg(data);
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

/// Looks the whole data directory over, without a server.
pub(crate) async fn verify(data: &Path) -> Result<Value> {
    let output = store(data, &["verify"]).await?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}{told}", String::from_utf8_lossy(&output.stdout));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A reply, or `None` once the server is gone.
fn while_there(reply: Result<Reply>) -> Option<Reply> {
    reply.ok()
}

fn question(number: u64) -> Result<Value> {
    let url = pictures::data_url("image/png", &pictures::png(32, 32, u32::try_from(number % 100_000)?)?);
    Ok(json!({"model": "reground", "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": format!("Is there a cat in image {number}?")}]}]}))
}

impl Promised {
    pub(crate) fn now(&self) -> MutexGuard<'_, Promises> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a life; `number` makes its questions others than those of other lives.
    pub(crate) fn live(&self, server: &Server, number: u64, adapter: &str) -> Life {
        let mut clients = JoinSet::new();
        for asker in 0..ASKERS as u64 {
            let first = number * 1000 + asker * 300;
            clients.spawn(self.clone().ask(server.client(), first));
        }
        clients.spawn(self.clone().review(server.client()));
        clients.spawn(self.clone().delete(server.client()));
        clients.spawn(self.clone().route(server.client(), adapter.to_owned()));
        Life { clients }
    }

    async fn ask(self, client: Client, first: u64) -> Result<()> {
        for number in first.. {
            let Some(answer) = while_there(client.ask(&question(number)?).await) else { return Ok(()) };
            let record = answer.ok()?["id"].as_str().context("an answer without id")?.to_owned();
            self.now().answers.insert(record.clone(), Instant::now());
            // Some judge before the record is written.
            if number % 2 == 0 && !self.judge(&client, &record, number).await? {
                return Ok(());
            }
            let begun = Instant::now();
            loop {
                let Some(shown) = while_there(client.get(&format!("/v1/records/{record}")).await) else {
                    return Ok(());
                };
                if shown.status == 200 {
                    self.now().records.insert(record.clone(), Instant::now());
                    break;
                }
                ensure!(shown.status == 404, "{}", shown.text());
                ensure!(begun.elapsed() < Duration::from_secs(60), "{record} is not written");
                sleep(Duration::from_millis(2)).await;
            }
            if number % 2 == 1 && !self.judge(&client, &record, number).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Corrects an answer; `false` once the server is gone.
    async fn judge(&self, client: &Client, record: &str, number: u64) -> Result<bool> {
        let body = json!({"completion_id": record, "correction": format!("{RIGHT} Number {number}.")});
        let Some(reply) = while_there(client.post("/v1/feedback", &body).await) else { return Ok(false) };
        if reply.status == 404 && self.now().deleting.contains(record) {
            return Ok(true);
        }
        let id = reply.ok()?["id"].as_str().context("feedback without id")?.to_owned();
        self.now().feedback.insert(id, record.to_owned());
        Ok(true)
    }

    async fn review(self, client: Client) -> Result<()> {
        for number in 0.. {
            sleep(Duration::from_millis(5)).await;
            let Some(list) = while_there(client.get("/v1/pairs?state=new&limit=1").await) else { return Ok(()) };
            let list = list.ok()?;
            let pair = &list["data"][0];
            let Some(id) = pair["id"].as_str() else { continue };
            let record = pair["record"].as_str().unwrap_or_default().to_owned();
            let (verdict, state) = if number % 2 == 0 { ("accept", "accepted") } else { ("discard", "discarded") };
            self.now().reviewing.insert(id.to_owned());
            let body = json!({"verdict": verdict});
            let Some(reply) = while_there(client.post(&format!("/v1/pairs/{id}/review"), &body).await) else {
                return Ok(());
            };
            let mut promised = self.now();
            promised.reviewing.remove(id);
            // Its record was deleted just now.
            if reply.status == 404 && promised.deleting.contains(&record) {
                continue;
            }
            ensure!(reply.status == 200, "{}", reply.text());
            promised.reviews.insert(id.to_owned(), (record, state));
        }
        Ok(())
    }

    async fn delete(self, client: Client) -> Result<()> {
        loop {
            sleep(Duration::from_millis(150)).await;
            let oldest = {
                let mut promised = self.now();
                let oldest = promised.records.keys().find(|id| !promised.deleting.contains(*id)).cloned();
                promised.deleting.extend(oldest.clone());
                oldest
            };
            let Some(record) = oldest else {
                let Some(_) = while_there(client.get("/health").await) else { return Ok(()) };
                continue;
            };
            let request = client.request(Method::DELETE, &format!("/v1/records/{record}"));
            let Some(reply) = while_there(Client::send(request).await) else { return Ok(()) };
            reply.ok()?;
            self.now().deleted.insert(record);
        }
    }

    async fn route(self, client: Client, adapter: String) -> Result<()> {
        loop {
            sleep(Duration::from_millis(40)).await;
            let live = self.now().live.clone().unwrap_or_else(|| "base".to_owned());
            let (path, next) = if live == "base" {
                (format!("/v1/adapters/{adapter}/activate"), adapter.clone())
            } else {
                ("/v1/adapters/rollback".to_owned(), "base".to_owned())
            };
            self.now().perhaps = Some(next.clone());
            let Some(reply) = while_there(client.post(&path, &json!({"expected_generation": live})).await) else {
                return Ok(());
            };
            let route = reply.ok()?;
            ensure!(route["live"] == *next, "{route}");
            let mut promised = self.now();
            promised.changes += 1;
            (promised.live, promised.perhaps) = (Some(next), None);
        }
    }

    /// Waits until a record is promised that a read has shown since a moment.
    pub(crate) async fn until_a_record_is_promised(&self, since: Instant) -> Result<()> {
        let begun = Instant::now();
        while !self.now().records.values().any(|seen| *seen >= since && seen.elapsed() > WINDOW) {
            ensure!(begun.elapsed() < Duration::from_secs(60), "no record in a minute");
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Holds a server that was started again against what was promised before `end`. Everything is looked at that was promised
    /// since `since`, the start of the life before.
    pub(crate) async fn check(&self, client: &Client, since: Instant, end: Instant) -> Result<()> {
        self.check_route(client).await?;
        let (records, feedback, reviews, answers) = {
            let mut promised = self.now();
            // What was seen too late before the end was not promised.
            promised.records.retain(|_, seen| *seen < since || *seen + WINDOW <= end);
            let records: Vec<_> =
                promised.records.iter().filter(|(_, seen)| **seen >= since).map(|(id, _)| id.clone()).collect();
            let answers: Vec<_> = promised
                .answers
                .iter()
                .filter(|(id, came)| **came >= since && **came + WINDOW <= end && !promised.records.contains_key(*id))
                .map(|(id, _)| id.clone())
                .collect();
            (records, promised.feedback.clone(), promised.reviews.clone(), answers)
        };
        for id in records {
            let shown = client.get(&format!("/v1/records/{id}")).await?;
            if self.now().deleting.contains(&id) {
                ensure!(shown.status == 404 || !self.now().deleted.contains(&id), "{id} is back");
                continue;
            }
            ensure!(shown.status == 200, "record {id} is lost: {}", shown.text());
            let shown = shown.json()?;
            let said = shown["feedback"].as_array().context("no feedback")?;
            for (feedback, _) in feedback.iter().filter(|(_, record)| **record == id) {
                ensure!(said.iter().any(|row| row["id"] == **feedback), "feedback {feedback} is lost: {shown:#}");
            }
        }
        for (id, (record, state)) in reviews.iter().rev().take(20) {
            let shown = client.get(&format!("/v1/pairs/{id}")).await?;
            if self.now().deleting.contains(record) {
                continue;
            }
            ensure!(shown.ok()?["state"] == **state, "the review of {id} is lost: {}", shown.text());
        }
        for id in answers {
            let there = client.get(&format!("/v1/records/{id}")).await?.status == 200;
            self.now().unwritten += usize::from(!there);
        }
        Ok(())
    }

    /// What answers is what the store says, and that is what was promised, or what was asked for last.
    async fn check_route(&self, client: &Client) -> Result<()> {
        let list = client.get("/v1/adapters").await?.ok()?;
        let live = list["route"]["live"].as_str().context("no route")?.to_owned();
        let body = json!({"model": "reground", "max_tokens": 1, "store": false,
            "messages": [{"role": "user", "content": "Hello"}]});
        let answer = client.answer(&body).await?;
        ensure!(
            answer["system_fingerprint"] == *live,
            "{} answers, and the store says {live}",
            answer["system_fingerprint"]
        );
        let mut promised = self.now();
        let was = promised.live.clone().unwrap_or_else(|| "base".to_owned());
        ensure!(live == was || Some(&live) == promised.perhaps.as_ref(), "{live} is live, not {was}");
        promised.changes += usize::from(live != was);
        (promised.live, promised.perhaps) = (Some(live), None);
        Ok(())
    }

    /// Holds all that is in a data directory against all that was ever promised, without a server. `before_end`: what a read had
    /// shown by then must be there.
    pub(crate) async fn check_all(&self, data: &Path, end: Instant) -> Result<()> {
        verify(data).await?;
        let out = tempfile::tempdir()?;
        let directory = out.path().join("export");
        let output = store(data, &["export", directory.to_str().context("a path in UTF-8")?]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut rows: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
        for line in std::fs::read_to_string(directory.join("rows.jsonl"))?.lines() {
            let mut line: Value = serde_json::from_str(line)?;
            let (kind, row) = (line["kind"].as_str().unwrap_or_default().to_owned(), line["row"].take());
            let id = row["id"].as_str().or(row["data"]["id"].as_str()).unwrap_or_default().to_owned();
            rows.entry(kind).or_default().insert(id, row);
        }
        let none = BTreeMap::new();
        let of = |kind: &str| rows.get(kind).unwrap_or(&none);
        let promised = self.now();
        for (id, seen) in &promised.records {
            let there = of("record").contains_key(id);
            ensure!(there || promised.deleting.contains(id) || *seen + WINDOW > end, "record {id} is lost");
            ensure!(!there || !promised.deleted.contains(id), "record {id} is back");
        }
        for (id, record) in &promised.feedback {
            let there = of("feedback").contains_key(id);
            ensure!(there || promised.deleting.contains(record), "feedback {id} to {record} is lost");
            ensure!(!there || !promised.deleted.contains(record), "feedback {id} outlived {record}");
        }
        for (id, (record, state)) in &promised.reviews {
            match of("pair").get(id) {
                Some(pair) => ensure!(pair["state"] == **state, "the review of {id} is lost: {pair:#}"),
                None => ensure!(promised.deleting.contains(record), "pair {id} of {record} is lost"),
            }
        }
        let changes = of("audit")
            .values()
            .filter(|audit| audit["action"].as_str().is_some_and(|action| action.starts_with("rollout.")));
        let (changes, promised_changes) = (changes.count(), promised.changes);
        ensure!(changes >= promised_changes, "{changes} changes of the route, {promised_changes} were promised");
        Ok(())
    }

    /// How much was promised, for people.
    pub(crate) fn told(&self) -> String {
        let promised = self.now();
        format!(
            "{} answers, {} records seen, {} feedback, {} reviews, {} changes of the route, {} deletions; {} answers came more \
             than {WINDOW:?} before the end and were not written",
            promised.answers.len(),
            promised.records.len(),
            promised.feedback.len(),
            promised.reviews.len(),
            promised.changes,
            promised.deleted.len(),
            promised.unwritten
        )
    }

    /// Numbers that show that something happened at all: records, feedback, reviews, changes.
    pub(crate) fn counts(&self) -> [usize; 4] {
        let promised = self.now();
        [promised.records.len(), promised.feedback.len(), promised.reviews.len(), promised.changes]
    }
}

impl Life {
    /// Waits for the clients of a server that is gone; what one of them did not expect is an error.
    pub(crate) async fn end(mut self) -> Result<()> {
        while let Some(client) = self.clients.join_next().await {
            client??;
        }
        Ok(())
    }
}

/// Takes the adapter below the server's root in; its id.
pub(crate) async fn import_adapter(client: &Client) -> Result<String> {
    let adapter = client.post("/v1/adapters", &json!({"path": "adapter"})).await?.ok()?;
    adapter["id"].as_str().map(str::to_owned).context("no id")
}
