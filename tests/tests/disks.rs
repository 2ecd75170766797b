//! A full disk, one that became read-only, a clock that goes back, two processes on one directory: serving goes on, what was
//! acknowledged stays, /ready and metrics say what is wrong, and it ends by itself.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reground_tests::disk::Disk;
use reground_tests::{Client, Reply, Server, Settings, pictures, say};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use super::life::{import_adapter, make_adapter, settings, store, verify};

const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a disk that is small.
const SMALL: usize = 24 << 20;

/// A disk that can be full.
enum SmallDisk {
    /// A file system of its own.
    Mounted(TempDir),
    /// A library in front of the C library's calls.
    Preloaded(Disk),
}

impl SmallDisk {
    /// A small tmpfs; `None` where this user may not mount any.
    fn mounted() -> Result<Option<Self>> {
        let place = tempfile::tempdir()?;
        let size = format!("size={SMALL}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(place.path()).output();
        Ok(mount.is_ok_and(|output| output.status.success()).then_some(Self::Mounted(place)))
    }

    fn preloaded() -> Result<Self> {
        Ok(Self::Preloaded(Disk::new()?))
    }

    fn data(&self) -> PathBuf {
        match self {
            Self::Mounted(place) => place.path().join("data"),
            Self::Preloaded(disk) => disk.data(),
        }
    }

    fn settings(&self, settings: Settings) -> Settings {
        // As little is kept free as can be: this is about what happens when writing itself fails.
        let settings = settings.section("data", "min_free_bytes = 0");
        match self {
            Self::Mounted(_) => settings.data(&self.data()),
            Self::Preloaded(disk) => settings.disk(disk, false),
        }
    }

    /// Leaves room for so many bytes.
    fn fill(&self, room: u32) -> Result<()> {
        match self {
            Self::Mounted(place) => {
                let ballast = place.path().join("ballast");
                let mut file = std::fs::File::create(&ballast)?;
                while file.write_all(&[7; 4096]).is_ok() {}
                let length = file.metadata()?.len();
                Ok(file.set_len(length.saturating_sub(u64::from(room)))?)
            }
            Self::Preloaded(disk) => Ok(disk.fill(room)?),
        }
    }

    fn free(&self) -> Result<()> {
        match self {
            Self::Mounted(place) => Ok(std::fs::remove_file(place.path().join("ballast"))?),
            Self::Preloaded(disk) => Ok(disk.free()?),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Self::Mounted(place) = self {
            // The server has its files open until it is gone, and it is gone before this.
            let _ = Command::new("umount").arg(place.path()).output();
        }
    }
}

fn question(number: u32) -> Result<Value> {
    let url = pictures::data_url("image/png", &pictures::png(48, 48, number)?);
    Ok(json!({"model": "reground", "temperature": 0, "max_tokens": 4, "store": true, "messages": [{"role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": format!("Image {number}?")}]}]}))
}

/// What a caller was promised.
#[derive(Default)]
struct Kept {
    records: Vec<String>,
    feedback: Vec<(String, String)>,
    live: String,
}

impl Kept {
    /// Asks; the answer comes, whatever the disk.
    async fn ask(client: &Client, number: u32) -> Result<String> {
        Ok(client.answer(&question(number)?).await?["id"].as_str().context("no id")?.to_owned())
    }

    /// Asks, judges and changes the route, all of which must work.
    async fn all(&mut self, client: &Client, number: u32, adapter: &str) -> Result<()> {
        let record = Self::ask(client, number).await?;
        until(|| async { Ok(client.get(&format!("/v1/records/{record}")).await?.status == 200) }, "no record").await?;
        let said = judge(client, &record).await?.ok()?;
        self.feedback.push((record.clone(), said["id"].as_str().context("no id")?.to_owned()));
        self.records.push(record);
        let next = if self.live == adapter { "base" } else { adapter };
        change(client, next).await?.ok()?;
        next.clone_into(&mut self.live);
        Ok(())
    }

    /// All of it is there.
    async fn check(&self, client: &Client) -> Result<()> {
        for record in &self.records {
            let shown = client.get(&format!("/v1/records/{record}")).await?;
            ensure!(shown.status == 200, "record {record} is lost: {}", shown.text());
        }
        for (record, feedback) in &self.feedback {
            let shown = client.get(&format!("/v1/records/{record}")).await?.ok()?;
            let said = shown["feedback"].as_array().context("no feedback")?;
            ensure!(said.iter().any(|row| row["id"] == **feedback), "feedback {feedback} is lost: {shown:#}");
        }
        let route = client.get("/v1/adapters").await?.ok()?;
        ensure!(route["route"]["live"] == *self.live, "{} is live, not {}", route["route"]["live"], self.live);
        let answer = client.answer(&question(0)?).await?;
        ensure!(answer["system_fingerprint"] == *self.live, "{} answers", answer["system_fingerprint"]);
        Ok(())
    }
}

async fn judge(client: &Client, record: &str) -> Result<Reply> {
    client.post("/v1/feedback", &json!({"completion_id": record, "rating": 1, "comment": "x".repeat(300)})).await
}

/// Makes a generation live, by activation or by rollback.
async fn change(client: &Client, generation: &str) -> Result<Reply> {
    if generation == "base" {
        return client.post("/v1/adapters/rollback", &json!({})).await;
    }
    client.post(&format!("/v1/adapters/{generation}/activate"), &json!({})).await
}

async fn until<F: Future<Output = Result<bool>>>(mut done: impl FnMut() -> F, otherwise: &str) -> Result<()> {
    let begun = Instant::now();
    while !done().await? {
        ensure!(begun.elapsed() < LIMIT, "{otherwise} after {LIMIT:?}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn complaint(client: &Client) -> Result<Option<String>> {
    Ok(client.get("/ready").await?.ok()?["store"].as_str().map(str::to_owned))
}

/// Has a disk fail under a server and get well again: what was acknowledged before, meanwhile and afterwards is there.
async fn fails_and_recovers(
    server: &Server,
    adapter: &str,
    kept: &mut Kept,
    first: u32,
    fail: impl FnOnce() -> Result<()>,
    heal: impl FnOnce() -> Result<()>,
) -> Result<String> {
    let client = server.client();
    kept.all(&client, first, adapter).await?;
    fail()?;
    let (mut refused, begun) = (0, Instant::now());
    for number in first + 2.. {
        if refused == 3 {
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "the disk does not fail");
        // Answers come. Whether there is still room for what is said of them the reply tells.
        Kept::ask(&client, number).await?;
        let record = kept.records.last().context("no record")?.clone();
        let reply = judge(&client, &record).await?;
        match reply.status {
            200 => kept.feedback.push((record, reply.json()?["id"].as_str().context("no id")?.to_owned())),
            _ => {
                let error = reply.error()?;
                ensure!(reply.status == 503 && error.code.as_deref() == Some("store_unavailable"), "{error:?}");
                refused += 1;
            }
        }
        let next = if kept.live == adapter { "base" } else { adapter };
        let reply = change(&client, next).await?;
        match reply.status {
            200 => next.clone_into(&mut kept.live),
            status => ensure!(status == 503, "status {status}: {}", reply.text()),
        }
    }
    until(|| async { Ok(complaint(&client).await?.is_some()) }, "/ready says nothing").await?;
    let said = complaint(&client).await?.unwrap_or_default();
    // What was refused may have been made, as after a crash: the store and the server must agree on it.
    until(|| async { Ok(client.metric("reground_store_degraded").await? == Some(1.0)) }, "the metric says nothing")
        .await?;
    client.answer(&question(first)?).await?;

    heal()?;
    until(|| async { Ok(complaint(&client).await?.is_none()) }, "it does not recover").await?;
    ensure!(client.metric("reground_store_degraded").await? == Some(0.0));
    kept.check(&client).await?;
    kept.all(&client, first + 1, adapter).await?;
    kept.check(&client).await?;
    Ok(said)
}

async fn full(disk: SmallDisk, rooms: &[u32]) -> Result<()> {
    let root = tempfile::tempdir()?;
    make_adapter(root.path()).await?;
    let start = || Server::start(disk.settings(settings(root.path())));
    let mut server = start().await?;
    let adapter = import_adapter(&server.client()).await?;
    let mut kept = Kept { live: "base".into(), ..Kept::default() };
    for (number, room) in (0..).zip(rooms) {
        let first = number * 1000 + 1;
        let said = fails_and_recovers(&server, &adapter, &mut kept, first, || disk.fill(*room), || disk.free()).await?;
        say!("full, with room for {room} bytes more: {said}");
        server.kill();
        verify(&disk.data()).await?;
        server = start().await?;
        kept.check(&server.client()).await?;
    }
    Ok(())
}

/// Where this user may mount; elsewhere the test below shows the same with a preloaded library, and this says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_system_stops_recording_and_nothing_else() -> Result<()> {
    let disk = match SmallDisk::mounted()? {
        Some(disk) => disk,
        None => {
            say!("no file system can be mounted here: a preloaded library says ENOSPC instead");
            SmallDisk::preloaded()?
        }
    };
    full(disk, &[0, 4096]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_in_the_middle_of_a_write_loses_nothing_acknowledged() -> Result<()> {
    full(SmallDisk::preloaded()?, &[0, 1, 700, 6_000, 70_000]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_becomes_read_only_stops_recording_and_nothing_else() -> Result<()> {
    let root = tempfile::tempdir()?;
    make_adapter(root.path()).await?;
    let disk = Disk::new()?;
    let settings = || settings(root.path()).disk(&disk, false);
    let server = Server::start(settings()).await?;
    let adapter = import_adapter(&server.client()).await?;
    let mut kept = Kept { live: "base".into(), ..Kept::default() };
    let (fail, heal) = (|| Ok(disk.read_only(true)?), || Ok(disk.read_only(false)?));
    let said = fails_and_recovers(&server, &adapter, &mut kept, 1, fail, heal).await?;
    ensure!(said.contains("Read-only"), "{said}");
    server.kill();
    verify(&disk.data()).await?;

    disk.read_only(true)?;
    let (status, log) = Server::refused(&settings())?;
    ensure!(status.code() == Some(1) && log.contains("Read-only") && log.contains("data.dir"), "{status}: {log}");
    disk.read_only(false)?;
    kept.check(&Server::start(settings()).await?.client()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_goes_back_loses_nothing() -> Result<()> {
    const DAY: i64 = 24 * 3600;
    let root = tempfile::tempdir()?;
    make_adapter(root.path()).await?;
    let disk = Disk::new()?;
    let settings = || settings(root.path()).disk(&disk, false);
    let mut server = Server::start(settings()).await?;
    let adapter = import_adapter(&server.client()).await?;
    let mut kept = Kept { live: "base".into(), ..Kept::default() };
    for (number, offset) in (0_u32..).zip([0, -DAY, -40 * DAY, -3600, 0, 2 * DAY, -DAY]) {
        // Under the running server, and then for one that starts.
        disk.clock(offset)?;
        kept.all(&server.client(), 2 * number, &adapter).await?;
        kept.check(&server.client()).await?;
        ensure!(complaint(&server.client()).await?.is_none());
        server.kill();
        server = Server::start(settings()).await?;
        kept.check(&server.client()).await?;
        kept.all(&server.client(), 2 * number + 1, &adapter).await?;
        let changes = server.client().get("/v1/adapters/changes").await?.ok()?;
        ensure!(changes["data"].as_array().is_some_and(|all| all.len() == kept.records.len()), "{changes:#}");
    }
    // The clock was a day back when the last of them came: they are none of another time.
    let newest = server.client().get("/v1/records?order=desc&limit=100").await?.ok()?;
    ensure!(newest["data"].as_array().is_some_and(|all| all.len() >= kept.records.len()), "{newest:#}");
    server.kill();
    verify(&disk.data()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_refused_and_the_first_goes_on() -> Result<()> {
    let data = tempfile::tempdir()?;
    let settings = || Settings::builtin().data(data.path());
    let server = Server::start(settings()).await?;
    let (status, log) = Server::refused(&settings())?;
    ensure!(status.code() == Some(1) && log.contains("is in use by another process"), "{status}: {log}");
    for command in [&["verify", "--repair"][..], &["compact"], &["stats"], &["export", "out"], &["import", "out"]] {
        let output = store(data.path(), command).await?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && told.contains("is in use by another process"),
            "{command:?}: {told}"
        );
    }
    ensure!(!Path::new("out").exists(), "something was written");
    let record = Kept::ask(&server.client(), 1).await?;
    until(|| async { Ok(server.client().get(&format!("/v1/records/{record}")).await?.status == 200) }, "no record")
        .await
}
