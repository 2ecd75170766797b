//! What people, the configuration and damage do to runs from outside.

use reground_learner::store::rows::Row;

use super::*;
use crate::rollout::{LibraryError, RolloutError};
use crate::runs::dataset::Collected;

#[tokio::test]
async fn what_a_reviewer_decides_while_a_run_begins_holds() {
    let place = Place::new().await;
    let runs = place.runs(&finish(true));
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    runs.stop().await;
    place.store.update::<Run>(&id, |run| (run.state, run.adapter) = (RunState::Queued, None)).unwrap();
    let states = [PairState::New, PairState::Accepted, PairState::Accepted, PairState::Discarded, PairState::Review];
    let pairs = states.map(|state| place.pair(7, state));
    let frozen = pairs.each_ref().map(|pair| Collected::new(&place.store.need::<Pair>(pair).unwrap().data));
    // The answers are swapped: what the run has of it is the other way round.
    let swap = |pair: &mut Pair| {
        let rejected = pair.data.rejected.take().unwrap();
        pair.data.rejected = Some(std::mem::replace(&mut pair.data.chosen, rejected));
    };
    place.store.update::<Pair>(&pairs[2], swap).unwrap();
    runs.shared.run(id.clone(), |_| (), frozen.into()).await.unwrap().unwrap();
    let now = pairs.map(|pair| place.store.need::<Pair>(&pair).unwrap());
    assert_eq!(
        now.each_ref().map(|pair| pair.state),
        [PairState::Used, PairState::Used, PairState::Accepted, PairState::Discarded, PairState::Review]
    );
    assert!(now.iter().all(|pair| pair.runs == [id.clone()]), "all of them are in the run");
}

#[tokio::test]
async fn nothing_begins_or_goes_on_while_training_is_off() {
    let mut place = Place::new().await;
    let runs = place.runs(&(started(0) + &waits_once("pause", &format!("{};", paused().trim()))));
    let id = asked(&runs).await;
    until_there(&place.store.run_directory(&id).join("waited")).await;
    place.pair(9, PairState::New);
    let waiting = asked(&runs).await;
    runs.stop().await;
    place.config.train.enabled = false;
    let off = place.runs(&(started(0) + "touch started-again\n" + &finish(true)));
    sleep(Duration::from_secs(1)).await;
    assert!(!place.store.run_directory(&id).join("started-again").exists());
    assert_eq!(off.get(&id).await.unwrap().state, RunState::Running);
    assert_eq!(off.get(&waiting).await.unwrap().state, RunState::Queued);
    // It can be got rid of, and goes on when training is on again.
    off.cancel(&waiting).await.unwrap();
    off.stop().await;
    place.config.train.enabled = true;
    let on = place.runs(&(started(0) + &finish(true)));
    until(&on, &id, RunState::Succeeded).await;
}

#[tokio::test]
async fn what_keeps_a_run_from_beginning_is_not_tried_again_at_once() {
    const HOUR: u64 = 3_600_000;
    let place = Place::with(|config| config.train.anchors = vec!["file-gone".into()]).await;
    let runs = place.runs(&finish(true));
    let train = place.config.train.clone();
    let due = |later: u64| {
        let train = crate::config::TrainConfig { min_pairs: 4, ..train.clone() };
        trigger::due(&place.store, &train, id::now_ms() + later).unwrap()
    };
    assert_eq!(due(0), Some("pairs"));
    let run = runs.create(RunRequest::default(), "pairs").await.unwrap().id;
    let run = until(&runs, &run, RunState::Failed).await;
    assert!(run.dataset_digest.is_none() && run.error.unwrap().contains("file-gone"));
    assert_eq!((due(0), due(HOUR / 2), due(HOUR + 1000)), (None, None, Some("pairs")));
    // What somebody asked for, and what failed later, keeps nothing back.
    place.store.update::<Run>(&run.id, |run| run.trigger = "somebody".into()).unwrap();
    assert_eq!(due(0), Some("pairs"));
    let failed = |run: &mut Run| (run.trigger, run.dataset_digest) = ("pairs".into(), Some("0".repeat(64)));
    place.store.update::<Run>(&run.id, failed).unwrap();
    assert_eq!(due(0), Some("pairs"));
}

#[test]
fn a_full_disk_is_waited_for_and_what_does_not_mend_is_not() {
    use std::io::{Error, ErrorKind};
    assert!(crate::runs::runs::is_outage(&Error::from(ErrorKind::StorageFull).into()));
    // What the run continues cannot be read while there are too many open files.
    let unread = RolloutError::Library(LibraryError::Io(Error::from_raw_os_error(24)));
    assert!(crate::runs::runs::is_outage(&unread.into()));
    for kind in [ErrorKind::NotFound, ErrorKind::InvalidInput, ErrorKind::Other] {
        assert!(!crate::runs::runs::is_outage(&Error::from(kind).into()));
    }
}

/// A row under the name of a run that is none.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Broken {
    id: String,
    state: String,
}

impl Row for Broken {
    const KIND: &'static str = Run::KIND;
    const PREFIX: &'static str = Run::PREFIX;

    fn id(&self) -> &str {
        &self.id
    }

    fn indexes(&self) -> Vec<(&'static str, String)> {
        vec![("state", self.state.clone())]
    }
}

#[tokio::test]
async fn a_damaged_row_stops_no_other_run() {
    let place = Place::new().await;
    // Older than any other, so that they come first wherever runs are looked for.
    for state in ["running", "queued", "failed", "succeeded"] {
        place.store.insert(&Broken { id: format!("ftjob-0-{state}"), state: state.to_owned() }).unwrap();
    }
    let runs = place.runs(&finish(true));
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    let listed = runs.list(Query { limit: 3, ..Query::default() }).await.unwrap();
    assert_eq!(listed.rows.iter().map(|run| run.id.as_str()).collect::<Vec<_>>(), [id.as_str()]);
    // Nor the triggers.
    place.pair(9, PairState::New);
    let train = crate::config::TrainConfig { min_pairs: 1, ..place.config.train.clone() };
    assert_eq!(trigger::due(&place.store, &train, id::now_ms()).unwrap(), Some("pairs"));
}
