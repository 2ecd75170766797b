//! What Prometheus is told.

use metrics::{counter, describe_counter, describe_gauge, gauge};
use reground_learner::bpo::pair::NegativeKind;
use reground_learner::store::rows::{Pair, word};

const RECORDS: &str = "reground_bootstrap_records_total";
const PAIRS: &str = "reground_bootstrap_pairs_total";
const REJECTIONS: &str = "reground_bootstrap_rejections_total";
const WAITING: &str = "reground_bootstrap_waiting_records";

pub(super) fn describe() {
    describe_counter!(RECORDS, "Records that were looked at, by what came of it: paired, or why not");
    describe_counter!(PAIRS, "Pairs that were stored, by source of the chosen and kind of the rejected answer");
    describe_counter!(REJECTIONS, "Rejected answers that were made and not kept, by kind and reason");
    describe_gauge!(WAITING, "Records that nobody has looked at yet");
}

/// A record was looked at.
pub(super) fn record(outcome: &'static str) {
    counter!(RECORDS, "outcome" => outcome).increment(1);
}

/// A pair was stored.
pub(super) fn pair(pair: &Pair) {
    let kind = pair.data.negative.map(word).unwrap_or_default();
    counter!(PAIRS, "source" => word(pair.data.source), "kind" => kind).increment(1);
}

/// A rejected answer was not kept.
pub(super) fn rejection(kind: NegativeKind, reason: &str) {
    counter!(REJECTIONS, "kind" => word(kind), "reason" => reason.to_owned()).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a store holds far fewer than 2^53 records")]
pub(super) fn waiting(records: usize) {
    gauge!(WAITING).set(records as f64);
}
