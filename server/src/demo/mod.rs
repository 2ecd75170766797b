//! `reground demo`: the whole loop in one terminal, on the model inside the binary.
//!
//! A server on a directory of its own answers questions about *balanced* pictures, where the model's habits mislead it. A user
//! who knows better corrects a share of the answers over the API. Everything else the server does by itself: pairs, a run, the
//! gate, the switch. What it prints was measured through the API before and after, on pictures that nobody asked about in
//! between.
//!
//! # Layout
//! - [`run`]: the steps. [`Demo`]: how large it is; [`Outcome`]: what was measured.
//! - `user`: who asks, corrects and waits, over HTTP.
//! - `world`: the pictures and questions.
//! - `measure`: what is measured, and the table of it.
//! - `page`: pictures with both answers.

mod measure;
mod page;
mod user;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use reground_learner::eval::Report;
use serde::Serialize;
use serde_json::json;

use self::measure::{Measured, measure};
use self::user::User;
use self::world::Occasion;
use crate::config::{ChosenSource, Config, DeviceChoice, KeyConfig};
use crate::serve;

/// How large the demonstration is.
#[derive(Clone, Debug)]
pub struct Demo {
    /// Questions that are asked, each about a picture of its own.
    pub questions: u64,
    /// Share of the answers that the user corrects, 0 to 1. With 0 the server learns from its own answers alone.
    pub corrected: f64,
    /// Annotated typical pictures of which some are mixed into the run, up to `train.anchor_share`.
    pub anchors: u64,
    /// Share of the questions that another user asks, who corrects every answer into the description of another picture, 0 to 1.
    pub hostile: f64,
    /// Whether that user's key is trusted, so that nobody reviews what it corrects.
    pub trust_hostile: bool,
    /// Held-out pictures of each kind that are measured on.
    pub images: usize,
    /// Decides pictures, questions and training.
    pub seed: u64,
    /// Where it serves and trains.
    pub device: DeviceChoice,
    /// Where the page with pictures and answers is written.
    pub page: PathBuf,
}

/// API keys, where somebody hostile asks, too. The server listens on loopback and is gone when the demonstration ends.
const KEY: &str = "sk-demo-operator";
const HOSTILE_KEY: &str = "sk-demo-hostile";
/// Pictures on the page.
const SHOWN: usize = 8;
/// No step takes longer.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The adapter that was made.
    pub adapter: String,
    /// The base on held-out pictures.
    pub before: Report,
    /// The adapter on the same pictures.
    pub after: Report,
    /// Both with the differences, as a table.
    pub table: String,
    /// With hostile corrections: the pairs of their key by state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostile_pairs: Option<BTreeMap<&'static str, u64>>,
}

/// Runs it, and says on standard error what happens.
///
/// # Errors
/// The server cannot start, or a step fails or takes too long.
pub async fn run(demo: Demo) -> Result<Outcome> {
    ensure!((0.0..=1.0).contains(&demo.corrected), "the share of corrected answers must be 0 to 1");
    ensure!((0.0..=1.0).contains(&demo.hostile), "the share of hostile questions must be 0 to 1");
    let data = tempfile::tempdir().context("no temporary directory")?;
    let mut config = config(&demo, data.path());
    let keys = (demo.hostile > 0.0).then_some([KEY, HOSTILE_KEY]);
    if keys.is_some() {
        config.auth.keys = self::keys(demo.trust_hostile, data.path())?;
    }
    let running = serve::start(config).await?;
    let [user, liar] = [0, 1].map(|which| User::new(running.address(), keys.map(|keys| keys[which])));
    eprintln!("A server with the built-in model listens on http://{} until the end.", running.address());
    let outcome = steps(&demo, &user, &liar).await;
    running.stop().await?;
    outcome
}

fn config(demo: &Demo, data: &Path) -> Config {
    let mut config = Config::default();
    config.server.port = 0;
    config.data.dir = data.to_owned();
    // Nobody waits between two questions here; every one of them is wanted.
    config.record.queue = 100_000;
    // One run, when everything that was asked has been looked at: the demonstration asks for it.
    config.train.min_pairs = 0;
    (config.train.seed, config.train.held_out_seed) = (demo.seed, demo.seed);
    // The built-in model has evaluation sets of its own.
    config.train.held_out = 0.1;
    (config.model.device, config.train.device) = (demo.device, demo.device);
    // Nobody waits for an answer while it trains.
    config.train.nice = 0;
    // Everything that users correct here is about unusual pictures: more than usually is needed to hold the others.
    config.train.anchor_share = 0.4;
    if demo.corrected == 0.0 {
        config.bootstrap.sources = vec![ChosenSource::OwnAnswer];
        config.bootstrap.self_after_s = 0;
    }
    config
}

/// The keys of an operator and of somebody else.
fn keys(trust_hostile: bool, directory: &Path) -> Result<Vec<KeyConfig>> {
    let key = |name: &str, key: &str, role: &str, trusted: bool| {
        let file = directory.join(format!("key-{name}"));
        fs_err::write(&file, key)?;
        let key = json!({"name": name, "key": format!("file:{}", file.display()), "role": role, "trusted": trusted});
        anyhow::Ok(serde_json::from_value(key)?)
    };
    Ok(vec![key("operator", KEY, "admin", true)?, key("hostile", HOSTILE_KEY, "client", trust_hostile)?])
}

async fn steps(demo: &Demo, user: &User, liar: &User) -> Result<Outcome> {
    eprintln!("1. Before: {} typical and {} balanced held-out pictures, asked over the API", demo.images, demo.images);
    let before = measure(user, demo, &bar("questions answered", None)).await?;
    let shown = world::shown(demo.seed, SHOWN);
    let first = user.describe(&shown).await?;

    eprintln!("2. Users ask {} questions about balanced pictures", demo.questions);
    let occasions: Vec<Occasion> = (0..demo.questions).map(|index| Occasion::new(demo.seed, index)).collect();
    let corrected = user.live(liar, &occasions, demo, &bar("questions asked", Some(demo.questions))).await?;
    eprintln!("   {corrected} answers were corrected.");

    eprintln!("3. The server makes pairs of them while nobody asks");
    let pairs = user.pairs(demo.questions, &bar("records looked at", Some(demo.questions)), PATIENCE).await?;
    eprintln!("   {pairs}");

    eprintln!("4. It trains an adapter, lets it through the gate and puts it live");
    let anchors = match demo.anchors {
        0 => None,
        count => {
            eprintln!("   {count} annotated typical pictures are there to keep it right where it is.");
            Some(user.upload("typical.jsonl", &world::anchors(demo.seed, count)?).await?)
        }
    };
    let trained = user.train(anchors.as_deref(), &bar("steps", None), PATIENCE).await;
    let hostile_pairs = if demo.hostile > 0.0 { Some(hostile_pairs(user).await?) } else { None };
    if let Some(pairs) = &hostile_pairs {
        eprintln!("   Pairs of the hostile key by state: {pairs:?}");
    }
    let live = trained?;
    eprintln!("   {live} answers now.");

    eprintln!("5. After: the same held-out pictures");
    let after = measure(user, demo, &bar("questions answered", None)).await?;
    let second = user.describe(&shown).await?;
    let table = Measured::table(&before, &after);
    page::write(&demo.page, &shown, &first, &second, &table)?;
    eprintln!("   Pictures with both answers: {}", demo.page.display());

    eprintln!("6. Back, in one call: POST /v1/adapters/rollback");
    let route = user.post("/v1/adapters/rollback", &json!({"expected_generation": live})).await?;
    let third = user.describe(&shown).await?;
    ensure!(third == first, "the base gives other answers than before");
    let now = route["live"].as_str().unwrap_or_default();
    eprintln!("   `{now}` is live again, and its {} answers are the old ones.", third.len());
    Ok(Outcome { before: before.report("base"), after: after.report(&live), adapter: live, table, hostile_pairs })
}

/// Pairs of the hostile key by state.
async fn hostile_pairs(user: &User) -> Result<BTreeMap<&'static str, u64>> {
    let mut pairs = BTreeMap::new();
    for state in ["new", "review", "accepted", "discarded", "used"] {
        pairs.insert(state, user.count(&format!("/v1/pairs?key=hostile&state={state}")).await?);
    }
    Ok(pairs)
}

/// Progress in a terminal; nothing elsewhere.
fn bar(of: &'static str, length: Option<u64>) -> ProgressBar {
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style =
        if length.is_some() { "   {bar:30} {pos}/{len} {msg} {elapsed}" } else { "   {spinner} {pos} {msg} {elapsed}" };
    bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(of)
}
