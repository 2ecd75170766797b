//! kill -9 at random moments, twenty times over; the run that is started again each time ends with the same bits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod bpo_toy;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use bpo_toy::{Toy, bits, config, run, timeless, uninterrupted};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_learner::bpo::config::{Preset, RunConfig};
use reground_learner::bpo::policy::Policy;
use reground_learner::bpo::progress::{JsonLines, Silent};
use reground_learner::bpo::trainer::{Control, Outcome};

const DIR: &str = "REGROUND_TEST_RUN_DIR";
/// Twice what twenty lives can get through, however fast the machine is.
const STEPS: u64 = 200;
const KILLS: usize = 20;
const DROPOUT: f64 = 0.2;

fn setting() -> RunConfig {
    let mut config = config(Preset::Anchored);
    config.train.epochs = 50.0;
    config.checkpoint.every = 3;
    config.evaluation.every = 7;
    config
}

fn toy() -> Toy {
    Toy { dropout: DROPOUT, sleep: std::time::Duration::from_millis(2), ..Toy::new() }
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let mut progress = JsonLines(std::io::stderr());
    run(dir.as_ref(), &mut toy(), &setting(), &Control::default(), &mut progress).unwrap();
}

#[test]
fn killed_at_twenty_random_steps_it_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let (mut kills, mut starts) = (0, 0);
    while kills < KILLS {
        starts += 1;
        assert!(starts <= KILLS, "a child ended before it could be killed");
        // Up to 8 steps a life with a checkpoint every 3: some lives end without having saved anything.
        let (steps, delay) = (rng.random_range(0..8usize), rng.random_range(0..3000u64));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let step = lines.filter(|line| line.contains("\"event\":\"step\"")).nth(steps);
        if step.is_none_or(|line| line.contains(&format!("\"step\":{STEPS},"))) {
            // The run got to its end: what is left of the kills would find nothing to interrupt.
            child.wait().unwrap();
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(delay));
        child.kill().unwrap();
        kills += 1;
        assert!(!child.wait().unwrap().success());
    }
    assert_eq!(kills, KILLS);
    let mut last = toy();
    let outcome = run(dir.path(), &mut last, &setting(), &Control::default(), &mut Silent).unwrap();
    assert!(matches!(outcome, Outcome::Finished { step: STEPS, .. }), "{outcome:?}");
    assert_eq!((bits(&last.parameters()), timeless(dir.path())), uninterrupted(&setting(), DROPOUT));
}
