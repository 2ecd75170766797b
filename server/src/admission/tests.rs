//! Tests of the whole queue; those of its parts are with the parts.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use proptest::prelude::*;
use rand::Rng;

use super::*;

fn admission(parallel: usize) -> Arc<Admission> {
    bounded(parallel, 1000, 1000)
}

fn ahead(parallel: usize, look_ahead: usize) -> Arc<Admission> {
    Arc::new(Admission::new(&AdmissionConfig::default(), parallel, look_ahead, false))
}

fn apart(parallel: usize, look_ahead: usize) -> Arc<Admission> {
    Arc::new(Admission::new(&AdmissionConfig::default(), parallel, look_ahead, true))
}

fn bounded(parallel: usize, queue: usize, queue_per_key: usize) -> Arc<Admission> {
    Arc::new(Admission::new(
        &AdmissionConfig { queue, queue_per_key, ..AdmissionConfig::default() },
        parallel,
        0,
        false,
    ))
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

type Waiting<T> = Pin<Box<dyn Future<Output = T>>>;

/// A request that is polled by hand; it has joined the queue when this returns.
fn wait(admission: &Arc<Admission>, key: &str) -> Waiting<Result<Permit, AdmissionError>> {
    let (admission, key) = (Arc::clone(admission), key.to_owned());
    Box::pin(async move { admission.enter(&key, later()).await })
}

fn wait_in_background(admission: &Arc<Admission>) -> Waiting<BackgroundPermit> {
    let admission = Arc::clone(admission);
    Box::pin(async move { admission.background().await })
}

/// One poll.
fn take<T>(waiting: &mut Waiting<T>) -> Option<T> {
    waiting.as_mut().now_or_never()
}

fn snapshot(waiting: usize, running: usize, background: usize) -> Snapshot {
    Snapshot { waiting, running, background }
}

#[tokio::test]
async fn as_many_as_there_are_places_go_in() {
    let admission = admission(2);
    let first = admission.enter("a", later()).await.unwrap();
    let second = admission.enter("a", later()).await.unwrap();
    let mut third = wait(&admission, "a");
    assert!(take(&mut third).is_none());
    assert_eq!(admission.snapshot(), snapshot(1, 2, 0));
    drop(first);
    let third = take(&mut third).unwrap().unwrap();
    drop((second, third));
    assert_eq!(admission.snapshot(), Snapshot::default());
}

#[tokio::test]
async fn no_places_means_one() {
    assert!(admission(0).enter("a", later()).await.is_ok());
}

#[tokio::test]
async fn one_request_beside_a_flood_is_served_second() {
    let admission = admission(1);
    let mut inside = Some(admission.enter("c", later()).await.unwrap());
    let mut waiting: Vec<_> = (0..100).map(|_| ("a", wait(&admission, "a"))).collect();
    waiting.push(("b", wait(&admission, "b")));
    for (_, request) in &mut waiting {
        assert!(take(request).is_none());
    }
    let mut order = String::new();
    while !waiting.is_empty() {
        drop(inside.take());
        let served: Vec<usize> = (0..waiting.len())
            .filter(|&index| take(&mut waiting[index].1).is_some_and(|p| inside.replace(p.unwrap()).is_none()))
            .collect();
        assert_eq!(served.len(), 1, "one place, one request");
        order.push_str(waiting.remove(served[0]).0);
    }
    assert!(order.starts_with("aba"), "{order}");
    assert_eq!(order.len(), 101);
}

#[tokio::test]
async fn a_full_queue_says_how_many_wait_and_for_how_long() {
    let admission = bounded(1, 3, 2);
    let inside = admission.enter("a", later()).await.unwrap();
    let mut waiting: Vec<_> = ["a", "a"].map(|key| wait(&admission, key)).into();
    waiting.iter_mut().for_each(|request| assert!(take(request).is_none()));
    let full = |waiting| AdmissionError::Full { waiting, retry_after: Duration::from_secs(1) };
    assert_eq!(admission.enter("a", later()).await.unwrap_err(), full(2), "the key's own limit");
    waiting.push(wait(&admission, "b"));
    assert!(take(&mut waiting[2]).is_none());
    assert_eq!(admission.enter("c", later()).await.unwrap_err(), full(3), "the limit of all");
    assert_eq!(admission.snapshot(), snapshot(3, 1, 0), "who was refused left nothing behind");
    drop(waiting.pop());
    assert!(take(&mut wait(&admission, "c")).is_none(), "who gave up makes room");
    drop(inside);
}

#[tokio::test]
async fn the_deadline_holds_in_the_queue() {
    let admission = admission(1);
    assert_eq!(admission.enter("a", Instant::now()).await.unwrap_err(), AdmissionError::Deadline, "passed on arrival");
    let inside = admission.enter("a", later()).await.unwrap();
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(admission.enter("a", deadline).await.unwrap_err(), AdmissionError::Deadline);
    assert!(Instant::now() >= deadline);
    assert_eq!(admission.snapshot(), snapshot(0, 1, 0));
    drop(inside);
    assert!(take(&mut wait(&admission, "a")).is_some());
}

#[tokio::test]
async fn a_place_that_was_granted_and_not_taken_is_passed_on() {
    let admission = admission(1);
    let inside = admission.enter("a", later()).await.unwrap();
    let (mut first, mut second) = (wait(&admission, "a"), wait(&admission, "a"));
    assert!(take(&mut first).is_none() && take(&mut second).is_none());
    drop(inside);
    drop(first);
    assert!(take(&mut second).unwrap().is_ok());
}

#[tokio::test]
async fn a_permit_outlives_the_queue() {
    let admission = admission(1);
    let inside = admission.enter("a", later()).await.unwrap();
    drop(admission);
    drop(inside);
}

#[tokio::test]
async fn background_work_takes_only_what_nobody_wants() {
    let admission = admission(1);
    let live = admission.enter("a", later()).await.unwrap();
    let mut background = wait_in_background(&admission);
    let mut next = wait(&admission, "a");
    assert!(take(&mut background).is_none() && take(&mut next).is_none());
    drop(live);
    assert!(take(&mut background).is_none(), "a live request goes first, whoever came first");
    drop(take(&mut next).unwrap());
    let background = take(&mut background).unwrap();
    assert!(!background.is_preempted());
    assert_eq!(admission.snapshot(), snapshot(0, 0, 1));
}

#[tokio::test]
async fn a_live_request_preempts_background_work_and_waits_for_it() {
    let admission = admission(1);
    let background = admission.background().await;
    let mut more = wait_in_background(&admission);
    let mut live = wait(&admission, "a");
    assert!(take(&mut more).is_none() && take(&mut live).is_none());
    assert!(background.is_preempted());
    background.preempted().await;
    assert!(take(&mut live).is_none(), "not before it left");
    assert_eq!(admission.snapshot(), snapshot(1, 0, 1));
    drop(background);
    let live = take(&mut live).unwrap().unwrap();
    assert!(take(&mut more).is_none());
    drop(live);
    assert!(take(&mut more).is_some());
}

#[tokio::test]
async fn as_much_background_work_as_needed_is_preempted_newest_first() {
    let admission = admission(3);
    let background = [admission.background().await, admission.background().await];
    let free = admission.enter("a", later()).await.unwrap();
    assert!(!background.iter().any(BackgroundPermit::is_preempted), "there was a free place");
    let mut first = wait(&admission, "a");
    assert!(take(&mut first).is_none());
    assert_eq!(background.each_ref().map(BackgroundPermit::is_preempted), [false, true]);
    drop(first);
    let mut second = wait(&admission, "a");
    assert!(take(&mut second).is_none());
    assert_eq!(
        background.each_ref().map(BackgroundPermit::is_preempted),
        [false, true],
        "one was on its way out already"
    );
    let mut third = wait(&admission, "a");
    assert!(take(&mut third).is_none());
    assert_eq!(background.each_ref().map(BackgroundPermit::is_preempted), [true, true]);
    drop(free);
    assert!(take(&mut second).is_some());
}

#[tokio::test]
async fn a_live_request_is_handed_over_ahead_and_background_work_is_not() {
    let admission = ahead(1, 1);
    let running = admission.enter("a", later()).await.unwrap();
    let mut background = wait_in_background(&admission);
    assert!(take(&mut background).is_none(), "the place ahead is not for it");
    let next = admission.enter("a", later()).await.unwrap();
    let mut third = wait(&admission, "a");
    assert!(take(&mut third).is_none());
    assert_eq!(admission.snapshot(), snapshot(1, 2, 0));
    drop(running);
    let third = take(&mut third).unwrap().unwrap();
    drop(next);
    assert!(take(&mut background).is_none(), "one computes");
    drop(third);
    assert!(take(&mut background).is_some());
}

#[tokio::test]
async fn a_live_request_that_is_made_ready_preempts_background_work() {
    let admission = ahead(1, 1);
    let background = admission.background().await;
    let live = admission.enter("a", later()).await.unwrap();
    assert!(background.is_preempted(), "the live request cannot compute before it left");
    let mut second = wait(&admission, "a");
    assert!(take(&mut second).is_none(), "nobody goes ahead while the engine is still taken");
    drop(background);
    let second = take(&mut second).unwrap().unwrap();
    assert_eq!(admission.snapshot(), snapshot(0, 2, 0));
    drop((live, second));
}

#[tokio::test]
async fn background_work_keeps_its_place_while_there_is_another() {
    let admission = ahead(2, 1);
    let background = admission.background().await;
    let first = admission.enter("a", later()).await.unwrap();
    assert!(!background.is_preempted(), "both compute");
    let second = admission.enter("a", later()).await.unwrap();
    assert!(background.is_preempted());
    drop((first, second));
}

#[tokio::test]
async fn background_work_with_places_of_its_own_takes_none_and_keeps_its_own() {
    let admission = apart(1, 0);
    let background = admission.background().await;
    let live = take(&mut wait(&admission, "a")).unwrap().unwrap();
    let (mut next, mut more) = (wait(&admission, "a"), wait_in_background(&admission));
    assert!(take(&mut next).is_none() && take(&mut more).is_none(), "each kind has its limit");
    assert!(!background.is_preempted());
    assert_eq!(admission.snapshot(), snapshot(1, 1, 1));
    drop(background);
    assert!(take(&mut next).is_none(), "the place is not for live requests");
    let more = take(&mut more).unwrap();
    drop(live);
    assert!(take(&mut next).is_some() && !more.is_preempted());
}

/// What the property test does.
#[derive(Clone, Debug)]
enum Step {
    Enter(u8),
    Background,
    /// Polls everything; without it, what was granted is not taken yet.
    Poll,
    Abandon(usize),
    AbandonBackground(usize),
    Leave(usize),
    LeaveBackground(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8).prop_map(Step::Enter),
        2 => Just(Step::Background),
        4 => Just(Step::Poll),
        1 => any::<usize>().prop_map(Step::Abandon),
        1 => any::<usize>().prop_map(Step::AbandonBackground),
        3 => any::<usize>().prop_map(Step::Leave),
        2 => any::<usize>().prop_map(Step::LeaveBackground),
    ]
}

fn remove<T>(from: &mut Vec<T>, index: usize) {
    if !from.is_empty() {
        drop(from.remove(index % from.len()));
    }
}

proptest! {
    #[test]
    fn any_history_keeps_the_invariants(
        parallel in 1..4_usize,
        look_ahead in 0..3_usize,
        is_apart in any::<bool>(),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        // Not `block_on`: its budget of polls would make a ready future look like a waiting one.
        let _timers = runtime.enter();
        let admission = if is_apart { apart(parallel, look_ahead) } else { ahead(parallel, look_ahead) };
        let (mut waiting, mut inside) = (Vec::new(), Vec::new());
        let (mut background_waiting, mut background) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Enter(key) => {
                    let mut request = wait(&admission, &key.to_string());
                    match take(&mut request) {
                        Some(permit) => inside.push(permit.unwrap()),
                        None => waiting.push(request),
                    }
                }
                Step::Background => {
                    let mut work = wait_in_background(&admission);
                    match take(&mut work) {
                        Some(permit) => background.push(permit),
                        None => background_waiting.push(work),
                    }
                }
                Step::Poll => {
                    waiting.retain_mut(|request| take(request).is_none_or(|permit| { inside.push(permit.unwrap()); false }));
                    background_waiting.retain_mut(|work| take(work).is_none_or(|permit| { background.push(permit); false }));
                    let now = admission.snapshot();
                    prop_assert_eq!(now, snapshot(waiting.len(), inside.len(), background.len()));
                    let leaving = background.iter().filter(|permit| permit.is_preempted()).count();
                    if is_apart {
                        prop_assert_eq!(leaving, 0);
                        prop_assert!(background_waiting.is_empty() || now.background == parallel);
                    } else {
                        let wanted = (now.waiting + now.running + now.background).saturating_sub(parallel);
                        prop_assert!(leaving >= wanted.min(now.background));
                        prop_assert!(background_waiting.is_empty() || now.running + now.background >= parallel);
                    }
                }
                Step::Abandon(index) => remove(&mut waiting, index),
                Step::AbandonBackground(index) => remove(&mut background_waiting, index),
                Step::Leave(index) => remove(&mut inside, index),
                Step::LeaveBackground(index) => remove(&mut background, index),
            }
            let now = admission.snapshot();
            prop_assert!(now.background <= parallel);
            let taken = if is_apart { now.running } else { now.running + now.background };
            prop_assert!(taken <= parallel + look_ahead);
            prop_assert!(now.waiting == 0 || taken == parallel + look_ahead);
        }
        drop((waiting, inside, background_waiting, background));
        prop_assert_eq!(admission.snapshot(), Snapshot::default());
    }
}

/// Requests of a few keys come, give up at random moments and stay at random length, on several threads. A lost wake-up
/// would hang it, a leaked place would show at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_cancellation_loses_nothing() {
    const PARALLEL: usize = 3;
    let admission = admission(PARALLEL);
    let inside = Arc::new(AtomicUsize::new(0));
    let served = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..48 {
        let (admission, inside, served) = (Arc::clone(&admission), Arc::clone(&inside), Arc::clone(&served));
        tasks.spawn(async move {
            for _ in 0..60 {
                let (patience, stay, gives_up) = {
                    let mut rng = rand::rng();
                    (rng.random_range(0..3000_u64), rng.random_range(0..200_u64), rng.random_bool(0.7))
                };
                let patience = Duration::from_micros(if gives_up { patience } else { 3_600_000_000 });
                let stay = Duration::from_micros(stay);
                if task % 12 == 0 {
                    let Ok(permit) = tokio::time::timeout(patience, admission.background()).await else { continue };
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < PARALLEL);
                    let _either = tokio::time::timeout(stay * 5, permit.preempted()).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                } else {
                    let key = (task % 5).to_string();
                    let Ok(permit) = tokio::time::timeout(patience, admission.enter(&key, later())).await else {
                        continue;
                    };
                    let permit = permit.unwrap();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < PARALLEL);
                    tokio::time::sleep(stay).await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    served.fetch_add(1, Ordering::SeqCst);
                    drop(permit);
                }
            }
        });
    }
    let all = async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap()
        }
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.unwrap();
    assert_eq!(admission.snapshot(), Snapshot::default());
    assert!(served.load(Ordering::SeqCst) > 0);
}
