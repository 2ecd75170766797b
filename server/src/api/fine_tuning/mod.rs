//! OpenAI's fine-tuning API over runs: /v1/fine_tuning/jobs.
//!
//! # Layout
//! - `request`: what a job is asked for; `shape`: jobs, events and checkpoints as OpenAI's clients know them.

mod request;
pub(super) mod shape;

use actix_web::{HttpResponse, web};
use reground_learner::store::Query;
use reground_learner::store::rows::Run;

use self::request::CreateJob;
use self::shape::{Checkpoint, Event, Job};
use super::App;
use super::auth::Admin;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody, code};
use super::paging::{MOST, Paging, page};
use crate::runs::{Runs, RunsError};

impl App {
    /// What trains.
    pub(super) fn runs(&self) -> Result<&Runs, ApiError> {
        self.runs
            .as_deref()
            .ok_or_else(|| ApiError::not_found(code::JOB_NOT_FOUND, "this server keeps no data, so it trains nothing"))
    }

    async fn job(&self, run: Run) -> Result<web::Json<Job>, ApiError> {
        let gate = self.runs()?.gate(&run.id).await?;
        Ok(web::Json(Job { gate, ..Job::new(&self.config.model.name, run) }))
    }
}

/// Starts a fine-tuning job, when those before it are done.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs", tag = "fine-tuning", request_body = CreateJob,
    responses(
        (status = 200, description = "It is queued", body = Job),
        (status = 400, description = "A parameter is refused, or there is nothing to train on", body = ErrorBody),
        (status = 403, description = "Not an admin's key, or `train.enabled` is off", body = ErrorBody),
        (status = 404, description = "No such model or generation to start from", body = ErrorBody),
    ))]
pub(super) async fn create(
    Admin(caller): Admin,
    app: web::Data<App>,
    body: JsonBody,
) -> Result<web::Json<Job>, ApiError> {
    let runs = app.runs()?;
    let name = app.config.model.name.clone();
    let request = body.parse(move |bytes| request::parse(bytes, &name)).await?;
    let run = runs.create(request, &caller.name).await.map_err(|error| match error {
        // The body names it, not the path.
        RunsError::UnknownFile(_) => ApiError::bad_request(code::FILE_NOT_FOUND, error.to_string()).at("training_file"),
        error => error.into(),
    })?;
    app.job(run).await
}

/// Lists jobs, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs", tag = "fine-tuning",
    params(
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 20"),
    ),
    responses(
        (status = 200, description = "A page", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
    ))]
pub(super) async fn list(
    _: Admin,
    app: web::Data<App>,
    parameters: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let Paging { after, limit, newest_first } =
        Paging::NEWEST_FIRST.read(parameters.into_inner(), MOST, |_, _| Ok(false))?;
    let found = app.runs()?.list(Query { by: Vec::new(), after, limit, newest_first }).await?;
    let name = &app.config.model.name;
    Ok(page(found.rows.into_iter().map(|run| Job::new(name, run)).collect(), found.more))
}

/// Shows a job.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The job", body = Job),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
    ))]
pub(super) async fn get(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<web::Json<Job>, ApiError> {
    let run = app.runs()?.get(&id).await?;
    app.job(run).await
}

/// Ends a job for good.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/cancel", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is cancelled", body = Job),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "It is over", body = ErrorBody),
    ))]
pub(super) async fn cancel(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<web::Json<Job>, ApiError> {
    let run = app.runs()?.cancel(&id).await?;
    app.job(run).await
}

/// Stops a job between two steps, to go on later.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/pause", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is paused", body = Job),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "It is over or paused", body = ErrorBody),
    ))]
pub(super) async fn pause(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<web::Json<Job>, ApiError> {
    let run = app.runs()?.pause(&id).await?;
    app.job(run).await
}

/// Puts a paused job back into the queue.
#[utoipa::path(post, path = "/v1/fine_tuning/jobs/{job_id}/resume", tag = "fine-tuning",
    params(("job_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is queued", body = Job),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "It is not paused", body = ErrorBody),
    ))]
pub(super) async fn resume(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<web::Json<Job>, ApiError> {
    let run = app.runs()?.resume(&id).await?;
    app.job(run).await
}

/// Lists what happened in a job, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/events", tag = "fine-tuning",
    params(
        ("job_id" = String, Path, description = "Its id"),
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 20"),
    ),
    responses(
        (status = 200, description = "A page", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
    ))]
pub(super) async fn events(
    _: Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    parameters: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let Paging { after, limit, .. } = Paging::NEWEST_FIRST.read(parameters.into_inner(), MOST, |_, _| Ok(false))?;
    let found = app.runs()?.events(&id, false, after, limit).await?;
    Ok(page(found.rows.into_iter().map(Event::from).collect(), found.more))
}

/// Lists the steps after which a job could go on, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/checkpoints", tag = "fine-tuning",
    params(
        ("job_id" = String, Path, description = "Its id"),
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 10"),
    ),
    responses(
        (status = 200, description = "A page", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
    ))]
pub(super) async fn checkpoints(
    _: Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    parameters: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let Paging { after, limit, .. } =
        Paging { limit: 10, ..Paging::NEWEST_FIRST }.read(parameters.into_inner(), MOST, |_, _| Ok(false))?;
    let found = app.runs()?.events(&id, true, after, limit).await?;
    Ok(page(found.rows.into_iter().map(Checkpoint::from).collect(), found.more))
}

impl From<RunsError> for ApiError {
    fn from(error: RunsError) -> Self {
        let message = error.to_string();
        match error {
            RunsError::Disabled => Self::forbidden(message),
            RunsError::UnknownRun(_) => Self::not_found(code::JOB_NOT_FOUND, message),
            RunsError::UnknownFile(_) => Self::not_found(code::FILE_NOT_FOUND, message),
            RunsError::UnknownGeneration(_) => Self::not_found(code::MODEL_NOT_FOUND, message).at("model"),
            RunsError::State { .. }
            | RunsError::Concluded { .. }
            | RunsError::FileInUse { .. }
            | RunsError::Anchor(_) => Self::conflict(message),
            RunsError::BadFile(_) => Self::bad_request(code::INVALID_FILE, message).at("file"),
            RunsError::NoData(_) => Self::bad_request(code::NO_DATA, message).at("training_file"),
            RunsError::Rollout(error) => error.into(),
            RunsError::Store(error) => error.into(),
            RunsError::Io(_) => Self::unavailable(code::STORAGE, message, 5),
        }
    }
}
