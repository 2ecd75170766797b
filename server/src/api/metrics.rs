//! What Prometheus is told, and GET /metrics.
//!
//! One recorder serves the whole process, because the `metrics` macros that any module may use write to one: servers
//! that share a process (in tests) share the numbers.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use actix_web::{HttpResponse, web};
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::Instant;

use super::App;
use super::auth::Admin;
use crate::engine::GenerationId;
use crate::rollout::{Generations, SWITCH};

const REQUESTS: &str = "reground_requests_total";
const REQUEST_SECONDS: &str = "reground_request_duration_seconds";
const WAITING: &str = "reground_queue_waiting_requests";
const RUNNING: &str = "reground_queue_running_requests";
const FIRST_TOKEN: &str = "reground_first_token_seconds";
const RATE: &str = "reground_output_rate_tokens_per_second";
const OUTPUT: &str = "reground_output_tokens_total";
const PROMPT: &str = "reground_prompt_tokens_total";
const ANSWERS: &str = "reground_answers_total";

/// Seconds; from an answer out of a tiny model to the longest deadline one would wait for.
const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Tokens a second of one answer.
const RATES: [f64; 11] = [1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0];

/// The generation of a queue that is in front of all of them.
const ALL: &str = "*";

/// Seconds that a change of the route takes.
const SWITCHES: [f64; 5] = [1e-5, 1e-4, 1e-3, 1e-2, 0.1];

/// The exporter moves samples out of its write buffers only when told to; between scrapes that is our task.
const UPKEEP: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<Recorder> = OnceLock::new();

struct Recorder {
    handle: PrometheusHandle,
    /// When the buffers were last emptied.
    upkeep: Mutex<Instant>,
    /// Generations with a gauge, so that those that went can be set to zero.
    seen: Mutex<Vec<GenerationId>>,
}

/// The process' metrics.
#[derive(Clone, Copy)]
pub struct Metrics {
    recorder: &'static Recorder,
}

impl Metrics {
    /// Installs the recorder, or takes the one that is installed. In a program that has a recorder of its own, the
    /// metrics go there and GET /metrics stays empty.
    #[must_use]
    pub fn install() -> Self {
        Self { recorder: RECORDER.get_or_init(Recorder::install) }
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self, generations: &Generations) -> String {
        let mut seen = self.recorder.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = generations.list();
        for gone in seen.iter().filter(|id| !loaded.contains(id)) {
            queue(gone, 0, 0);
        }
        if generations.info().one_batch
            && let Some(lease) = loaded.first().and_then(|id| generations.get(id))
        {
            // They all have the same.
            let snapshot = lease.admission.snapshot();
            queue(&GenerationId::from(ALL), snapshot.waiting, snapshot.running);
            return self.recorder.handle.render();
        }
        for id in &loaded {
            if let Some(lease) = generations.get(id) {
                let snapshot = lease.admission.snapshot();
                queue(id, snapshot.waiting, snapshot.running);
            }
        }
        *seen = loaded;
        self.recorder.handle.render()
    }
}

impl Recorder {
    fn install() -> Self {
        let exact = |name: &str| Matcher::Full(name.to_owned());
        let builder = PrometheusBuilder::new()
            .set_buckets(&SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(exact(RATE), &RATES))
            .and_then(|builder| builder.set_buckets_for_metric(exact(SWITCH), &SWITCHES))
            // Fails for an empty list of buckets only.
            .unwrap_or_default();
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("This program has a metrics recorder of its own: GET /metrics stays empty");
        }
        describe();
        Self { handle, upkeep: Mutex::new(Instant::now()), seen: Mutex::default() }
    }
}

fn describe() {
    describe_counter!(REQUESTS, "Requests by route and status; 499: the client left before the answer was complete");
    describe_histogram!(REQUEST_SECONDS, "Seconds from a request's head to the last byte of its answer");
    describe_gauge!(WAITING, "Requests that wait in front of a generation; `*`: of all, which share one batch");
    describe_gauge!(RUNNING, "Requests that a generation answers; `*`: that all answer in one batch");
    describe_histogram!(FIRST_TOKEN, "Seconds from a request's head to the first token of an answer");
    describe_histogram!(RATE, "Tokens per second of one answer, after its first token");
    describe_counter!(OUTPUT, "Tokens generated");
    describe_counter!(PROMPT, "Tokens of prompts, those of images included");
    describe_counter!(
        "reground_engine_loads_total",
        "Engines that mistralrs loaded; each leaves a sleeping thread behind"
    );
    describe_counter!("reground_runs_total", "Fine-tuning runs that ended, by outcome: succeeded, failed, cancelled");
    describe_counter!("reground_run_restarts_total", "Training processes that died and were started again");
    describe_gauge!("reground_run_steps", "Optimiser steps of the run in hand, or of the last one");
    describe_gauge!("reground_run_planned_steps", "Optimiser steps that it has in all");
    describe_gauge!("reground_run_loss_nats", "Training loss of its last step");
    describe_counter!("reground_vision_cache_hits_total", "Pictures of prompts whose features were kept");
    describe_counter!("reground_vision_cache_misses_total", "Pictures of prompts that the vision tower had to look at");
    describe_gauge!("reground_vision_cache_bytes", "Bytes of kept image features");
    describe_counter!("reground_prefix_cache_hits_total", "Prompts whose beginning was kept");
    describe_counter!("reground_prefix_cache_misses_total", "Prompts that had to be read from their first token");
    describe_counter!("reground_prefix_cache_hit_tokens_total", "Tokens of prompts that were kept and not read again");
    describe_gauge!("reground_prefix_cache_bytes", "Bytes of kept prompts: keys, values and what they are found by");
    describe_histogram!(
        SWITCH,
        "Seconds from the decision to change who answers to the change, under the lock of all queries"
    );
    describe_counter!(ANSWERS, "Answers by how they ended: stop, length, tool_calls, error, cancelled");
}

/// Counts a finished request.
pub(super) fn request(route: &str, status: u16, duration: Duration) {
    counter!(REQUESTS, "route" => route.to_owned(), "status" => status.to_string()).increment(1);
    histogram!(REQUEST_SECONDS, "route" => route.to_owned()).record(duration.as_secs_f64());
    if let Some(recorder) = RECORDER.get() {
        let mut last = recorder.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= UPKEEP {
            *last = Instant::now();
            drop(last);
            recorder.handle.run_upkeep();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a queue is far below 2^53")]
fn queue(generation: &GenerationId, waiting: usize, running: usize) {
    gauge!(WAITING, "generation" => generation.to_string()).set(waiting as f64);
    gauge!(RUNNING, "generation" => generation.to_string()).set(running as f64);
}

/// Measures one answer; what it saw is recorded when it goes, also when the answer was cancelled.
pub(super) struct Meter {
    generation: GenerationId,
    arrival: Instant,
    first: Instant,
    tokens: usize,
    outcome: &'static str,
}

impl Meter {
    /// The answer of a request that arrived then has begun: its prompt was read, its first token is there.
    pub(super) fn new(generation: GenerationId, arrival: Instant, prompt_tokens: usize) -> Self {
        counter!(PROMPT, "generation" => generation.to_string()).increment(prompt_tokens as u64);
        Self { generation, arrival, first: Instant::now(), tokens: 0, outcome: "cancelled" }
    }

    /// Tokens came.
    pub(super) fn tokens(&mut self, count: usize) {
        self.tokens += count;
    }

    /// The answer ended; `tokens` counts those too that were not shown.
    pub(super) fn ended(&mut self, outcome: &'static str, tokens: Option<usize>) {
        self.outcome = outcome;
        self.tokens = tokens.unwrap_or(self.tokens);
    }
}

impl Drop for Meter {
    #[expect(clippy::cast_precision_loss, reason = "an answer has far fewer than 2^53 tokens")]
    fn drop(&mut self) {
        let generation = self.generation.to_string();
        counter!(ANSWERS, "generation" => generation.clone(), "outcome" => self.outcome).increment(1);
        counter!(OUTPUT, "generation" => generation.clone()).increment(self.tokens as u64);
        let first = self.first.saturating_duration_since(self.arrival);
        histogram!(FIRST_TOKEN, "generation" => generation.clone()).record(first.as_secs_f64());
        let seconds = self.first.elapsed().as_secs_f64();
        if self.tokens > 1 && seconds > 0.0 {
            histogram!(RATE, "generation" => generation).record((self.tokens - 1) as f64 / seconds);
        }
    }
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "Prometheus text format", content_type = "text/plain", body = String)))]
pub(super) async fn show(_: Admin, app: web::Data<App>) -> HttpResponse {
    app.recorder.report();
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(app.metrics.render(&app.generations))
}
