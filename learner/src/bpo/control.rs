//! What goes into a run besides its model, and what comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::examples::Examples;

/// Asks a run to pause: it stops between two steps, saves, and returns [`Outcome::Paused`].
#[derive(Clone, Debug, Default)]
pub struct Control {
    pause: Arc<AtomicBool>,
}

impl Control {
    /// Asks for a pause; safe to call from a signal handler's thread.
    pub fn pause(&self) {
        self.pause.store(true, Ordering::Relaxed);
    }

    /// Whether a pause was asked for.
    pub fn pausing(&self) -> bool {
        self.pause.load(Ordering::Relaxed)
    }

    /// The flag itself, for signal libraries that set one.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.pause)
    }
}

/// What a run learns from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Examples to train on.
    pub train: &'a dyn Examples,
    /// Examples held out; may be empty.
    pub held_out: &'a dyn Examples,
    /// Names base and data, for example by their digests: a checkpoint made with another one is refused.
    pub identity: &'a str,
}

/// How a run came to its end without going wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The policy holds the adapter to give.
    Finished {
        /// Optimiser steps taken.
        step: u64,
        /// Optimiser steps after which the policy had the tensors it holds now.
        adapter_step: u64,
        /// Patience ran out before the last step.
        stopped_early: bool,
    },
    /// It was asked to pause; starting it again goes on.
    Paused {
        /// Optimiser steps taken.
        step: u64,
    },
}
