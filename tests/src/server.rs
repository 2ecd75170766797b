//! One process of the real binary.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::disk::Disk;
use crate::{Client, binary};

/// The server gets this long from its start to its first `200` on `/ready`. Generous: the machine may be busy building.
const START: Duration = Duration::from_secs(120);

/// Lines of the server's log that a failing test shows.
const LOG_LINES: usize = 100;

/// What a server is started with.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    sections: Vec<(String, String)>,
    adapter_root: Option<PathBuf>,
    keys: Vec<(String, String, &'static str)>,
    trusted: Vec<String>,
    environment: Vec<(String, String)>,
    flags: Vec<String>,
}

impl Settings {
    /// The model inside the binary, every setting at its default, a free port.
    #[must_use]
    pub fn builtin() -> Self {
        Self::default()
    }

    /// The golden checkpoint, on the CPU in f32; its adapters can be loaded.
    ///
    /// On one thread: so small a model gains nothing from two, and on a busy machine two that wait for each other are
    /// several times slower.
    #[must_use]
    pub fn golden() -> Self {
        let settings = Self::golden_without_device().section("model", "device = \"cpu\"\ndtype = \"f32\"");
        settings.environment("RAYON_NUM_THREADS", "1")
    }

    /// The golden checkpoint, wherever the server puts it.
    #[must_use]
    pub fn golden_without_device() -> Self {
        let root = golden_root();
        let settings = Self::default().section("model", &format!("source = {:?}", root.join("model")));
        Self { adapter_root: Some(root), ..settings }
    }

    /// Loads adapters from below another directory.
    #[must_use]
    pub fn adapter_root(self, root: &Path) -> Self {
        Self { adapter_root: Some(root.to_owned()), ..self }
    }

    /// Adds lines to a section of `config.toml`.
    #[must_use]
    pub fn section(mut self, name: &str, lines: &str) -> Self {
        match self.sections.iter_mut().find(|(known, _)| known == name) {
            Some((_, text)) => {
                text.push('\n');
                text.push_str(lines);
            }
            None => self.sections.push((name.into(), lines.into())),
        }
        self
    }

    /// Keeps everything in a directory that outlives the server.
    #[must_use]
    pub fn data(self, directory: &Path) -> Self {
        self.section("data", &format!("dir = {directory:?}"))
    }

    /// Keeps everything on a disk that can misbehave; with `mirror`, what a power cut would leave is kept.
    #[must_use]
    pub fn disk(self, disk: &Disk, mirror: bool) -> Self {
        let settings = self.data(&disk.data());
        let set = |settings: Self, (name, value): (&str, PathBuf)| settings.environment(name, &value.to_string_lossy());
        disk.environment(mirror).into_iter().fold(settings, set)
    }

    /// Adds an API key. `role` is `client` or `admin`.
    #[must_use]
    pub fn key(mut self, name: &str, value: &str, role: &'static str) -> Self {
        self.keys.push((name.into(), value.into(), role));
        self
    }

    /// Marks an API key as trusted.
    #[must_use]
    pub fn trusted(mut self, name: &str) -> Self {
        self.trusted.push(name.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Adds a command line flag.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// `config.toml`, with the keys in files beside it.
    fn write(&self, directory: &Path) -> Result<()> {
        let mut text = String::new();
        let root = self.adapter_root.iter().map(|root| ("model", format!("adapter_root = {root:?}")));
        let settings = root.fold(self.clone(), |settings, (section, line)| settings.section(section, &line));
        for (name, lines) in &settings.sections {
            writeln!(text, "[{name}]\n{lines}\n")?;
        }
        for (name, value, role) in &self.keys {
            let file = directory.join(format!("key-{name}"));
            std::fs::write(&file, value)?;
            let reference = format!("file:{}", file.display());
            let trusted = self.trusted.contains(name);
            let lines = format!("name = {name:?}\nkey = {reference:?}\nrole = {role:?}\ntrusted = {trusted}\n");
            writeln!(text, "[[auth.keys]]\n{lines}")?;
        }
        Ok(std::fs::write(directory.join("config.toml"), text)?)
    }
}

/// `tests/golden/idefics3`.
#[must_use]
pub fn golden_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idefics3")
}

/// One process of the real binary, listening on a free loopback port. Dropping it kills that process.
pub struct Server {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<VecDeque<String>>>,
    /// An admin's if there is one.
    key: Option<String>,
    /// Working directory: `config.toml`, keys.
    directory: TempDir,
}

impl Server {
    /// Starts `reground serve` and waits until it is ready.
    ///
    /// # Errors
    /// The binary is missing, ends early, or is not ready in time; the error shows the end of its log.
    pub async fn start(settings: Settings) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("reground-e2e-").tempdir()?;
        settings.write(directory.path())?;
        let mut child = Command::new(binary::path()?)
            .args(["serve", "--port", "0"])
            .args(&settings.flags)
            .envs(settings.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the binary")?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            keep_log(stderr, log.clone());
        }
        let first = child.stdout.take().map(first_line);
        let admin = settings.keys.iter().find(|(_, _, role)| *role == "admin").or(settings.keys.first());
        let key = admin.map(|(_, value, _)| value.clone());
        // From here on the process ends with `server`, whatever fails.
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), log, key, directory };
        let started = Instant::now();
        let line = first.context("no standard output")?.recv_timeout(START).unwrap_or_default();
        match line.trim().strip_prefix("reground listens on http://").map(str::parse) {
            Some(Ok(address)) => server.address = address,
            _ => bail!("the first line of standard output is {line:?}\n{}", server.log_tail()),
        }
        ensure!(server.address.ip().is_loopback(), "listens on {}, beyond loopback", server.address);
        let client = server.client();
        while client.get("/ready").await.map(|reply| reply.status).unwrap_or(0) != 200 {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended with {status}\n{}", server.log_tail());
            }
            ensure!(started.elapsed() < START, "not ready after {START:?}\n{}", server.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Runs `reground serve` with settings that it is to refuse; returns its exit status and its log.
    ///
    /// # Errors
    /// It is still running after 60 s.
    pub fn refused(settings: &Settings) -> Result<(ExitStatus, String)> {
        let directory = tempfile::tempdir()?;
        settings.write(directory.path())?;
        let mut child = Command::new(binary::path()?)
            .args(["serve", "--port", "0"])
            .args(&settings.flags)
            .envs(settings.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > Duration::from_secs(60) {
                child.kill()?;
                child.wait()?;
                bail!("the server started with settings that it was to refuse");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut log = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut log)?;
        }
        Ok((status, log))
    }

    /// A client with an admin's key, if there are keys.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.address, self.key.clone())
    }

    /// A client with this key.
    #[must_use]
    pub fn client_with(&self, key: Option<&str>) -> Client {
        Client::new(self.address, key.map(str::to_owned))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT/v1`, what SDKs call the base URL.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Its working directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().fold(String::from("the server's log ends:\n"), |text, line| text + line + "\n")
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once, as dropping it does; the last lines of its log.
    pub fn kill(self) -> String {
        let log = self.log_tail();
        drop(self);
        log
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// The process is gone.
    pub fn terminate(&self) -> Result<()> {
        // The shell's own `kill`: there is no safe call in the standard library, and a crate for it would change the features
        // that others are built with.
        let status = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.child.id().to_string()]).status()?;
        ensure!(status.success(), "cannot send SIGTERM: {status}");
        Ok(())
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub async fn exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(started.elapsed() < limit, "still running after {limit:?}\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// The process is gone.
    pub fn memory_kib(&self) -> Result<u64> {
        self.status_field("VmRSS:")
    }

    /// Operating system threads.
    ///
    /// # Errors
    /// The process is gone.
    pub fn threads(&self) -> Result<u64> {
        self.status_field("Threads:")
    }

    /// Operating system threads, by the first 15 bytes of their names.
    ///
    /// # Errors
    /// The process is gone.
    pub fn threads_by_name(&self) -> Result<BTreeMap<String, usize>> {
        let mut threads = BTreeMap::new();
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // One that has just ended has none.
            let Ok(name) = std::fs::read_to_string(thread?.path().join("comm")) else { continue };
            *threads.entry(name.trim_end().to_owned()).or_default() += 1;
        }
        Ok(threads)
    }

    /// Open files and sockets.
    ///
    /// # Errors
    /// The process is gone.
    pub fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    fn status_field(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Captured: shown when the test fails, by a panic or by an error.
        if binary::is_test() {
            println!("{}", self.log_tail());
        }
    }
}

/// Reads to the end, so that the server never blocks on a full pipe, and keeps the last lines; what is no routine longest.
fn keep_log(stderr: impl Read + Send + 'static, log: Arc<Mutex<VecDeque<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push_back(line);
            if log.len() > LOG_LINES {
                let routine = log.iter().position(|line| line.contains(" INFO ")).unwrap_or(0);
                log.remove(routine);
            }
        }
    });
}

/// The first line, when it is there; reads on to the end.
fn first_line(stdout: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // After the first line nobody listens any more.
            let _ = sender.send(line);
        }
    });
    receiver
}
