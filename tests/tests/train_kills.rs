//! kill -9 of a training process at random moments, and of the server that has it: the adapter is the one of a run that nobody
//! disturbed.
//!
//! `REGROUND_TEST_TRAIN_KILLS` sets the number of kills; 4 without it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_tests::upload::{lines, preferences};
use reground_tests::{command, say};
use safetensors::{Dtype, SafeTensors};

/// Largest difference of a weight.
const TOLERANCE: f32 = 1e-5;

/// A run of so many steps that as many kills find it unfinished.
fn settings(kills: usize) -> String {
    format!(
        "seed = 3\n[lora]\nrank = 4\nalpha = 8.0\n[optimizer]\nlearning_rate = 1e-3\n[train]\nepochs = 1000.0\nmax_steps = {}\n\
         batch = 2\nmicro_batch = 2\nthreads = 1\n[data]\nblobs = \"blobs\"\nheld_out = 0.2\n[evaluation]\nevery = 5\n\
         [checkpoint]\nevery = 2\n",
        6 * kills + 12
    )
}

/// `reground train` as the server starts it.
fn begin(run: &Path) -> Result<Child> {
    let mut train = command("train")?;
    train.arg("--run").arg(run).arg("--supervised").env("RAYON_NUM_THREADS", "1");
    Ok(train.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Runs to the end, undisturbed.
fn finish(run: &Path) -> Result<()> {
    let mut child = begin(run)?;
    // It ends by itself once nobody holds this.
    let lifeline = child.stdin.take();
    let output = child.wait_with_output()?;
    drop(lifeline);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The weights by name.
fn weights(run: &Path) -> Result<BTreeMap<String, Vec<f32>>> {
    let bytes = std::fs::read(run.join("adapter/adapter_model.safetensors"))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let mut weights = BTreeMap::new();
    for (name, tensor) in tensors.iter() {
        ensure!(tensor.dtype() == Dtype::F32, "{name} is {:?}", tensor.dtype());
        let numbers =
            tensor.data().chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        weights.insert(name.to_owned(), numbers.collect());
    }
    Ok(weights)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?
        } else {
            std::fs::copy(entry.path(), target).map(|_| ())?
        }
    }
    Ok(())
}

#[test]
fn a_killed_training_ends_with_the_weights_of_an_undisturbed_one() -> Result<()> {
    let kills = std::env::var("REGROUND_TEST_TRAIN_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let place = tempfile::tempdir()?;
    let [whole, killed] = ["whole", "killed"].map(|name| place.path().join(name));
    std::fs::create_dir(&whole)?;
    std::fs::write(whole.join("run.toml"), settings(kills))?;
    let data = place.path().join("pairs.jsonl");
    std::fs::write(&data, lines(&preferences(16)?))?;
    let output = command("train")?.arg("--run").arg(&whole).arg("--import").arg(&data).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    std::fs::create_dir(&killed)?;
    for file in ["run.toml", "dataset.jsonl"] {
        std::fs::copy(whole.join(file), killed.join(file))?;
    }
    copy(&whole.join("blobs"), &killed.join("blobs"))?;
    let mut random = ChaCha8Rng::seed_from_u64(kills as u64);
    let (mut early, mut steps) = (0, 0);
    for kill in 0..kills {
        let mut child = begin(&killed)?;
        let mut told = BufReader::new(child.stdout.take().context("no output")?).lines();
        if random.random_bool(0.25) {
            // Somewhere between its start and its first steps.
            std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
            early += 1;
        } else {
            let wanted = random.random_range(0..4);
            let mut seen = told.by_ref().map_while(Result::ok).filter(|line| line.contains("\"event\":\"step\""));
            ensure!(seen.nth(wanted).is_some(), "the training ended before kill {kill}");
            steps += wanted + 1;
            std::thread::sleep(Duration::from_micros(random.random_range(0..120_000)));
        }
        child.kill()?;
        let status = child.wait()?;
        ensure!(!status.success(), "the training ended before kill {kill}");
    }
    finish(&killed)?;
    let (whole, killed) = (weights(&whole)?, weights(&killed)?);
    ensure!(whole.keys().eq(killed.keys()), "other tensors");
    let mut largest = 0_f32;
    for (name, numbers) in &whole {
        for (a, b) in numbers.iter().zip(&killed[name]) {
            ensure!(a.is_finite() && b.is_finite(), "{name}: {a} and {b}");
            largest = largest.max((a - b).abs());
        }
    }
    say!(
        "{kills} kills, {early} of them early, the others after {steps} steps in all: weights differ by at most {largest:e}"
    );
    ensure!(largest <= TOLERANCE, "weights differ by {largest}");
    ensure!(whole.values().flatten().any(|weight| *weight != 0.0), "nothing was trained");
    Ok(())
}
