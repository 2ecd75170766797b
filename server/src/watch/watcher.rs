//! Looks at what is watched, and takes back what is worse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, describe_counter};
use reground_learner::generator::{Generator, GeneratorError};
use reground_learner::store::rows::Record;
use reground_learner::store::{Store, StoreError, id};
use tracing::{error, warn};

use super::signal::{Figures, Grounding, Signal, Verdict, of_answers, of_grounding, of_ratings};
use super::{grounding, ratings};
use crate::config::WatchConfig;
use crate::images::ImageReader;
use crate::recorder::replay;
use crate::rollout::{Generations, Rollout, RolloutError, Trial, Watched};

/// Breaches of a threshold, by signal and by how the generation got traffic.
const BREACHES: &str = "reground_watch_breaches_total";

/// Looks at what is watched, and takes back what is worse.
pub struct Watcher {
    generations: Arc<Generations>,
    rollout: Arc<Rollout>,
    store: Arc<Store>,
    config: WatchConfig,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    reports: Vec<Report>,
    /// By the generation that is watched and when that began.
    grounding: BTreeMap<(String, u64), Probed>,
    /// What was looked at after its window, for the last time.
    ended: BTreeSet<(String, u64)>,
    /// What was said already of what is pinned.
    told: BTreeSet<(String, u64)>,
}

#[derive(Default)]
struct Probed {
    measured: Grounding,
    records: BTreeSet<String>,
}

/// How something that is watched does.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What is watched.
    pub watched: Watched,
    /// How far that is.
    pub state: State,
    /// What the signals say, each once.
    pub figures: Vec<Figures>,
}

/// How far a watch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Watching,
    /// The window is over, and nothing was wrong.
    Passed,
    /// Something is wrong, and what is live stays because it is pinned.
    Held,
}

impl State {
    /// As JSON names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Watching => "watching",
            Self::Passed => "passed",
            Self::Held => "held",
        }
    }
}

impl Watcher {
    /// Watches what gets traffic from this rollout.
    #[must_use]
    pub fn new(generations: Arc<Generations>, rollout: Arc<Rollout>, store: Arc<Store>, config: WatchConfig) -> Self {
        Self { generations, rollout, store, config, seen: Mutex::default() }
    }

    pub(super) fn config(&self) -> &WatchConfig {
        &self.config
    }

    /// How what is watched did when it was last looked at.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        let watched = self.rollout.watched();
        // What was changed since is not of interest.
        self.seen().reports.iter().filter(|report| watched.contains(&report.watched)).cloned().collect()
    }

    /// Looks again and again.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(self.config.interval_s)).await;
            self.look().await;
        }
    }

    /// Looks at everything that is watched, and takes back what is worse than is allowed.
    pub(super) async fn look(&self) {
        let watched = self.rollout.watched();
        {
            let is_watched = |key: &(String, u64)| watched.iter().any(|watched| key_of(watched) == *key);
            let mut seen = self.seen();
            seen.grounding.retain(|key, _| is_watched(key));
            seen.ended.retain(is_watched);
        }
        let mut reports = Vec::new();
        for watched in watched {
            // Once more after the window: what came since the look before is judged, too.
            let open = self.is_open(&watched);
            if !open && self.seen().ended.contains(&key_of(&watched)) {
                let figures = self.last_figures(&watched);
                reports.push(Report { watched, state: State::Passed, figures });
                continue;
            }
            let figures = self.figures(&watched).await;
            let breach = figures.iter().find(|figures| figures.verdict == Verdict::Breach).copied();
            let state = match breach {
                Some(breach) => self.act(&watched, breach).await,
                None if open => State::Watching,
                None => State::Passed,
            };
            // What is to be taken back and could not be is tried again.
            if !open && state != State::Watching {
                self.seen().ended.insert(key_of(&watched));
            }
            reports.push(Report { watched, state, figures });
        }
        self.seen().reports = reports;
    }

    /// Takes back what breaches a threshold.
    async fn act(&self, watched: &Watched, breach: Figures) -> State {
        let (generation, signal) = (&watched.generation, breach.signal.as_str());
        match self.rollout.take_back(watched, breach.to_string()).await {
            Ok(route) => {
                count(breach.signal, watched.trial);
                error!(%generation, signal, live = %route.live, "A generation was taken back by itself: {breach}.");
                State::Watching
            }
            Err(RolloutError::Pinned(_)) => {
                if self.seen().told.insert(key_of(watched)) {
                    count(breach.signal, watched.trial);
                    error!(%generation, signal, "A pinned generation would be taken back: {breach}.");
                }
                State::Held
            }
            // Somebody was faster.
            Err(RolloutError::NotWatched(_)) => State::Watching,
            Err(why) => {
                error!(%generation, signal, error = %why, "A generation is to be taken back and cannot be; it is tried again: {breach}.");
                State::Watching
            }
        }
    }

    async fn figures(&self, watched: &Watched) -> Vec<Figures> {
        let since =
            |id| self.generations.get(id).map(|lease| lease.observed.after(watched.began_ms)).unwrap_or_default();
        let new = since(&watched.generation);
        let old = match watched.trial {
            Trial::Live => watched.before,
            Trial::Canary => since(&watched.against),
        };
        let asked = watched.clone();
        let ratings = self.stored(move |store| ratings::ratings(store, &asked)).await;
        // The other signals are judged all the same.
        let (new_ratings, old_ratings) = ratings.unwrap_or_else(|error| {
            warn!(generation = %watched.generation, %error, "The ratings of a watched generation cannot be read now.");
            Default::default()
        });
        let mut figures = of_answers(&new, &old, &self.config).to_vec();
        figures.push(of_ratings((&new_ratings, &old_ratings), &self.config));
        let measured = self.seen().grounding.get(&key_of(watched)).map(|probed| probed.measured).unwrap_or_default();
        figures.push(of_grounding(&measured, &self.config));
        figures
    }

    fn last_figures(&self, watched: &Watched) -> Vec<Figures> {
        let seen = self.seen();
        let last = seen.reports.iter().find(|report| report.watched == *watched);
        last.map(|report| report.figures.clone()).unwrap_or_default()
    }

    fn is_open(&self, watched: &Watched) -> bool {
        id::now_ms().saturating_sub(watched.began_ms) < self.config.window_s.saturating_mul(1000)
    }

    /// Scores recorded answers, one after the other, in moments that no live query needs.
    pub(super) async fn probe(&self, generator: &dyn Generator, images: &ImageReader) {
        loop {
            for watched in self.rollout.watched() {
                if let Err(why) = self.probe_one(&watched, generator, images).await {
                    warn!(generation = %watched.generation, why, "The grounding of a watched generation cannot be measured now.");
                }
            }
            tokio::time::sleep(Duration::from_secs(self.config.interval_s)).await;
        }
    }

    /// Scores the answers that are there and were not scored yet, up to the configured number.
    pub(super) async fn probe_one(
        &self,
        watched: &Watched,
        generator: &dyn Generator,
        images: &ImageReader,
    ) -> Result<(), String> {
        let most = self.config.grounding_answers;
        if most == 0 || self.probed(watched) >= most || !self.is_open(watched) {
            return Ok(());
        }
        for record in self.stored(move |store| grounding::candidates(store, most)).await? {
            if self.probed(watched) >= most || !self.rollout.watched().contains(watched) {
                break;
            }
            let key = key_of(watched);
            if self.seen().grounding.get(&key).is_some_and(|probed| probed.records.contains(&record.id)) {
                continue;
            }
            let margins = self.margins(watched, &record, generator, images).await?;
            let mut seen = self.seen();
            let probed = seen.grounding.entry(key).or_default();
            probed.records.insert(record.id);
            if let Some((new, old)) = margins {
                probed.measured.new.add(new);
                probed.measured.old.add(old);
                probed.measured.missing.add((1.0 - self.config.max_grounding_loss) * old - new);
            }
        }
        Ok(())
    }

    /// What the picture adds for both generations; `None` where this answer cannot be scored.
    async fn margins(
        &self,
        watched: &Watched,
        record: &Record,
        generator: &dyn Generator,
        images: &ImageReader,
    ) -> Result<Option<(f64, f64)>, String> {
        let Some(images) = replay::images(&self.store, images, record).await? else { return Ok(None) };
        let (Some(conversation), Some(answer)) = (record.training_messages(), record.answers.first()) else {
            return Ok(None);
        };
        let turns = replay::turns(&conversation, &images);
        let mut margins = [0.0; 2];
        for (margin, generation) in margins.iter_mut().zip([&watched.generation, &watched.against]) {
            match grounding::margin(generator, generation.as_str(), &turns, &answer.token_ids).await {
                Ok(measured) => *margin = measured,
                // Cold: it is compared with nothing.
                Err(GeneratorError::Invalid(_) | GeneratorError::Incomplete(_) | GeneratorError::NotLoaded(_)) => {
                    return Ok(None);
                }
                Err(GeneratorError::Failed(why)) => return Err(why),
            }
        }
        let [new, old] = margins;
        Ok(Some((new, old)))
    }

    fn probed(&self, watched: &Watched) -> usize {
        self.seen().grounding.get(&key_of(watched)).map_or(0, |probed| probed.records.len())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|_| "the thread that used the store is gone".to_owned())?.map_err(|error| error.to_string())
    }
}

fn key_of(watched: &Watched) -> (String, u64) {
    (watched.generation.to_string(), watched.began_ms)
}

fn count(signal: Signal, trial: Trial) {
    let trial = match trial {
        Trial::Live => "live",
        Trial::Canary => "canary",
    };
    counter!(BREACHES, "signal" => signal.as_str(), "trial" => trial).increment(1);
}

pub(super) fn describe() {
    describe_counter!(
        BREACHES,
        "Watched generations that were worse than is allowed, by signal and trial (live, canary)"
    );
}
