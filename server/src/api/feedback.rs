//! POST /v1/feedback: what someone says of an answer.

use actix_web::{HttpResponse, web};
use reground_learner::store::id;
use reground_learner::store::rows::{Feedback, Record};
use serde_json::json;
use utoipa::ToSchema;

use super::App;
use super::auth::Caller;
use super::blocking::blocking;
use super::body::JsonBody;
use super::completions::no_completion;
use super::error::{ApiError, ErrorBody, code};
use super::json::{self, Fields, Path};
use crate::config::Role;

/// What someone says of an answer. At least one of `rating`, `correction` and `comment`.
#[derive(Debug, PartialEq, ToSchema)]
pub(super) struct GiveFeedback {
    /// The `id` of the answer.
    pub completion_id: String,
    /// -1 (wrong) to 1 (right).
    pub rating: Option<f64>,
    /// What the answer should have been; at most 32768 characters.
    pub correction: Option<String>,
    /// A remark for people; at most 4096 characters.
    pub comment: Option<String>,
}

/// Keeps feedback to an answer, from its first streamed chunk on. It is on disk when this answers.
#[utoipa::path(post, path = "/v1/feedback", tag = "feedback", request_body = GiveFeedback,
    responses(
        (status = 200, description = "Kept", body = serde_json::Value),
        (status = 404, description = "No such answer of this key, or one that is not recorded", body = ErrorBody),
        (status = 409, description = "This key has said 32 things of the answer already", body = ErrorBody),
        (status = 503, description = "The store cannot be written now", body = ErrorBody),
    ))]
pub(super) async fn create(app: web::Data<App>, caller: Caller, body: JsonBody) -> Result<HttpResponse, ApiError> {
    let given = body.parse(GiveFeedback::parse).await?;
    let recorder = app.recorder.clone();
    // What is learned from must not hold what the model would take for its own control tokens.
    let correction = given.correction.as_deref().unwrap_or_default();
    if let Some(token) = app.generations.info().vocabulary.control_token_in(correction) {
        return Err(ApiError::control_token(token, &"correction"));
    }
    let mut feedback = Feedback {
        id: id::new("fb"),
        created_ms: id::now_ms(),
        record: given.completion_id,
        key: caller.name.to_string(),
        trusted: caller.trusted,
        rating: given.rating,
        correction: given.correction,
        comment: given.comment,
    };
    let kept = blocking(move || {
        let under_way = recorder.under_way(&feedback.record);
        let expected = under_way.is_some();
        let asked_by = match under_way {
            Some(key) => key.to_string(),
            // Between the two looks an answer can only move from the first place to the second.
            None => match recorder.store().get::<Record>(&feedback.record)? {
                Some(record) => record.key,
                None => return Err(no_completion(&feedback.record).at("completion_id")),
            },
        };
        // Whether another key's answer exists is not told.
        if caller.role == Role::Client && *asked_by != *caller.name {
            return Err(no_completion(&feedback.record).at("completion_id"));
        }
        recorder.rules().feedback(&mut feedback);
        recorder.store().add_feedback(&feedback, expected)?;
        Ok(feedback)
    })
    .await?;
    Ok(HttpResponse::Ok().json(json!({
        "id": kept.id,
        "object": "feedback",
        "created": kept.created_ms / 1000,
        "completion_id": kept.record,
        "rating": kept.rating,
        "correction": kept.correction,
        "comment": kept.comment,
    })))
}

impl GiveFeedback {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(body)?, &Path::Root)?;
        let completion_id = fields.required("completion_id", |v, at| json::short_string(v, at, 128))?;
        let rating = fields.optional("rating", |v, at| json::number(v, at, -1.0..=1.0))?;
        let correction = fields.optional("correction", |v, at| json::short_string(v, at, 32_768))?;
        let comment = fields.optional("comment", |v, at| json::short_string(v, at, 4096))?;
        fields.finish()?;
        if correction.as_ref().is_some_and(|correction| correction.trim().is_empty()) {
            return Err(ApiError::invalid("correction", "`correction` is empty; leave it out if there is none"));
        }
        if rating.is_none() && correction.is_none() && comment.is_none() {
            let message = "feedback needs at least one of `rating`, `correction` and `comment`";
            return Err(ApiError::bad_request(code::MISSING, message).at("rating"));
        }
        Ok(Self { completion_id, rating, correction, comment })
    }
}
