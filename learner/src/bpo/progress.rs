//! Telling someone how a run is getting on: a bar in a terminal, JSON lines to a process that reads them.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::metrics::{Evaluation, StepMetrics};

/// What happens in a run. As JSON: `{"event": "step", …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The run starts, or goes on from a checkpoint.
    Started {
        /// Optimiser steps taken already.
        step: u64,
        /// Optimiser steps in all.
        total_steps: u64,
        /// Examples to train on.
        examples: usize,
        /// Examples held out.
        held_out: usize,
        /// Trainable numbers.
        parameters: usize,
    },
    /// Something was odd and was dealt with.
    Warning {
        /// A sentence.
        message: String,
    },
    /// Reference log-probabilities are computed.
    Reference {
        /// Examples scored.
        done: usize,
        /// Examples in all.
        total: usize,
    },
    /// An optimiser step.
    Step(StepMetrics),
    /// An evaluation.
    Evaluated(Evaluation),
    /// A checkpoint is safe on disk.
    Checkpoint {
        /// Optimiser steps taken.
        step: u64,
        /// Where it is.
        path: PathBuf,
    },
    /// The run stopped where it was asked to, and can go on.
    Paused {
        /// Optimiser steps taken.
        step: u64,
    },
    /// The run is over and has an adapter.
    Finished {
        /// Optimiser steps taken.
        step: u64,
        /// Whether patience ran out before the last step.
        stopped_early: bool,
        /// The step whose tensors the adapter has.
        adapter_step: u64,
    },
    /// The gate has a verdict on the adapter; it is in the run's gate.json.
    Gated {
        /// Whether the adapter may have traffic.
        passed: bool,
        /// The checks that failed.
        failed: Vec<String>,
    },
    /// The run is over and has none.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Whoever wants to know.
pub trait Progress {
    /// Called for every event, between two steps; it should not take long.
    fn event(&mut self, event: &Event);
}

/// Nobody wants to know.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _: &Event) {}
}

/// Events kept in order; for tests and for callers that look afterwards.
#[derive(Debug, Default)]
pub struct Collected(pub Vec<Event>);

impl Progress for Collected {
    fn event(&mut self, event: &Event) {
        self.0.push(event.clone());
    }
}

/// One JSON object a line, flushed at once: what `reground serve` reads from its child.
#[derive(Debug)]
pub struct JsonLines<W>(pub W);

impl<W: Write> Progress for JsonLines<W> {
    fn event(&mut self, event: &Event) {
        // A reader that went away must not end the training: the run directory has everything.
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let _ = self.0.write_all(&line).and_then(|()| self.0.flush());
        }
    }
}

/// A bar on standard error.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
}

impl Default for Bar {
    fn default() -> Self {
        Self { bar: ProgressBar::new(0) }
    }
}

impl Bar {
    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }
}

impl Progress for Bar {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Started { step, total_steps, .. } => {
                self.style("{bar:30} {pos}/{len} [{elapsed}<{eta}] {msg}");
                self.bar.set_length(*total_steps);
                self.bar.set_position(*step);
                self.bar.reset_eta();
            }
            Event::Reference { done, total } => {
                self.style("{bar:30} {pos}/{len} reference log-probabilities");
                self.bar.set_length(*total as u64);
                self.bar.set_position(*done as u64);
            }
            Event::Step(step) => {
                let margins = step.rewards_margins.map_or(String::new(), |margin| format!(" margin {margin:.3}"));
                let accuracy = step.rewards_accuracies.map_or(String::new(), |share| format!(" acc {share:.2}"));
                let (loss, norm, speed) = (step.loss, step.grad_norm, step.pairs_per_second);
                self.bar.set_message(format!("loss {loss:.4}{margins}{accuracy} |g| {norm:.2} {speed:.1} pairs/s"));
                self.bar.set_position(step.step);
            }
            Event::Evaluated(evaluation) => {
                let Evaluation { step, loss, accuracy, margin, .. } = evaluation;
                self.bar.println(format!(
                    "step {step}: held-out loss {loss:.4}, accuracy {accuracy:.3}, margin {margin:.3}"
                ));
            }
            Event::Warning { message } => self.bar.println(format!("warning: {message}")),
            Event::Checkpoint { .. } => {}
            Event::Paused { step } => self.bar.abandon_with_message(format!("paused after step {step}")),
            Event::Finished { step, adapter_step, .. } => {
                self.bar.finish_with_message(format!(
                    "finished after step {step}; the adapter is that of step {adapter_step}"
                ));
            }
            Event::Gated { passed: true, .. } => self.bar.println("the gate passed"),
            Event::Gated { failed, .. } => self.bar.println(format!("the gate did not pass: {}", failed.join("; "))),
            Event::Failed { reason } => self.bar.abandon_with_message(format!("failed: {reason}")),
        }
    }
}

/// A bar when standard error is a terminal and standard output is not read by a program, JSON lines on standard output otherwise.
pub fn automatic() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() && std::io::stdout().is_terminal() {
        Box::new(Bar::default())
    } else {
        Box::new(JsonLines(std::io::stdout()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_are_one_object_each() {
        let mut sink = JsonLines(Vec::new());
        sink.event(&Event::Started { step: 0, total_steps: 9, examples: 4, held_out: 1, parameters: 10 });
        sink.event(&Event::Step(StepMetrics { step: 1, loss: 0.5, ..StepMetrics::default() }));
        sink.event(&Event::Failed { reason: "a \"quoted\"\nreason".to_owned() });
        let text = String::from_utf8(sink.0).unwrap();
        let events =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>();
        assert_eq!(events.len(), 3);
        assert_eq!((events[0]["event"].as_str(), events[0]["total_steps"].as_u64()), (Some("started"), Some(9)));
        assert_eq!((events[1]["event"].as_str(), events[1]["loss"].as_f64()), (Some("step"), Some(0.5)));
        assert_eq!(events[2]["reason"], "a \"quoted\"\nreason");
        for (line, event) in text.lines().zip(&events) {
            let read: Event = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_value(&read).unwrap(), *event);
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        JsonLines(Closed).event(&Event::Paused { step: 3 });
    }
}
