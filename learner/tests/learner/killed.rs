//! A run that is started and killed, over and over: a test binary runs itself as the child process.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIR: &str = "REGROUND_TEST_RUN_DIR";

/// In the child, the run's directory; `None` where that test is run as a test.
pub(crate) fn directory() -> Option<OsString> {
    std::env::var_os(DIR)
}

/// How a run is killed.
pub(crate) struct Kills {
    /// This binary's test that is the child.
    pub(crate) child: &'static str,
    /// How often.
    pub(crate) number: usize,
    /// Decides when.
    pub(crate) seed: u64,
    /// Steps that a life may take before its last one.
    pub(crate) steps: Range<usize>,
    /// Time between that step and the kill, microseconds.
    pub(crate) delay: Range<u64>,
}

impl Kills {
    /// Runs the child on `dir`, which writes the run's JSON lines to stderr, and kills it at random moments.
    ///
    /// # Panics
    /// The run came to step `end`, its last, before it was killed often enough.
    pub(crate) fn inflict(self, dir: &Path, end: u64) {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        for kill in 0..self.number {
            let (steps, delay) = (random.random_range(self.steps.clone()), random.random_range(self.delay.clone()));
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", self.child, "--nocapture"])
                .env(DIR, dir)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
            let step = lines.filter(|line| line.contains("\"event\":\"step\"")).nth(steps);
            assert!(
                step.is_some_and(|line| !line.contains(&format!("\"step\":{end},"))),
                "the child ended before kill {kill}"
            );
            std::thread::sleep(Duration::from_micros(delay));
            child.kill().unwrap();
            assert!(!child.wait().unwrap().success());
        }
    }
}
