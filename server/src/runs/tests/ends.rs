//! What is left of a run, and what its end may still change.

use super::*;
use crate::runs::journal::Journal;

/// Files of a run as training leaves them.
const TRAINED: &str =
    "mkdir -p checkpoints/step-1\ntouch reference.safetensors reference-held-out.safetensors metrics.jsonl\n";

/// Waits until nothing of a run's data is left.
async fn until_clean(directory: &Path) {
    let data = ["blobs", "dataset.jsonl", "reference.safetensors", "reference-held-out.safetensors", "checkpoints"];
    let begun = Instant::now();
    while let Some(left) = data.iter().find(|name| directory.join(name).exists()) {
        assert!(begun.elapsed() < LIMIT, "{left} stays");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn data_go_when_a_run_is_over_and_the_adapter_stays() {
    let place = Place::new().await;
    let runs = place.runs(&(started(0) + TRAINED + "cp dataset.jsonl seen\n" + &finish(true)));
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    let directory = place.store.run_directory(&id);
    until_clean(&directory).await;
    for kept in ["run.toml", "gate.toml", "gate.json", "metrics.jsonl", "adapter/adapter_model.safetensors", "seen"] {
        assert!(directory.join(kept).is_file(), "{kept}");
    }

    // Cancelled while its process works, and while it waits.
    let place = Place::new().await;
    let runs = place.runs(&(started(0) + TRAINED + "touch waited\nsleep 600 & wait\n"));
    let [first, second] = [asked(&runs).await, asked(&runs).await];
    until_there(&place.store.run_directory(&first).join("waited")).await;
    for id in [&second, &first] {
        runs.cancel(id).await.unwrap();
        until_clean(&place.store.run_directory(id)).await;
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_while_its_pairs_are_frozen_leaves_none() {
    let place = Place::new().await;
    let runs = place.runs("");
    runs.stop().await;
    let run = runs.shared.new_run(RunRequest::default(), "test");
    // What the task read a moment before the cancellation.
    place.store.insert(&Run { state: RunState::Cancelled, ..run.clone() }).unwrap();
    let directory = place.store.run_directory(&run.id);
    runs.shared.attend(run).await.unwrap();
    assert!(directory.join("run.toml").is_file(), "it froze its pairs");
    assert!(!directory.join("dataset.jsonl").exists() && !directory.join("blobs").exists());
    assert_eq!(place.in_state("new"), 4, "its pairs are for another run");
}

#[tokio::test]
async fn data_that_a_stopped_server_left_go_when_it_starts() {
    let place = Place::new().await;
    let runs = place.runs(&finish(true));
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    runs.stop().await;
    let directory = place.store.run_directory(&id);
    fs_err::write(directory.join("dataset.jsonl"), "a pair").unwrap();
    fs_err::create_dir_all(directory.join("blobs")).unwrap();
    let _again = place.runs("");
    until_clean(&directory).await;
}

#[tokio::test]
async fn a_run_whose_adapter_goes_live_is_neither_cancelled_nor_paused() {
    let place = Place::new().await;
    let runs = place.runs(&finish(true));
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    runs.stop().await;
    // As it is between the decision and the change of the route.
    let set = |state: RunState, adapter: Option<&str>| {
        let set = |run: &mut Run| (run.state, run.adapter) = (state, adapter.map(str::to_owned));
        place.store.update::<Run>(&id, set).unwrap();
    };
    set(RunState::Running, Some("ad-1"));
    assert!(matches!(runs.cancel(&id).await, Err(RunsError::Concluded { .. })));
    assert!(matches!(runs.pause(&id).await, Err(RunsError::Concluded { .. })));
    // And the other way round: what is cancelled or paused first is not decided about.
    for (state, goes) in [(RunState::Cancelled, false), (RunState::Paused, false), (RunState::Running, true)] {
        set(state, None);
        assert_eq!(runs.shared.decide(&id, "ad-1").await.unwrap(), goes, "{state:?}");
        assert_eq!(runs.get(&id).await.unwrap().adapter.is_some(), goes, "{state:?}");
    }
}

#[tokio::test]
async fn an_adapter_that_was_taken_back_does_not_return_after_a_restart() {
    let place = Place::new().await;
    let script = finish(true);
    let runs = place.runs(&script);
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    runs.stop().await;
    place.rollout.rollback(None, "somebody").await.unwrap();
    // As it is when the server stopped before the end was written.
    place.store.update::<Run>(&id, |run| (run.state, run.finished_ms) = (RunState::Running, None)).unwrap();
    let again = place.runs(&script);
    let run = until(&again, &id, RunState::Succeeded).await;
    assert_eq!(place.rollout.route().live, GenerationId::base());
    assert_eq!(place.rollout.adapters().await.unwrap().len(), 1);
    assert!(run.adapter.is_some());
    assert!(told(&again, &id).await.last().unwrap().ends_with("was put before callers already."));
    again.stop().await;
    // The same where the end could not be written at first and is tried again, with what was known of the run before.
    place.store.update::<Run>(&id, |run| (run.state, run.finished_ms) = (RunState::Running, None)).unwrap();
    again.shared.conclude(&Run { adapter: None, ..run }, &Journal::new(&id)).await.unwrap();
    assert_eq!(place.rollout.route().live, GenerationId::base());
}
