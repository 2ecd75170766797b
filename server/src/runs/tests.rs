//! The task, with a shell script in the place of the training process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reground_learner::bpo::metrics::StepMetrics;
use reground_learner::bpo::pair::{Message, NegativeKind, Part, PreferencePair, Role, Source};
use reground_learner::bpo::progress::Event;
use reground_learner::gate::{Check, GateReport, Outcome};
use reground_learner::store::rows::{AdapterRow, AdapterState, EventKind, Pair, PairState, Run, RunState};
use reground_learner::store::{Options, Query, Store, id};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::*;
use crate::api::testing::Echo;
use crate::config::{AfterGate, Config};
use crate::engine::GenerationId;
use crate::engine::source::golden;
use crate::rollout::{Generations, Origin, Rollout};

mod ends;
mod interference;
mod pictures;
mod way;

/// No state of these tests takes longer to come, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A data directory with pairs, and what trains in it.
struct Place {
    dir: TempDir,
    config: Config,
    store: Arc<Store>,
    generations: Arc<Generations>,
    rollout: Arc<Rollout>,
}

/// Prints what a library prints, and bytes that are no text.
const LIBRARY: &str = "echo hello\nprintf '\\377\\376\\n'\nprintf '\\377\\n' >&2\n";

/// Shell words that say an event.
fn say(event: &Event) -> String {
    format!("echo '{}'\n", serde_json::to_string(event).unwrap())
}

fn started(step: u64) -> String {
    say(&Event::Started { step, total_steps: 2, examples: 3, held_out: 1, parameters: 9 })
}

fn step(step: u64) -> String {
    say(&Event::Step(StepMetrics { step, loss: 0.5, ..StepMetrics::default() }))
}

fn paused() -> String {
    say(&Event::Paused { step: 1 })
}

/// The adapter, the gate's verdict and the last words.
fn finish(passed: bool) -> String {
    let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
    let check = Check {
        name: "held-out pairs: Cover".into(),
        outcome,
        rule: "falls by less than 0.03".into(),
        start: Some(0.8),
        candidate: Some(0.5),
        difference: Some(-0.3),
        low: Some(-0.4),
        high: Some(-0.2),
        items: 40,
        collapse: true,
    };
    let report = GateReport {
        passed,
        base_digest: "0".repeat(64),
        dataset_digest: "1".repeat(64),
        pairs: 40,
        checks: vec![check],
    };
    let report = serde_json::to_string(&report).unwrap();
    let failed = if passed { Vec::new() } else { vec!["held-out pairs: Cover".to_owned()] };
    let adapter = golden("adapter");
    let said = say(&Event::Finished { step: 2, stopped_early: false, adapter_step: 2 })
        + &say(&Event::Gated { passed, failed });
    format!("rm -rf adapter\ncp -r '{}' adapter\necho '{report}' > gate.json\n{said}", adapter.display())
}

impl Place {
    async fn new() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(set: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.train.min_pairs = 0;
        set(&mut config);
        let store = Store::open(dir.path().join("data"), Options { min_free_bytes: 0, ..Options::default() }).unwrap();
        let store = Arc::new(store);
        let generations = Generations::start(Arc::new(Echo::new(false)), config.admission.clone()).await.unwrap();
        let generations = Arc::new(generations);
        let rollout = Arc::new(Rollout::new(generations.clone(), store.clone(), &config));
        let place = Self { dir, config, store, generations, rollout };
        for number in 0..4 {
            place.pair(number, PairState::New);
        }
        place
    }

    fn pair(&self, number: usize, state: PairState) -> String {
        let content = vec![Part::Text { text: format!("What is number {number}?") }];
        let data = PreferencePair {
            id: id::new("pair"),
            images: Vec::new(),
            conversation: vec![Message { role: Role::User, content }],
            chosen: "A circle.".into(),
            rejected: Some("A square.".into()),
            distortion: None,
            source: Source::Correction,
            negative: Some(NegativeKind::Injected),
        };
        let row = Pair {
            created_ms: id::now_ms(),
            record: None,
            generation: None,
            feedback: None,
            made: None,
            key: None,
            filters: std::collections::BTreeMap::new(),
            state,
            reason: None,
            reviews: Vec::new(),
            runs: Vec::new(),
            data,
        };
        self.store.insert(&row).unwrap();
        row.data.id
    }

    /// Runs that are trained by a script, which begins in the run's directory.
    fn runs(&self, script: &str) -> Runs {
        self.runs_on(Base { checkpoint: "pocket".into(), source: "builtin".into(), digest: None }, script)
    }

    /// The same where this model is served.
    fn runs_on(&self, base: Base, script: &str) -> Runs {
        let path = self.dir.path().join("train.sh");
        fs_err::write(&path, format!("cd \"$2\"\n{script}")).unwrap();
        let program = Program { path: "/bin/sh".into(), arguments: vec![path.into()] };
        Runs::start(self.store.clone(), self.rollout.clone(), &self.config, base, program)
    }

    fn in_state(&self, state: &str) -> usize {
        self.store.count::<Pair>(&Query::by("state", state)).unwrap()
    }
}

async fn asked(runs: &Runs) -> String {
    runs.create(RunRequest::default(), "test").await.unwrap().id
}

/// Waits until a run is in a state; it must not get into another one that is an end.
async fn until(runs: &Runs, id: &str, state: RunState) -> Run {
    let begun = Instant::now();
    loop {
        let run = runs.get(id).await.unwrap();
        if run.state == state {
            return run;
        }
        let over = matches!(run.state, RunState::Succeeded | RunState::Failed | RunState::Cancelled);
        assert!(!over && begun.elapsed() < LIMIT, "{run:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn until_there(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < LIMIT, "{} does not come", path.display());
        sleep(Duration::from_millis(10)).await;
    }
}

async fn told(runs: &Runs, id: &str) -> Vec<String> {
    let mut events = runs.events(id, false, None, 0).await.unwrap().rows;
    events.reverse();
    events.into_iter().map(|event| event.message).collect()
}

#[tokio::test]
async fn a_run_succeeds_and_its_adapter_goes_live() {
    let place = Place::new().await;
    place.pair(9, PairState::Review);
    let checkpoint = say(&Event::Checkpoint { step: 2, path: "checkpoints/step-2".into() });
    let runs = place.runs(&(started(0) + LIBRARY + &step(1) + &step(2) + &checkpoint + &finish(true)));
    let id = asked(&runs).await;
    let run = until(&runs, &id, RunState::Succeeded).await;
    let adapter = run.adapter.unwrap();
    assert_eq!(place.rollout.route().live, GenerationId::from(adapter.as_str()));
    assert_eq!((run.parent.as_str(), run.pairs, run.restarts, run.error), ("base", 4, 0, None));
    assert_eq!((place.in_state("used"), place.in_state("review")), (4, 1), "what waits for review is not trained on");
    let manifest = place.rollout.adapter(&adapter).await.unwrap();
    assert_eq!((manifest.run, manifest.dataset_digest), (Some(id.clone()), run.dataset_digest));
    let row: AdapterRow = place.store.need(&adapter).unwrap();
    assert_eq!((row.state, row.gate.unwrap().checks.len()), (AdapterState::Passed, 1));
    let told = told(&runs, &id).await;
    assert!(told[0].starts_with("Training begins: 2 steps") && told.last().unwrap().ends_with("is live."), "{told:?}");
    assert_eq!(runs.events(&id, true, None, 0).await.unwrap().rows.len(), 1);
    let directory = place.store.run_directory(&id);
    assert!(directory.join("run.toml").is_file() && directory.join("gate.toml").is_file());
}

#[tokio::test]
async fn what_the_gate_refuses_is_kept_and_never_goes_live() {
    let place = Place::new().await;
    let runs = place.runs(&(started(0) + &finish(false)));
    let id = asked(&runs).await;
    let run = until(&runs, &id, RunState::Failed).await;
    assert_eq!(run.error.as_deref(), Some("the gate did not pass: held-out pairs: Cover"));
    assert!(run.refused && run.adapter.is_none());
    assert_eq!(place.rollout.route().live, GenerationId::base());
    assert_eq!(place.rollout.adapters().await.unwrap(), [], "nothing that could be activated");
    assert!(place.store.run_directory(&id).join("adapter/adapter_model.safetensors").is_file());
    assert!(!runs.gate(&id).await.unwrap().unwrap().passed);
}

#[tokio::test]
async fn a_process_that_dies_is_started_again() {
    let place = Place::new().await;
    let script = started(0)
        + &step(1)
        + "echo x >> starts\n[ $(wc -l < starts) -ge 3 ] || kill -9 $$\n"
        + &step(2)
        + &finish(true);
    let runs = place.runs(&script);
    let id = asked(&runs).await;
    let run = until(&runs, &id, RunState::Succeeded).await;
    assert_eq!(run.restarts, 2);
    let events = runs.events(&id, false, None, 0).await.unwrap().rows;
    let steps = events.iter().filter(|event| event.kind == EventKind::Metrics).count();
    assert_eq!(steps, 2, "a step that comes again is told once");
    assert!(events.iter().any(|event| event.message.contains("signal: 9")), "{:?}", told(&runs, &id).await);
}

#[tokio::test]
async fn one_that_always_dies_fails_and_so_does_one_that_says_why() {
    let place = Place::with(|config| config.train.max_resumes = 1).await;
    let runs = place.runs("echo the last words >&2\nexit 7\n");
    let id = asked(&runs).await;
    let error = until(&runs, &id, RunState::Failed).await.error.unwrap();
    assert!(error.contains("died 2 times") && error.ends_with("exit status: 7: the last words"), "{error}");

    let place = Place::new().await;
    let runs = place.runs(&say(&Event::Failed { reason: "the loss is no number".into() }));
    let id = asked(&runs).await;
    let run = until(&runs, &id, RunState::Failed).await;
    assert_eq!((run.error.as_deref(), run.restarts), (Some("the loss is no number"), 0));
}

#[tokio::test]
async fn pairs_of_a_run_that_failed_before_its_first_step_are_for_another_run() {
    for (steps, new, used) in [(String::new(), 4, 0), (step(1), 0, 4)] {
        let place = Place::new().await;
        let runs = place.runs(&(started(0) + &steps + &say(&Event::Failed { reason: "no memory".into() })));
        let id = asked(&runs).await;
        let run = until(&runs, &id, RunState::Failed).await;
        assert_eq!((place.in_state("new"), place.in_state("used")), (new, used));
        assert_eq!(run.dataset_digest.is_none(), new > 0, "{run:?}");
        assert_eq!(place.store.count::<Pair>(&Query::by("run", id)).unwrap(), used);
    }
}

#[tokio::test]
async fn what_was_trained_on_another_model_does_not_go_live() {
    let place = Place::new().await;
    let base = Base { checkpoint: "pocket".into(), source: "builtin".into(), digest: Some("2".repeat(64)) };
    let runs = place.runs_on(base, &(started(0) + &step(1) + &finish(true)));
    let id = asked(&runs).await;
    let error = until(&runs, &id, RunState::Failed).await.error.unwrap();
    assert!(error.contains("another model"), "{error}");
    assert_eq!(place.rollout.adapters().await.unwrap(), []);
}

/// Waits for a word; goes on at once when it was there before.
fn waits_once(word: &str, then: &str) -> String {
    format!("if [ ! -e waited ]; then touch waited; read line; [ \"$line\" = {word} ] && {then} exit 0; fi\n")
}

#[tokio::test]
async fn a_run_is_paused_and_goes_on() {
    let place = Place::new().await;
    let said = paused();
    let runs = place.runs(&(started(0) + &waits_once("pause", &format!("{};", said.trim())) + &finish(true)));
    let id = asked(&runs).await;
    until_there(&place.store.run_directory(&id).join("waited")).await;
    assert_eq!(runs.pause(&id).await.unwrap().state, RunState::Paused);
    assert!(matches!(runs.pause(&id).await, Err(RunsError::State { .. })));
    // The next one has its turn meanwhile.
    place.pair(5, PairState::Accepted);
    let other = asked(&runs).await;
    until_there(&place.store.run_directory(&other).join("waited")).await;
    runs.cancel(&other).await.unwrap();
    assert_eq!(runs.get(&id).await.unwrap().state, RunState::Paused);
    runs.resume(&id).await.unwrap();
    let run = until(&runs, &id, RunState::Succeeded).await;
    assert_eq!((run.restarts, run.pairs), (0, 4), "its pairs are those that it began with");
    assert!(told(&runs, &id).await.contains(&"Paused after step 1.".to_owned()));
}

#[tokio::test]
async fn a_cancelled_run_ends_its_process() {
    let place = Place::new().await;
    let runs = place.runs(&(started(0) + "echo $$ > pid\nsleep 600 & wait\n"));
    let id = asked(&runs).await;
    let pid = place.store.run_directory(&id).join("pid");
    until_there(&pid).await;
    let begun = Instant::now();
    while fs_err::read_to_string(&pid).unwrap().trim().is_empty() {
        assert!(begun.elapsed() < LIMIT);
        sleep(Duration::from_millis(10)).await;
    }
    let process = Path::new("/proc").join(fs_err::read_to_string(&pid).unwrap().trim());
    assert!(process.exists());
    assert_eq!(runs.cancel(&id).await.unwrap().state, RunState::Cancelled);
    while process.exists() {
        assert!(begun.elapsed() < LIMIT, "the process still runs");
        sleep(Duration::from_millis(10)).await;
    }
    assert!(matches!(runs.resume(&id).await, Err(RunsError::State { .. })));
    assert_eq!(place.rollout.route().live, GenerationId::base());
}

#[tokio::test]
async fn a_run_in_hand_goes_on_after_a_restart() {
    let place = Place::new().await;
    let said = paused();
    let script = started(0) + &waits_once("pause", &format!("{};", said.trim())) + &finish(true);
    let runs = place.runs(&script);
    let id = asked(&runs).await;
    until_there(&place.store.run_directory(&id).join("waited")).await;
    runs.stop().await;
    assert_eq!(runs.get(&id).await.unwrap().state, RunState::Running);
    let again = place.runs(&script);
    let run = until(&again, &id, RunState::Succeeded).await;
    assert_eq!(run.restarts, 0);
}

#[tokio::test]
async fn an_adapter_goes_where_the_configuration_says() {
    for (after, canary, shadow) in
        [(AfterGate::Hold, false, false), (AfterGate::Canary, true, false), (AfterGate::Shadow, false, true)]
    {
        let place = Place::with(|config| config.rollout.after_gate = after).await;
        let runs = place.runs(&finish(true));
        let id = asked(&runs).await;
        let run = until(&runs, &id, RunState::Succeeded).await;
        let route = place.rollout.route();
        assert_eq!(route.live, GenerationId::base());
        assert_eq!((route.canary.is_some(), route.shadow.is_some()), (canary, shadow), "{after:?}");
        assert!(place.rollout.adapter(&run.adapter.unwrap()).await.is_ok());
    }
}

#[tokio::test]
async fn nothing_takes_the_place_of_what_is_pinned() {
    let place = Place::new().await;
    place.rollout.pin(&GenerationId::base(), true, None, "somebody").await.unwrap();
    let runs = place.runs(&finish(true));
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    assert_eq!(place.rollout.route().live, GenerationId::base());
    assert!(
        told(&runs, &id).await.last().unwrap().ends_with("`base` is pinned, so that nothing takes its place by itself")
    );
}

#[tokio::test]
async fn an_adapter_that_continued_what_is_no_longer_live_is_only_kept() {
    let place = Place::new().await;
    let runs = place.runs(&(started(0) + &waits_once("go", "") + &finish(true)));
    let id = asked(&runs).await;
    until_there(&place.store.run_directory(&id).join("waited")).await;
    let other = place.rollout.import(golden("adapter"), Origin::default()).await.unwrap().id;
    let other = GenerationId::from(other.as_str());
    place.rollout.activate(&other, None, "somebody").await.unwrap();
    // Anything that makes the script go on.
    runs.pause(&id).await.unwrap();
    runs.resume(&id).await.unwrap();
    until(&runs, &id, RunState::Succeeded).await;
    assert_eq!(place.rollout.route().live, other);
    assert!(told(&runs, &id).await.last().unwrap().contains("not put before callers"));
}

#[tokio::test]
async fn a_run_continues_what_is_live_and_replays_earlier_pairs() {
    let place = Place::with(|config| config.train.replay_share = 0.5).await;
    let runs = place.runs(&finish(true));
    let first = asked(&runs).await;
    let first = until(&runs, &first, RunState::Succeeded).await;
    assert!(matches!(runs.create(RunRequest::default(), "test").await, Err(RunsError::NoData(_))));
    for number in 10..12 {
        place.pair(number, PairState::New);
    }
    let second = asked(&runs).await;
    let second = until(&runs, &second, RunState::Succeeded).await;
    assert_eq!((second.parent, second.pairs), (first.adapter.unwrap(), 4), "two new pairs and as many earlier ones");
    let settings = fs_err::read_to_string(place.store.run_directory(&second.id).join("run.toml")).unwrap();
    assert!(settings.contains("../../adapters/ad-"), "{settings}");
    let all = RunRequest { training: Training::All, parent: Some("base".into()), ..RunRequest::default() };
    let third = runs.create(all, "test").await.unwrap().id;
    let third = until(&runs, &third, RunState::Succeeded).await;
    assert_eq!((third.parent.as_str(), third.pairs), ("base", 6));
}

#[tokio::test]
async fn a_run_mixes_in_the_anchors_that_it_was_asked_for() {
    let place = Place::with(|config| config.train.anchor_share = 0.5).await;
    // Its own copy goes when the run is over.
    let runs = place.runs(&format!("cp dataset.jsonl kept.jsonl\n{}", finish(true)));
    let line = |number| {
        let turns =
            json!([{"from": "human", "value": format!("Is {number} even?")}, {"from": "gpt", "value": "It depends."}]);
        format!("{}\n", json!({"conversations": turns}))
    };
    let annotated: String = (0..9).map(line).collect();
    let path = place.dir.path().join("annotated.jsonl");
    fs_err::write(&path, annotated).unwrap();
    let upload = files::Upload { filename: "annotated.jsonl".into(), key: "test".into() };
    let file = files::add(&place.store, &path, upload).unwrap().id;
    let request = RunRequest { anchors: Some(vec![file.clone()]), ..RunRequest::default() };
    let id = runs.create(request, "test").await.unwrap().id;
    let run = until(&runs, &id, RunState::Succeeded).await;
    assert_eq!(run.pairs, 8, "four collected pairs and as many of the nine annotations");
    let dataset = fs_err::read_to_string(place.store.run_directory(&id).join("kept.jsonl")).unwrap();
    assert_eq!(dataset.lines().filter(|line| line.contains("It depends.")).count(), 4);
}

#[tokio::test]
async fn what_cannot_be_trained_is_refused() {
    let place = Place::with(|config| config.train.enabled = false).await;
    let runs = place.runs("");
    assert!(matches!(runs.create(RunRequest::default(), "test").await, Err(RunsError::Disabled)));
    let place = Place::new().await;
    let runs = place.runs("");
    let parent = RunRequest { parent: Some("ad-1".into()), ..RunRequest::default() };
    assert!(matches!(runs.create(parent, "test").await, Err(RunsError::UnknownGeneration(_))));
    let file = RunRequest { training: Training::File("file-1".into()), ..RunRequest::default() };
    assert!(matches!(runs.create(file, "test").await, Err(RunsError::UnknownFile(_))));
    let anchors = RunRequest { anchors: Some(vec!["file-2".into()]), ..RunRequest::default() };
    assert!(matches!(runs.create(anchors, "test").await, Err(RunsError::UnknownFile(id)) if id == "file-2"));
    assert!(matches!(runs.get("ftjob-1").await, Err(RunsError::UnknownRun(_))));
}

#[tokio::test]
async fn a_run_is_due_by_number_and_by_time() {
    const HOUR: u64 = 3_600_000;
    let place = Place::new().await;
    let mut train = place.config.train.clone();
    let mut due = |min_pairs: usize, interval_hours: u64, later: u64| {
        (train.min_pairs, train.interval_hours) = (min_pairs, interval_hours);
        trigger::due(&place.store, &train, id::now_ms() + later).unwrap()
    };
    assert_eq!([due(0, 0, 9 * HOUR), due(5, 0, 9 * HOUR), due(0, 2, HOUR)], [None; 3]);
    assert_eq!((due(4, 0, 0), due(5, 2, 2 * HOUR)), (Some("pairs"), Some("schedule")));
    let runs = place.runs(&finish(true));
    let id = asked(&runs).await;
    until(&runs, &id, RunState::Succeeded).await;
    assert_eq!(due(1, 1, 9 * HOUR), None, "no new pair, no run");
    place.pair(8, PairState::Accepted);
    assert_eq!((due(2, 2, HOUR), due(2, 2, 2 * HOUR)), (None, Some("schedule")));
}
