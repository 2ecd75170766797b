//! kill -9 at random moments, twenty times over; the run that is started again each time ends with the same bits.

use reground_learner::bpo::config::{Preset, RunConfig};
use reground_learner::bpo::policy::Policy;
use reground_learner::bpo::progress::{JsonLines, Silent};
use reground_learner::bpo::trainer::{Control, Outcome};

use super::bpo_toy::{Toy, bits, config, run, timeless, uninterrupted};
use super::killed::{self, Kills};

/// Twice what twenty lives can get through, however fast the machine is.
const STEPS: u64 = 200;
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
    let Some(dir) = killed::directory() else {
        return;
    };
    let mut progress = JsonLines(std::io::stderr());
    run(dir.as_ref(), &mut toy(), &setting(), &Control::default(), &mut progress).unwrap();
}

#[test]
fn killed_at_twenty_random_steps_it_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    // Up to 8 steps a life with a checkpoint every 3: some lives end without having saved anything.
    Kills { child: "bpo_kill::child", number: 20, seed: 20, steps: 0..8, delay: 0..3000 }.inflict(dir.path(), STEPS);
    let mut last = toy();
    let outcome = run(dir.path(), &mut last, &setting(), &Control::default(), &mut Silent).unwrap();
    assert!(matches!(outcome, Outcome::Finished { step: STEPS, .. }), "{outcome:?}");
    assert_eq!((bits(&last.parameters()), timeless(dir.path())), uninterrupted(&setting(), DROPOUT));
}
