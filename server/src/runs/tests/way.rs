//! A training process stands still while live queries are answered.

use std::path::PathBuf;

use crate::admission::Permit;

use super::*;

/// Says its id, waits until it may go on, and finishes.
fn waits() -> String {
    started(0) + "echo $$ > id\nmv id pid\nuntil [ -e go ]; do sleep 0.01; done\n" + &finish(true)
}

impl Place {
    async fn training(&self, runs: &Runs) -> (String, PathBuf) {
        self.pair(7, PairState::New);
        let id = asked(runs).await;
        let pid = self.store.run_directory(&id).join("pid");
        until_there(&pid).await;
        (id, Path::new("/proc").join(fs_err::read_to_string(&pid).unwrap().trim()))
    }

    fn let_go_on(&self, id: &str) {
        fs_err::write(self.store.run_directory(id).join("go"), "").unwrap();
    }

    /// A live query that is being answered.
    async fn answering(&self) -> Permit {
        let live = self.generations.live().unwrap();
        live.admission.enter("key", Instant::now() + LIMIT).await.unwrap()
    }
}

fn stands_still(process: &Path) -> bool {
    let stat = fs_err::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|after| after.trim_start().starts_with('T'))
}

async fn until_it_stands_still(process: &Path) {
    let begun = Instant::now();
    while !stands_still(process) {
        assert!(begun.elapsed() < LIMIT, "{} does not stand still", process.display());
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn it_goes_on_when_nobody_is_answered_any_more() {
    let place = Place::with(|config| config.train.min_share = 0.0).await;
    let runs = place.runs(&waits());
    let (id, process) = place.training(&runs).await;
    let live = place.answering().await;
    until_it_stands_still(&process).await;
    place.let_go_on(&id);
    sleep(Duration::from_millis(1200)).await;
    assert!(stands_still(&process));
    drop(live);
    until(&runs, &id, RunState::Succeeded).await;
}

#[tokio::test]
async fn it_has_its_share_where_somebody_always_is() {
    let place = Place::with(|config| config.train.min_share = 0.2).await;
    let runs = place.runs(&waits());
    let (id, process) = place.training(&runs).await;
    let _live = place.answering().await;
    until_it_stands_still(&process).await;
    place.let_go_on(&id);
    until(&runs, &id, RunState::Succeeded).await;
}

#[tokio::test]
async fn one_that_stands_still_can_be_cancelled_paused_and_stopped() {
    let place = Place::with(|config| config.train.min_share = 0.0).await;
    let _live = place.answering().await;
    // It is stopped with its first word.
    let script = format!("echo $$ > id\nmv id pid\n{}read line\n{}", started(0), paused());
    let runs = place.runs(&script);
    let (id, process) = place.training(&runs).await;
    until_it_stands_still(&process).await;
    runs.cancel(&id).await.unwrap();
    let begun = Instant::now();
    while process.exists() {
        assert!(begun.elapsed() < LIMIT, "it is still there");
        sleep(Duration::from_millis(10)).await;
    }

    let (id, process) = place.training(&runs).await;
    until_it_stands_still(&process).await;
    runs.pause(&id).await.unwrap();
    while !told(&runs, &id).await.contains(&"Paused after step 1.".to_owned()) {
        assert!(begun.elapsed() < LIMIT, "it does not pause");
        sleep(Duration::from_millis(10)).await;
    }

    let (_, process) = place.training(&runs).await;
    until_it_stands_still(&process).await;
    let stopping = Instant::now();
    runs.stop().await;
    assert!(stopping.elapsed() < super::super::runs::STOPPING, "it had to be killed");
}
