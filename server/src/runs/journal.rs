//! What a training process tells, as it is kept and shown.

use metrics::gauge;
use reground_learner::bpo::progress::Event;
use reground_learner::store::rows::{EventKind, EventLevel, RunEvent};
use reground_learner::store::{Store, StoreError, id};
use serde::Serialize;
use serde_json::{Value, json};

/// The events of one run as they come.
pub(super) struct Journal {
    run: String,
    /// Last step that was told: after a resume the steps since the checkpoint come again.
    step: u64,
    total: u64,
}

impl Journal {
    pub(super) fn new(run: &str) -> Self {
        Self { run: run.to_owned(), step: 0, total: 0 }
    }

    /// Goes on behind the latest events of a run, newest first.
    pub(super) fn after(run: &str, latest: &[RunEvent]) -> Self {
        let number = |name: &str| latest.iter().find_map(|event| event.data[name].as_u64()).unwrap_or(0);
        let steps = latest.iter().filter(|event| event.kind == EventKind::Metrics);
        let step = steps.filter_map(|event| event.data["step"].as_u64()).max().unwrap_or(0);
        Self { run: run.to_owned(), step, total: number("total_steps") }
    }

    /// Whether a step was taken.
    pub(super) fn has_steps(&self) -> bool {
        self.step > 0
    }

    /// What is to be kept of an event; `None` for what is of no interest later.
    pub(super) fn row(&mut self, event: &Event) -> Option<RunEvent> {
        use EventKind::{Checkpoint, Message, Metrics};
        use EventLevel::{Error, Info, Warn};
        let (level, kind, message, data) = match event {
            Event::Started { step, total_steps, examples, held_out, .. } => {
                self.total = *total_steps;
                let begins = if *step == 0 { "begins".to_owned() } else { format!("goes on after step {step}") };
                let message =
                    format!("Training {begins}: {total_steps} steps, {examples} pairs, {held_out} more held out.");
                (
                    Info,
                    Message,
                    message,
                    json!({"step": step, "total_steps": total_steps, "examples": examples, "held_out": held_out}),
                )
            }
            Event::Warning { message } => (Warn, Message, message.clone(), Value::Null),
            Event::Reference { .. } => return None,
            Event::Step(step) if step.step <= self.step => return None,
            Event::Step(step) => {
                self.step = step.step;
                self.gauges(step.loss);
                let message = format!("Step {}/{}: training loss={:.4}", step.step, self.total, step.loss);
                (Info, Metrics, message, self.numbers(step, step.loss))
            }
            Event::Evaluated(evaluation) => {
                let message = format!("Held-out pairs after step {}: loss={:.4}", evaluation.step, evaluation.loss);
                let mut data = numbers(evaluation);
                data["valid_loss"] = json!(evaluation.loss);
                (Info, Metrics, message, data)
            }
            Event::Checkpoint { step, .. } => {
                (Info, Checkpoint, format!("Checkpoint after step {step}."), json!({"step": step}))
            }
            Event::Paused { step } => (Info, Message, format!("Paused after step {step}."), json!({"step": step})),
            Event::Finished { step, adapter_step, stopped_early } => {
                let early = if *stopped_early { ", early" } else { "" };
                let message = format!("Finished after step {step}{early}; the adapter is that of step {adapter_step}.");
                (Info, Message, message, json!({"step": step, "adapter_step": adapter_step}))
            }
            Event::Gated { passed: true, .. } => (Info, Message, "The gate passed.".to_owned(), Value::Null),
            Event::Gated { failed, .. } => {
                let message = format!("The gate did not pass: {}.", failed.join("; "));
                (Error, Message, message, json!({"failed": failed}))
            }
            Event::Failed { reason } => (Error, Message, format!("Failed: {reason}"), Value::Null),
        };
        Some(self.note(level, kind, message, data))
    }

    /// An event that the server itself has to tell.
    pub(super) fn say(&self, level: EventLevel, message: impl Into<String>) -> RunEvent {
        self.note(level, EventKind::Message, message.into(), Value::Null)
    }

    fn note(&self, level: EventLevel, kind: EventKind, message: String, data: Value) -> RunEvent {
        RunEvent { id: id::new("ftevent"), run: self.run.clone(), created_ms: id::now_ms(), level, kind, message, data }
    }

    /// All numbers of a step, and those that OpenAI's clients know under their names.
    fn numbers(&self, step: &impl Serialize, loss: f64) -> Value {
        let mut data = numbers(step);
        data["total_steps"] = json!(self.total);
        data["train_loss"] = json!(loss);
        data
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point; steps are far below 2^53")]
    fn gauges(&self, loss: f64) {
        gauge!("reground_run_steps").set(self.step as f64);
        gauge!("reground_run_planned_steps").set(self.total as f64);
        gauge!("reground_run_loss_nats").set(loss);
    }
}

fn numbers(metrics: &impl Serialize) -> Value {
    let data = serde_json::to_value(metrics).unwrap_or(Value::Null);
    if data.is_object() { data } else { json!({}) }
}

/// Keeps an event; it is on disk soon.
pub(super) fn keep(store: &Store, event: &RunEvent) -> Result<(), StoreError> {
    store.write_behind(|rows| rows.insert(event))
}

#[cfg(test)]
mod tests {
    use reground_learner::bpo::metrics::StepMetrics;

    use super::*;

    #[test]
    fn steps_that_come_again_after_a_resume_are_kept_once() {
        let mut journal = Journal::new("ftjob-1");
        let step = |step| Event::Step(StepMetrics { step, loss: 0.5, ..StepMetrics::default() });
        let started = Event::Started { step: 0, total_steps: 4, examples: 8, held_out: 1, parameters: 3 };
        assert!(journal.row(&started).unwrap().message.starts_with("Training begins: 4 steps, 8 pairs, 1 more"));
        let told = [1, 2, 3, 2, 3, 4].map(|number| journal.row(&step(number)).map(|row| row.data["step"].clone()));
        assert_eq!(told.iter().flatten().collect::<Vec<_>>(), [1, 2, 3, 4].map(Value::from).iter().collect::<Vec<_>>());
        let row = journal.row(&step(5)).unwrap();
        assert_eq!(
            (row.kind, &row.data["train_loss"], &row.data["total_steps"]),
            (EventKind::Metrics, &json!(0.5), &json!(4))
        );
    }
}
