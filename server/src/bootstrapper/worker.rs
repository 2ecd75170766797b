//! Which record is next, and when to wait.

use std::sync::Arc;
use std::time::Duration;

use reground_learner::bootstrap::filter::PairFilter;
use reground_learner::store::rows::{BootstrapState, Pair, Record};
use reground_learner::store::{Query, Store, StoreError, id};
use tokio::time::{Instant, timeout};

use super::case::{self, Case, Outcome, Stored};
use super::choose::{Choice, Decision, Skip, can_be_withdrawn, choose};
use super::counters;
use super::failed::Failed;
use super::models::Models;
use super::negatives::{Maker, Subject, Trouble};
use crate::admission::Activity;
use crate::config::{BootstrapConfig, WhenUnloaded};
use crate::images::ImageReader;
use crate::recorder::replay;

/// Pause between two looks for records that wait.
const POLL: Duration = Duration::from_secs(1);
/// Longest pause after failures; each one doubles it.
const LONGEST: Duration = Duration::from_secs(60);
/// Records that are read at once.
const PAGE: usize = 64;
/// Records that may fail in a row before the pass ends: the model, not they, is to blame then.
const FAILURES: usize = 3;
/// How long a record waits for a moment in which nobody is answered: also one of which no pair can be made takes a core for a while.
const AWAY: Duration = Duration::from_millis(100);
/// How long the filter is believed: reviews and deletions change what is stored.
const FRESH: Duration = Duration::from_secs(300);

/// Failures within one pass.
#[derive(Default)]
struct Troubles {
    /// Of the last records, one after the other.
    row: usize,
    last: Option<String>,
}

impl Troubles {
    /// # Errors
    /// So many records failed in a row that the others would, too.
    fn note(&mut self, seen: Result<(), String>) -> Result<(), String> {
        match seen {
            Ok(()) => self.row = 0,
            Err(why) if self.row + 1 == FAILURES => return Err(why),
            Err(why) => (self.row, self.last) = (self.row + 1, Some(why)),
        }
        Ok(())
    }
}

/// Looks at one record after the other.
pub(super) struct Worker {
    store: Arc<Store>,
    maker: Maker,
    activity: Activity,
    images: Arc<ImageReader>,
    config: BootstrapConfig,
    /// What it knows and since when; `None` after anything that it may know wrongly.
    filter: Option<(PairFilter, Instant)>,
    /// Records that failed and still wait.
    failed: Failed,
}

impl Worker {
    pub(super) fn new(store: Arc<Store>, models: Models, images: Arc<ImageReader>, config: BootstrapConfig) -> Self {
        Self {
            store,
            activity: models.activity.clone(),
            maker: Maker::new(models, config.clone()),
            images,
            config,
            filter: None,
            failed: Failed::default(),
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self) {
        let mut pause = POLL;
        loop {
            match self.pass().await {
                Ok(()) => pause = POLL,
                Err(why) => {
                    if pause == POLL {
                        tracing::warn!(%why, "Pairs cannot be made now; it is tried again");
                    }
                    pause = (pause * 2).min(LONGEST);
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks at every record that waits, oldest first, those that failed before after all others.
    ///
    /// # Errors
    /// Why some of them still wait.
    pub(super) async fn pass(&mut self) -> Result<(), String> {
        let mut query = Query { limit: PAGE, ..Query::by("bootstrap", "waiting") };
        let (mut troubles, again) = (Troubles::default(), self.failed.due(Instant::now()));
        loop {
            let asked = query.clone();
            let page = self.blocking(move |store| store.list_readable::<Record>(&asked)).await?;
            for record in page.rows {
                query.after = Some(record.id.clone());
                if !self.failed.contains(&record.id) {
                    let seen = self.try_record(record).await;
                    troubles.note(seen)?;
                }
            }
            if !page.more {
                break;
            }
        }
        for id in again {
            let asked = id.clone();
            let record = self.blocking(move |store| store.get::<Record>(&asked)).await?;
            match record.filter(|record| record.bootstrap == BootstrapState::Waiting) {
                Some(record) => {
                    let seen = self.try_record(record).await;
                    troubles.note(seen)?;
                }
                None => self.failed.remove(&id),
            }
        }
        counters::waiting(self.blocking(|store| store.count::<Record>(&Query::by("bootstrap", "waiting"))).await?);
        troubles.last.map_or(Ok(()), Err)
    }

    /// Looks at a record, and remembers whether that failed.
    async fn try_record(&mut self, record: Record) -> Result<(), String> {
        let id = record.id.clone();
        // Whoever always has live queries has pairs all the same.
        let _ = timeout(AWAY, self.activity.idle()).await;
        let seen = self.look(record).await;
        match &seen {
            Ok(()) => self.failed.remove(&id),
            Err(_) => {
                self.filter = None;
                self.failed.add(id, Instant::now());
            }
        }
        seen
    }

    async fn look(&mut self, record: Record) -> Result<(), String> {
        let case = self.blocking(move |store| Case::read(store, record)).await?;
        let (choice, skip) = match choose(&case.record, &case.feedback, &self.config, id::now_ms()) {
            Decision::Later => return Ok(()),
            Decision::Skip(skip) => (None, Some(skip)),
            Decision::Make(choice) => (Some(choice), None),
        };
        let is_made = |pair: &Pair| choice.as_ref().is_some_and(|choice| choice.made(pair));
        let older = case.pairs.iter().any(is_made);
        let withdrawn = case.pairs.iter().filter(|pair| !is_made(pair) && can_be_withdrawn(pair));
        let withdrawn: Vec<String> = withdrawn.map(|pair| pair.data.id.clone()).collect();
        let (pairs, skip) = match &choice {
            Some(choice) if !older => match self.make(&case, choice, &withdrawn).await? {
                Ok(pairs) => (pairs, None),
                Err(skip) => (Vec::new(), Some(skip)),
            },
            _ => (Vec::new(), skip),
        };
        let outcome = Outcome { has_pairs: older || !pairs.is_empty(), pairs, withdrawn };
        self.store(case, outcome, skip.map_or("paired", Skip::as_str)).await
    }

    async fn store(&mut self, case: Case, outcome: Outcome, name: &'static str) -> Result<(), String> {
        let (stored, outcome) =
            self.blocking(move |store| case.store(store, &outcome).map(|stored| (stored, outcome))).await?;
        match stored {
            Stored::Yes => {
                counters::record(name);
                outcome.pairs.iter().for_each(counters::pair);
            }
            Stored::Overtaken => self.filter = None,
        }
        Ok(())
    }

    /// Pairs for a choice that takes the place of the withdrawn ones, or why there are none.
    async fn make(
        &mut self,
        case: &Case,
        choice: &Choice,
        withdrawn: &[String],
    ) -> Result<Result<Vec<Pair>, Skip>, String> {
        let images = match replay::images(&self.store, &self.images, &case.record).await? {
            Some(images) => images,
            None => return Ok(Err(Skip::Impossible)),
        };
        let record = &case.record;
        if !withdrawn.is_empty() {
            // It knows them: what they choose could not be rejected now.
            self.filter = None;
        }
        let mut generation = Some(record.generation.as_str());
        loop {
            let mut filter = self.take_filter(withdrawn).await?;
            let subject = Subject { record, choice, images: &images, generation };
            match self.maker.pairs(&subject, &mut filter.0).await {
                Ok(pairs) => {
                    self.filter = Some(filter);
                    return Ok(Ok(pairs));
                }
                Err(Trouble::Skip(skip)) => {
                    // Nothing was kept, so it knows nothing new.
                    self.filter = Some(filter);
                    return Ok(Err(skip));
                }
                Err(Trouble::NotLoaded) if generation.is_some() && self.config.when_unloaded == WhenUnloaded::Live => {
                    generation = None;
                }
                Err(Trouble::NotLoaded) => return Ok(Err(Skip::NotLoaded)),
                Err(Trouble::Failed(why)) => return Err(why),
            }
        }
    }

    /// The filter, filled anew if it may be wrong. It is put back when what it knows is what will be stored.
    async fn take_filter(&mut self, withdrawn: &[String]) -> Result<(PairFilter, Instant), String> {
        match self.filter.take().filter(|(_, since)| since.elapsed() < FRESH) {
            Some(known) => Ok(known),
            None => {
                let (config, withdrawn) = (self.config.clone(), withdrawn.to_vec());
                let filter = self.blocking(move |store| case::filter(store, &config, &withdrawn)).await?;
                Ok((filter, Instant::now()))
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, String> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|_| "the thread that used the store is gone".to_owned())?.map_err(|error| error.to_string())
    }
}
