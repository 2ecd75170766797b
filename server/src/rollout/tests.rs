//! Changes of the route, over an engine that repeats what it is told.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reground_learner::store::rows::{Run, RunState};
use reground_learner::store::{Options, Store};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::api::testing::{Echo, Watch};
use crate::config::{Config, Previous, Strategy};
use crate::engine::GenerationId;
use crate::engine::source::golden;

struct Place {
    rollout: Arc<Rollout>,
    watch: Arc<Watch>,
    data: TempDir,
    config: Config,
}

async fn rollout(data: &Path, config: &Config) -> (Arc<Rollout>, Arc<Watch>) {
    let engine = Echo::new(false);
    let watch = engine.watch.clone();
    let generations = Generations::start(Arc::new(engine), config.admission.clone()).await.unwrap();
    let store = Store::open(data, Options::default()).unwrap();
    (Arc::new(Rollout::new(Arc::new(generations), Arc::new(store), config)), watch)
}

async fn place() -> Place {
    place_with(|_| ()).await
}

async fn place_with(set: impl FnOnce(&mut Config)) -> Place {
    let data = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    set(&mut config);
    let (rollout, watch) = rollout(data.path(), &config).await;
    Place { rollout, watch, data, config }
}

impl Place {
    async fn import(&self) -> GenerationId {
        let manifest = self.rollout.import(golden("adapter"), Origin::default()).await.unwrap();
        GenerationId::from(manifest.id.as_str())
    }

    fn loaded(&self) -> usize {
        self.rollout.generations.list().len()
    }

    /// What answers a caller.
    async fn answers(&self, who: &str) -> GenerationId {
        let deadline = Instant::now() + Duration::from_secs(20);
        self.rollout.generations.enter(Sticky::of(who), "key", deadline).await.unwrap().generation.id().clone()
    }

    async fn told(&self) -> Vec<String> {
        self.rollout.changes(9).await.unwrap().into_iter().map(|change| change.what).collect()
    }
}

#[tokio::test]
async fn what_is_activated_answers_and_a_rollback_brings_back_what_answered() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    let base = GenerationId::base();
    let route = place.rollout.activate(&first, Some(&base), "test").await.unwrap();
    assert_eq!(route, Route::of(first.clone(), Some(base.clone())));
    assert_eq!(place.answers("anybody").await, first);
    place.rollout.activate(&second, None, "test").await.unwrap();
    assert_eq!(place.loaded(), 3, "the previous one stays warm");
    let route = place.rollout.rollback(Some(&second), "test").await.unwrap();
    assert_eq!((route.live, route.previous), (first, Some(base.clone())));
    assert_eq!(place.loaded(), 2);
    assert_eq!(place.rollout.rollback(None, "test").await.unwrap().live, base);
    let error = place.rollout.rollback(None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::NoPrevious { .. }), "{error}");
    assert_eq!(place.told().await, ["rollback", "rollback", "activate", "activate"]);
}

#[tokio::test]
async fn what_a_run_continues_is_not_removed_before_its_end() {
    let place = place().await;
    let first = place.import().await;
    let run = |state: RunState| Run {
        id: "ftjob-1".into(),
        created_ms: 1,
        started_ms: None,
        finished_ms: None,
        state,
        trigger: "test".into(),
        parent: first.to_string(),
        dataset_digest: None,
        pairs: 0,
        request: serde_json::Value::Null,
        adapter: None,
        restarts: 0,
        error: None,
        refused: false,
    };
    for state in [RunState::Queued, RunState::Running, RunState::Paused] {
        place.rollout.store.write(|rows| rows.put(&run(state))).unwrap();
        let error = place.rollout.remove(first.as_str()).await.unwrap_err();
        assert!(matches!(error, RolloutError::Continued { .. }), "{state:?}: {error}");
    }
    place.rollout.store.write(|rows| rows.put(&run(RunState::Failed))).unwrap();
    place.rollout.remove(first.as_str()).await.unwrap();
}

#[tokio::test]
async fn a_stale_view_changes_nothing() {
    let place = place().await;
    let first = place.import().await;
    let stale = GenerationId::from("ad-0");
    for error in [
        place.rollout.activate(&first, Some(&stale), "test").await.unwrap_err(),
        place.rollout.canary(&first, 10, Some(&stale), "test").await.unwrap_err(),
        place.rollout.rollback(Some(&stale), "test").await.unwrap_err(),
    ] {
        assert!(matches!(error, RolloutError::Stale { .. }), "{error}");
    }
    assert_eq!((place.rollout.route(), place.loaded()), (Route::default(), 1));
    assert_eq!(place.rollout.changes(9).await.unwrap(), []);
}

#[tokio::test]
async fn what_was_loaded_for_a_change_that_is_not_made_goes_and_what_is_switched_to_stays() {
    let place = place().await;
    let (first, base) = (place.import().await, GenerationId::base());
    // Somebody else is changing the route.
    let other = place.rollout.change.lock().await;
    let (rollout, id, expected) = (place.rollout.clone(), first.clone(), base.clone());
    let stale = tokio::spawn(async move { rollout.activate(&id, Some(&expected), "test").await });
    while place.loaded() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Nobody takes it out under the one who may be switching to it.
    let short = Duration::from_millis(50);
    assert!(tokio::time::timeout(short, place.rollout.unload_named(&first)).await.is_err());
    place.rollout.generations.load("named", std::path::PathBuf::new()).await.unwrap();
    place.rollout.generations.set_route(Route::of("named".into(), None)).unwrap();
    drop(other);
    assert!(matches!(stale.await.unwrap(), Err(RolloutError::Stale { .. })));
    assert_eq!(place.rollout.generations.list(), [base, "named".into()]);
}

#[tokio::test]
async fn a_canary_begins_ends_and_is_promoted() {
    let place = place().await;
    let first = place.import().await;
    let route = place.rollout.canary(&first, 50, None, "test").await.unwrap();
    assert_eq!(route.live, GenerationId::base());
    let mut tries = 0;
    for n in 0..200 {
        tries += usize::from(place.answers(&n.to_string()).await == first);
    }
    assert!((60..140).contains(&tries), "{tries}");
    assert!(matches!(place.rollout.remove(first.as_str()).await, Err(RolloutError::InUse(_))));
    assert_eq!(place.rollout.canary(&first, 0, None, "test").await.unwrap(), Route::default());
    assert_eq!(place.loaded(), 1);
    place.rollout.canary(&first, 5, None, "test").await.unwrap();
    let route = place.rollout.activate(&first, None, "test").await.unwrap();
    assert_eq!((route.live, route.canary), (first, None));
}

#[tokio::test]
async fn a_rollback_waits_for_no_load() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    place.rollout.activate(&first, None, "test").await.unwrap();
    place.watch.loading_ms.store(600_000, Ordering::SeqCst);
    let rollout = place.rollout.clone();
    let loading = tokio::spawn(async move { rollout.activate(&second, None, "test").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let back = tokio::time::timeout(Duration::from_secs(60), place.rollout.rollback(None, "test")).await;
    assert_eq!(back.unwrap().unwrap().live, GenerationId::base());
    assert_eq!(place.loaded(), 1, "what was taken back is unloaded");
    assert!(!loading.is_finished());
}

#[tokio::test]
async fn what_is_removed_while_it_is_loaded_does_not_go_live() {
    let place = place().await;
    let first = place.import().await;
    place.watch.loading_ms.store(300, Ordering::SeqCst);
    let (rollout, id) = (place.rollout.clone(), first.clone());
    let loading = tokio::spawn(async move { rollout.activate(&id, None, "test").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    place.rollout.remove(first.as_str()).await.unwrap();
    let error = loading.await.unwrap().unwrap_err();
    assert!(matches!(error, RolloutError::Library(LibraryError::Unknown(_))), "{error}");
    assert_eq!((place.rollout.route(), place.loaded()), (Route::default(), 1));
}

#[tokio::test]
async fn a_trial_is_ended_by_its_name() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    let typo = GenerationId::from("ad-0");
    place.rollout.canary(&first, 10, None, "test").await.unwrap();
    place.rollout.shadow(&second, 10, None, "test").await.unwrap();
    let error = place.rollout.canary(&second, 0, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::NotOnTrial { .. }), "{error}");
    let error = place.rollout.shadow(&first, 0, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::NotOnTrial { .. }), "{error}");
    let error = place.rollout.canary(&typo, 0, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::Library(LibraryError::Unknown(_))), "{error}");
    assert_eq!(place.told().await, ["shadow", "canary"]);
    place.rollout.canary(&first, 0, None, "test").await.unwrap();
    assert!(place.rollout.shadow(&second, 0, None, "test").await.unwrap().shadow.is_none());
}

#[tokio::test]
async fn an_adapter_that_changes_nothing_is_refused_and_unloaded() {
    let place = place().await;
    let first = place.import().await;
    place.watch.inert.store(true, Ordering::SeqCst);
    let error = place.rollout.activate(&first, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::Probe(ProbeError::Inert)), "{error}");
    assert_eq!((place.rollout.route(), place.loaded()), (Route::default(), 1));
}

#[tokio::test]
async fn a_restart_serves_what_was_live_and_falls_back_when_it_is_broken() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    place.rollout.activate(&first, None, "test").await.unwrap();
    place.rollout.activate(&second, None, "test").await.unwrap();
    let route = place.rollout.route();
    let (data, config) = (place.data, place.config);
    drop(place.rollout);

    let (again, _) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!(again.route(), route);
    drop(again);

    let weights = |id: &GenerationId| data.path().join("adapters").join(id.as_str()).join("adapter_model.safetensors");
    fs_err::write(weights(&second), b"broken").unwrap();
    let (again, _) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!(again.route().live, first);
    assert_eq!(again.changes(1).await.unwrap()[0].what, "fallback");
    drop(again);

    fs_err::write(weights(&first), b"broken").unwrap();
    let (again, _) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!(again.route(), Route::default());
}

#[tokio::test]
async fn a_change_that_cannot_be_written_is_not_made() {
    let place = place().await;
    let first = place.import().await;
    place.rollout.store.keep_free(u64::MAX);
    let error = place.rollout.activate(&first, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::Ledger(_)), "{error}");
    assert_eq!(place.rollout.route(), Route::default());
}

#[tokio::test]
async fn what_is_pinned_holds_against_the_server_and_not_against_a_person() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    let not_live = place.rollout.pin(&first, true, None, "test").await.unwrap_err();
    assert!(matches!(not_live, RolloutError::NotLive { .. }), "{not_live}");
    place.rollout.activate(&first, None, "test").await.unwrap();
    let stale = place.rollout.pin(&first, true, Some(&second), "test").await.unwrap_err();
    assert!(matches!(stale, RolloutError::Stale { .. }), "{stale}");
    let route = place.rollout.pin(&first, true, None, "test").await.unwrap();
    assert!(route.pinned);
    for refused in [
        place.rollout.activate(&second, Some(&first), By::Itself).await,
        place.rollout.canary(&second, 10, Some(&first), By::Itself).await,
        place.rollout.take_back(&place.rollout.watched()[0], "too slow".into()).await,
    ] {
        assert!(matches!(refused, Err(RolloutError::Pinned(_))), "{refused:?}");
    }
    assert_eq!(place.rollout.route(), route);
    place.rollout.pin(&first, false, None, "test").await.unwrap();
    place.rollout.pin(&first, true, None, "test").await.unwrap();
    let route = place.rollout.activate(&second, None, "test").await.unwrap();
    assert!(!route.pinned, "a person's choice ends it");
    assert_eq!(place.told().await, ["activate", "pin", "unpin", "pin", "activate"]);
}

#[tokio::test]
async fn a_pinned_generation_is_pinned_after_a_restart() {
    let place = place().await;
    let first = place.import().await;
    place.rollout.activate(&first, None, "test").await.unwrap();
    let route = place.rollout.pin(&first, true, None, "test").await.unwrap();
    let (data, config) = (place.data, place.config);
    drop(place.rollout);
    let (again, _) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!(again.route(), route);
}

#[tokio::test]
async fn a_shadow_is_loaded_and_answers_nobody() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    let base = GenerationId::base();
    let route = place.rollout.shadow(&first, 100, Some(&base), "test").await.unwrap();
    assert_eq!((route.shadow.unwrap().generation, place.loaded()), (first.clone(), 2));
    for n in 0..20 {
        assert_eq!(place.answers(&n.to_string()).await, base);
    }
    assert!(matches!(place.rollout.remove(first.as_str()).await, Err(RolloutError::InUse(_))));
    let route = place.rollout.canary(&second, 10, None, "test").await.unwrap();
    assert!(route.shadow.is_some(), "both can be tried");
    let route = place.rollout.canary(&first, 10, None, "test").await.unwrap();
    assert_eq!((route.shadow, place.loaded()), (None, 2), "it got callers instead");
    place.rollout.shadow(&second, 5, None, "test").await.unwrap();
    let route = place.rollout.shadow(&second, 0, None, "test").await.unwrap();
    assert_eq!((route.shadow, place.loaded()), (None, 2));
}

#[tokio::test]
async fn a_cold_previous_is_unloaded_and_loaded_again_for_a_rollback() {
    let place = place_with(|config| config.rollout.previous = Previous::Cold).await;
    let (first, second) = (place.import().await, place.import().await);
    place.rollout.activate(&first, None, "test").await.unwrap();
    place.rollout.activate(&second, None, "test").await.unwrap();
    assert_eq!(place.rollout.generations.list(), [second.clone(), GenerationId::base()].map(|id| id));
    let route = place.rollout.rollback(None, "test").await.unwrap();
    assert_eq!((route.live.clone(), place.answers("anybody").await), (first.clone(), first));
    let (data, config) = (place.data, place.config);
    drop(place.rollout);
    let (again, _) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!(again.route(), route);
}

#[tokio::test]
async fn one_generation_at_a_time_is_loaded_and_callers_wait_meanwhile() {
    let place = place_with(|config| config.rollout.strategy = Strategy::Recreate).await;
    let first = place.import().await;
    place.watch.loading_ms.store(50, Ordering::SeqCst);
    let deadline = || Instant::now() + Duration::from_secs(20);
    let held = place.rollout.generations.enter(Sticky::of("a"), "key", deadline()).await.unwrap();
    let change = tokio::spawn({
        let (rollout, first) = (place.rollout.clone(), first.clone());
        async move { rollout.activate(&first, None, "test").await }
    });
    while place.rollout.generations.live().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let callers = (0..20).map(|n| {
        let generations = place.rollout.generations.clone();
        tokio::spawn(async move {
            let who = n.to_string();
            generations.enter(Sticky::of(&who), "key", deadline()).await.unwrap().generation.id().clone()
        })
    });
    let callers: Vec<_> = callers.collect();
    let late = Instant::now() + Duration::from_millis(20);
    let refused = place.rollout.generations.enter(Sticky::of("late"), "key", late).await;
    assert_eq!(refused.unwrap_err(), crate::admission::AdmissionError::Deadline);
    assert!(!change.is_finished(), "an answer is under way");
    assert_eq!(*held.generation.id(), GenerationId::base());
    drop(held);
    let route = change.await.unwrap().unwrap();
    assert_eq!(route, Route::of(first.clone(), Some(GenerationId::base())));
    for caller in callers {
        assert_eq!(caller.await.unwrap(), first);
    }
    assert_eq!(place.rollout.generations.list(), [first]);
    place.rollout.rollback(None, "test").await.unwrap();
    assert_eq!(place.rollout.generations.list(), [GenerationId::base()]);
    assert_eq!(place.watch.most_alive.load(Ordering::SeqCst), 1);
    let second = place.import().await;
    for refused in
        [place.rollout.canary(&second, 10, None, "test").await, place.rollout.shadow(&second, 10, None, "test").await]
    {
        assert!(matches!(refused, Err(RolloutError::OneAtATime)), "{refused:?}");
    }
}

#[tokio::test]
async fn what_does_not_load_or_is_not_fit_leaves_the_old_one_answering() {
    let place = place_with(|config| config.rollout.strategy = Strategy::Recreate).await;
    let first = place.import().await;
    place.watch.unloadable.store(true, Ordering::SeqCst);
    let error = place.rollout.activate(&first, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::Load(_)), "{error}");
    place.watch.unloadable.store(false, Ordering::SeqCst);
    place.watch.inert.store(true, Ordering::SeqCst);
    let error = place.rollout.activate(&first, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::Probe(ProbeError::Inert)), "{error}");
    place.watch.inert.store(false, Ordering::SeqCst);
    place.rollout.store.keep_free(u64::MAX);
    let error = place.rollout.activate(&first, None, "test").await.unwrap_err();
    assert!(matches!(error, RolloutError::Ledger(_)), "{error}");
    assert_eq!((place.answers("anybody").await, place.rollout.route()), (GenerationId::base(), Route::default()));
    assert_eq!((place.loaded(), place.watch.most_alive.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn one_generation_at_a_time_is_loaded_after_a_restart_too() {
    let place = place_with(|config| config.rollout.strategy = Strategy::Recreate).await;
    let (first, second) = (place.import().await, place.import().await);
    place.rollout.activate(&first, None, "test").await.unwrap();
    place.rollout.activate(&second, None, "test").await.unwrap();
    let (data, config, route) = (place.data, place.config, place.rollout.route());
    drop(place.rollout);
    let (again, watch) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!((again.route(), again.generations.list()), (route, vec![second.clone()]));
    // The base is asked for the probe before it goes.
    again.rollback(None, "test").await.unwrap();
    assert_eq!((again.generations.list(), watch.most_alive.load(Ordering::SeqCst)), (vec![first.clone()], 1));
    drop(again);
    fs_err::write(data.path().join("adapters").join(first.as_str()).join("adapter_model.safetensors"), b"no").unwrap();
    let (again, watch) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!((again.route(), watch.most_alive.load(Ordering::SeqCst)), (Route::default(), 1));
}

#[tokio::test]
async fn a_change_is_made_to_its_end_when_the_caller_leaves() {
    let place = place().await;
    let first = place.import().await;
    place.watch.loading_ms.store(50, Ordering::SeqCst);
    let left = tokio::time::timeout(Duration::from_millis(10), place.rollout.activate(&first, None, "test")).await;
    assert!(left.is_err());
    while place.rollout.route().live != first {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while place.told().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_is_taken_back_is_what_was_watched_and_never_comes_again() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    place.rollout.activate(&first, None, "test").await.unwrap();
    let old = place.rollout.watched();
    assert_eq!((old.len(), old[0].generation.clone(), old[0].trial), (1, first.clone(), Trial::Live));
    place.rollout.activate(&second, None, "test").await.unwrap();
    let stale = place.rollout.take_back(&old[0], "too slow".into()).await.unwrap_err();
    assert!(matches!(stale, RolloutError::NotWatched(_)), "{stale}");
    assert_eq!(place.rollout.route().live, second);
    let watched = place.rollout.watched();
    assert_eq!(watched[0].against, first);
    let route = place.rollout.take_back(&watched[0], "too slow".into()).await.unwrap();
    assert_eq!(route, Route::of(first, Some(GenerationId::base())));
    assert_eq!(place.rollout.watched(), []);
    let change = place.rollout.changes(1).await.unwrap().remove(0);
    assert_eq!(
        (change.what.as_str(), change.by.as_str(), change.why.as_deref()),
        ("watch", "reground", Some("too slow"))
    );
}

#[tokio::test]
async fn a_canary_that_is_taken_back_ends_and_what_is_live_is_watched_on() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    place.rollout.activate(&first, None, "test").await.unwrap();
    place.rollout.canary(&second, 10, None, "test").await.unwrap();
    let watched = place.rollout.watched();
    assert_eq!(watched.iter().map(|watched| watched.trial).collect::<Vec<_>>(), [Trial::Live, Trial::Canary]);
    place.rollout.canary(&second, 30, None, "test").await.unwrap();
    assert_eq!(place.rollout.watched(), watched, "a larger share is the same trial");
    let route = place.rollout.take_back(&watched[1], "failures".into()).await.unwrap();
    assert_eq!((route.canary, route.live), (None, first));
    assert_eq!(place.rollout.watched(), watched[..1]);
}

#[tokio::test]
async fn what_is_watched_is_watched_after_a_restart_from_then_on() {
    let place = place_with(|config| config.watch.window_s = 3600).await;
    let first = place.import().await;
    place.rollout.activate(&first, None, "test").await.unwrap();
    let before = place.rollout.watched().remove(0);
    let (data, mut config) = (place.data, place.config);
    drop(place.rollout);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (again, _) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    let after = again.watched().remove(0);
    assert!(after.began_ms > before.began_ms);
    assert_eq!(Watched { began_ms: before.began_ms, ..after }, before);
    drop(again);
    config.watch.window_s = 0;
    let (again, _) = rollout(data.path(), &config).await;
    again.restore().await.unwrap();
    assert_eq!(again.watched(), [], "its window is over");
}

#[tokio::test]
async fn work_beside_the_generations_waits_for_live_queries_and_leaves_for_them() {
    let place = place().await;
    let (first, second) = (place.import().await, place.import().await);
    place.rollout.canary(&first, 50, None, "test").await.unwrap();
    place.rollout.shadow(&second, 50, None, "test").await.unwrap();
    let generations = &place.rollout.generations;
    let deadline = || Instant::now() + Duration::from_secs(20);
    let shadow = generations.get(&second).unwrap().admission;
    let short = Duration::from_millis(20);
    for id in [GenerationId::base(), first] {
        let admission = generations.get(&id).unwrap().admission;
        let live = admission.enter("key", deadline()).await.unwrap();
        // There is a second place.
        let behind = generations.behind_live(&shadow).await;
        let more = admission.enter("key", deadline());
        tokio::pin!(more);
        tokio::select! {
            () = behind.preempted() => {}
            _ = &mut more => panic!("all places are taken"),
        }
        let waiting = generations.behind_live(&shadow);
        drop(behind);
        let more = more.await.unwrap();
        assert!(tokio::time::timeout(short, waiting).await.is_err());
        // Who waited with one of the places is in nobody's way.
        drop((live, more));
        let both =
            [admission.enter("key", deadline()).await.unwrap(), admission.enter("key", deadline()).await.unwrap()];
        generations.activity().busy().await;
        assert!(tokio::time::timeout(short, generations.activity().idle()).await.is_err(), "a query is answered");
        drop(both);
        generations.activity().idle().await;
        assert!(tokio::time::timeout(short, generations.activity().busy()).await.is_err());
    }
}
