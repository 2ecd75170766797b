//! kill -9 of the server, and power cuts, at random moments under load: what was acknowledged is there, no pair points nowhere,
//! and what answers is what the store says.
//!
//! `REGROUND_TEST_KILLS` sets the number of kills (12 without it), `REGROUND_TEST_CUTS` that of power cuts (6).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reground_tests::disk::Disk;
use reground_tests::{Server, Settings, say};
use tempfile::TempDir;
use tokio::time::sleep;

use super::life::{Promised, import_adapter, make_adapter, settings, verify};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A way to die, and what it does to the data directory.
trait Death {
    fn data(&self) -> PathBuf;

    fn settings(&self, settings: Settings) -> Settings;

    /// Before a life.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// After it.
    fn strike(&self) -> Result<()> {
        Ok(())
    }
}

/// kill -9: what was written is there, flushed or not.
struct Kill(TempDir);

impl Death for Kill {
    fn data(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn settings(&self, settings: Settings) -> Settings {
        settings.data(self.0.path())
    }
}

/// Only what was flushed is there.
struct PowerCut(Disk);

impl Death for PowerCut {
    fn data(&self) -> PathBuf {
        self.0.data()
    }

    fn settings(&self, settings: Settings) -> Settings {
        settings.disk(&self.0, true)
    }

    fn prepare(&self) -> Result<()> {
        Ok(self.0.settle()?)
    }

    fn strike(&self) -> Result<()> {
        Ok(self.0.lose_what_was_not_flushed()?)
    }
}

/// Has a server live under load and die so often.
async fn die(death: impl Death, deaths: u64) -> Result<()> {
    let root = tempfile::tempdir()?;
    make_adapter(root.path()).await?;
    let start = async || {
        death.prepare()?;
        Server::start(death.settings(settings(root.path()))).await
    };
    let promised = Promised::default();
    let mut random = ChaCha8Rng::seed_from_u64(deaths);
    let server = start().await?;
    let adapter = import_adapter(&server.client()).await?;
    server.kill();
    death.strike()?;
    let (mut lived, mut slowest) = (None::<(Instant, Instant)>, Duration::ZERO);
    for number in 0..deaths {
        let begun = Instant::now();
        let server = start().await?;
        slowest = slowest.max(begun.elapsed());
        if let Some((since, end)) = lived {
            promised.check(&server.client(), since, end).await?;
        }
        let since = Instant::now();
        let life = promised.live(&server, number + 1, &adapter);
        if number % 2 == 1 {
            // However slow the machine is, every second life gets to acknowledge something.
            promised.until_a_record_is_promised(since).await?;
        }
        sleep(Duration::from_millis(random.random_range(20..1500))).await;
        let end = Instant::now();
        let log = server.kill();
        life.end().await.context(log)?;
        death.strike()?;
        verify(&death.data()).await?;
        lived = Some((since, end));
        if (number + 1) % 50 == 0 {
            say!("{} deaths: {}", number + 1, promised.told());
        }
    }
    let server = start().await?;
    let (since, end) = lived.context("no death at all")?;
    promised.check(&server.client(), since, end).await?;
    server.kill();
    death.strike()?;
    promised.check_all(&death.data(), end).await?;
    say!("{deaths} deaths: {}; the slowest start took {slowest:.1?}", promised.told());
    let counts = promised.counts();
    ensure!(2 * counts[0] as u64 >= deaths && counts.into_iter().all(|count| count > 0), "hardly anything happened");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_what_it_promised() -> Result<()> {
    die(Kill(tempfile::tempdir()?), number("REGROUND_TEST_KILLS", 12)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loses_its_power_keeps_what_it_promised() -> Result<()> {
    die(PowerCut(Disk::new()?), number("REGROUND_TEST_CUTS", 6)).await
}
