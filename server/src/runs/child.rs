//! The process that trains.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use fs_err as fs;
use reground_learner::bpo::progress::Event;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Split};
use tokio::process::{Child as Process, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::settings::threads;
use crate::config::TrainConfig;

/// Last lines of standard error that are kept, for the reason of a failure.
const TAIL: usize = 20;
/// How long a start waits for an earlier process on the same run, which ends by itself.
const LOCKED: Duration = Duration::from_secs(30);

/// What is started to train a run; `--run DIR` and more follow.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// What comes before `--run`.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// This program's own `train` command.
    ///
    /// # Errors
    /// The system does not say which file this program is.
    pub fn this() -> io::Result<Self> {
        Ok(Self { path: std::env::current_exe()?, arguments: vec!["train".into()] })
    }
}

/// A process that trains. It ends when this is dropped, and when this process ends, however it does: it watches its standard
/// input, whose other end is here.
pub(super) struct Child {
    process: Process,
    input: Option<ChildStdin>,
    /// Lines as bytes: what a library prints need not be UTF-8.
    output: Split<BufReader<ChildStdout>>,
    errors: JoinHandle<VecDeque<String>>,
}

impl Child {
    /// Starts to train the run in `directory`, or goes on.
    pub(super) async fn start(program: &Program, directory: &Path, train: &TrainConfig) -> io::Result<Self> {
        wait_for_lock(directory).await?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.arguments)
            .arg("--run")
            .arg(directory)
            .arg("--supervised")
            .args(["--nice", &train.nice.to_string()])
            .args(["--device", &train.device.to_string()])
            .env("RAYON_NUM_THREADS", threads(train).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn()?;
        let missing = || io::Error::other("the process has no pipes");
        let output = BufReader::new(process.stdout.take().ok_or_else(missing)?).split(b'\n');
        let errors = tokio::spawn(tail(process.stderr.take().ok_or_else(missing)?));
        Ok(Self { input: process.stdin.take(), process, output, errors })
    }

    /// What it tells next; `None` when it tells no more. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            let line = match self.output.next_segment().await {
                Ok(line) => line?,
                Err(error) => {
                    warn!(%error, "What a training process says cannot be read.");
                    return None;
                }
            };
            match serde_json::from_slice(&line) {
                Ok(event) => return Some(event),
                // A library that prints must not end a run.
                Err(error) => debug!(%error, "A training process said something that is no event."),
            }
        }
    }

    /// Asks it to stop between two steps and save.
    pub(super) async fn pause(&mut self) {
        if let Some(input) = &mut self.input {
            let asked = async {
                input.write_all(b"pause\n").await?;
                input.flush().await
            };
            // It may have ended by itself just now.
            let _ = asked.await;
        }
    }

    /// Its id, while it runs.
    pub(super) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Ends it at once; its last checkpoint stays.
    pub(super) async fn kill(mut self) {
        if let Err(error) = self.process.kill().await {
            warn!(%error, "A training process cannot be ended.");
        }
    }

    /// Waits for its end: how it ended, and its last words.
    pub(super) async fn end(mut self) -> io::Result<(ExitStatus, String)> {
        let status = self.process.wait().await?;
        let lines = self.errors.await.unwrap_or_default();
        Ok((status, Vec::from(lines).join("\n")))
    }
}

async fn tail(errors: ChildStderr) -> VecDeque<String> {
    let mut kept = VecDeque::new();
    let mut lines = BufReader::new(errors).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        if kept.len() == TAIL {
            kept.pop_front();
        }
        kept.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    kept
}

/// Waits until no process trains in the directory. One whose server was killed is just ending.
async fn wait_for_lock(directory: &Path) -> io::Result<()> {
    let begun = Instant::now();
    let path = directory.join("lock");
    while path.exists() {
        match fs::File::open(&path)?.into_parts().0.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) if begun.elapsed() < LOCKED => sleep(LOCKED / 300).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
