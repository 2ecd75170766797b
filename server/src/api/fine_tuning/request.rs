//! What a job is asked for.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use crate::api::chat::request::metadata;
use crate::api::error::ApiError;
use crate::api::error::shown;
use crate::api::json::{self, Fields, Path};
use crate::runs::{Method, RunRequest};

/// A job to start.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(in crate::api) struct CreateJob {
    /// `name` starts from what is live when the job begins, `name@generation` from that.
    pub model: String,
    /// `pairs`: collected pairs that no job had, with a share of earlier ones; `pairs:all`; or an uploaded file's id.
    pub training_file: String,
    /// Ours: at most 16 uploaded files whose pairs are mixed in, up to `train.anchor_share`; without it those of `train.anchors`.
    pub anchors: Option<Vec<String>>,
    /// `{"type": "dpo", "dpo": {"hyperparameters": {…}}}` (the default), or `supervised`: the chosen answers alone.
    /// Hyperparameters: `beta` (dpo only), `n_epochs`, `batch_size`, `learning_rate_multiplier`, each a number or `auto`.
    pub method: Option<Value>,
    /// Decides data order, dropout and a new adapter's values.
    pub seed: Option<u64>,
    /// At most 16 labels.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// OpenAI's parameters that mean nothing here, and why.
const REFUSED: [(&str, &str); 4] = [
    ("validation_file", "the pairs of some images are held out by themselves (`train.held_out`)"),
    ("suffix", "an adapter's name is its id"),
    ("integrations", "/metrics and the events have all numbers"),
    ("hyperparameters", "it is old; send them in `method`"),
];

/// Files that a job may name as anchors.
const MOST_ANCHORS: usize = 16;

/// Reads the body of POST /v1/fine_tuning/jobs; `name` is the model's.
pub(super) fn parse(body: &[u8], name: &str) -> Result<RunRequest, ApiError> {
    let mut fields = Fields::of(json::parse(body)?, &Path::Root)?;
    let model = fields.required("model", json::string)?;
    let parent = parent(&model, name)?;
    let training = fields.required("training_file", |value, at| json::short_string(value, at, 128))?;
    let anchors = fields.optional("anchors", anchors)?;
    let seed = fields.optional("seed", |value, at| json::integer(value, at, 0..=i64::from(u32::MAX)))?;
    let metadata = fields.optional("metadata", metadata)?.unwrap_or_default();
    let mut request = RunRequest {
        training: training.into(),
        anchors,
        parent,
        seed: seed.and_then(|seed| u64::try_from(seed).ok()),
        metadata,
        ..RunRequest::default()
    };
    fields.optional("method", |value, at| method(value, at, &mut request))?;
    for (key, why) in REFUSED {
        let refuse = |_: Value, at: &Path<'_>| -> Result<(), ApiError> {
            Err(ApiError::unsupported(at, format!("`{at}` is not supported: {why}")))
        };
        fields.optional(key, refuse)?;
    }
    fields.finish()?;
    Ok(request)
}

/// Ids of uploaded files.
fn anchors(value: Value, at: &Path<'_>) -> Result<Vec<String>, ApiError> {
    let files = json::array(value, at)?;
    if files.len() > MOST_ANCHORS {
        let message = format!("`{at}` has {} files; at most {MOST_ANCHORS} are mixed in", files.len());
        return Err(ApiError::invalid(at, message));
    }
    files.into_iter().enumerate().map(|(index, file)| json::short_string(file, &at.index(index), 128)).collect()
}

/// The generation of `name@generation`; none of the name alone.
fn parent(model: &str, name: &str) -> Result<Option<String>, ApiError> {
    let (given, generation) = model.split_once('@').map_or((model, None), |(name, id)| (name, Some(id)));
    if given != name || generation == Some("") {
        let message = format!("this server trains `{name}` or `{name}@generation`, not `{}`", shown(model));
        return Err(ApiError::not_found(crate::api::error::code::MODEL_NOT_FOUND, message).at("model"));
    }
    Ok(generation.map(str::to_owned))
}

fn method(value: Value, at: &Path<'_>, request: &mut RunRequest) -> Result<(), ApiError> {
    let mut fields = Fields::of(value, at)?;
    let kinds = [("dpo", Method::Dpo), ("supervised", Method::Supervised)];
    request.method = fields.required("type", |value, at| json::one_of(value, at, &kinds))?;
    let is_dpo = request.method == Method::Dpo;
    let key = request.method.word();
    fields.optional(key, |value, at| {
        let mut fields = Fields::of(value, at)?;
        fields.optional("hyperparameters", |value, at| hyperparameters(value, at, is_dpo, request))?;
        fields.finish()
    })?;
    fields.finish()
}

fn hyperparameters(value: Value, at: &Path<'_>, is_dpo: bool, request: &mut RunRequest) -> Result<(), ApiError> {
    let mut fields = Fields::of(value, at)?;
    if is_dpo {
        request.beta =
            fields.optional("beta", |value, at| auto(value, at, |v, at| json::number(v, at, 1e-6..=100.0)))?.flatten();
    }
    let epochs = |value: Value, at: &Path<'_>| json::number(value, at, 0.01..=1000.0);
    request.epochs = fields.optional("n_epochs", |value, at| auto(value, at, epochs))?.flatten();
    let batch = |value: Value, at: &Path<'_>| json::size(value, at, 1..=65_536);
    request.batch = fields.optional("batch_size", |value, at| auto(value, at, batch))?.flatten();
    let factor = |value: Value, at: &Path<'_>| json::number(value, at, 1e-6..=1e3);
    request.learning_rate_multiplier =
        fields.optional("learning_rate_multiplier", |value, at| auto(value, at, factor))?.flatten();
    fields.finish()
}

/// A value, or `auto` for the configured one.
fn auto<T>(
    value: Value,
    at: &Path<'_>,
    read: impl FnOnce(Value, &Path<'_>) -> Result<T, ApiError>,
) -> Result<Option<T>, ApiError> {
    if value == "auto" { Ok(None) } else { read(value, at).map(Some) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::runs::Training;

    fn parsed(body: &Value) -> Result<RunRequest, ApiError> {
        parse(body.to_string().as_bytes(), "reground")
    }

    #[test]
    fn what_the_sdk_sends_is_read() {
        let request = parsed(&json!({
            "model": "reground@ad-1", "training_file": "file-1", "anchors": ["file-2"], "seed": 4, "metadata": {"team": "a"},
            "validation_file": null, "integrations": null,
            "method": {"type": "dpo", "dpo": {"hyperparameters":
                {"beta": 0.2, "n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": "auto"}}},
        }))
        .unwrap();
        let expected = RunRequest {
            training: Training::File("file-1".into()),
            anchors: Some(vec!["file-2".into()]),
            parent: Some("ad-1".into()),
            beta: Some(0.2),
            epochs: Some(3.0),
            batch: Some(8),
            seed: Some(4),
            metadata: BTreeMap::from([("team".into(), "a".into())]),
            ..RunRequest::default()
        };
        assert_eq!(request, expected);
        let request = parsed(&json!({"model": "reground", "training_file": "pairs"})).unwrap();
        assert_eq!(request, RunRequest::default());
        let supervised = json!({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}});
        let request =
            parsed(&json!({"model": "reground", "training_file": "pairs:all", "method": supervised})).unwrap();
        assert_eq!((request.method, request.training), (Method::Supervised, Training::All));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |key: &str, value: Value| {
            let mut body = json!({"model": "reground", "training_file": "pairs"});
            body[key] = value;
            body
        };
        let beta = json!({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}});
        let foreign = json!({"type": "supervised", "supervised": {"hyperparameters": {"beta": 0.1}}});
        for (body, param) in [
            (with("model", json!("gpt-4o")), "model"),
            (with("model", json!("reground@")), "model"),
            (json!({"model": "reground"}), "training_file"),
            (with("suffix", json!("mine")), "suffix"),
            (with("hyperparameters", json!({"n_epochs": 1})), "hyperparameters"),
            (with("speed", json!(1)), "speed"),
            (with("method", json!({"type": "reinforcement"})), "method.type"),
            (with("method", beta), "method.dpo.hyperparameters.beta"),
            (with("method", foreign), "method.supervised.hyperparameters.beta"),
            (with("seed", json!(-1)), "seed"),
            (with("anchors", json!([1])), "anchors[0]"),
            (with("anchors", json!(vec!["file-1"; 17])), "anchors"),
        ] {
            assert_eq!(parsed(&body).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }
}
