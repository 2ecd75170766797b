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
    let anchors = request.anchors.clone().unwrap_or_default();
    let run = runs.create(request, &caller.name).await.map_err(|error| match &error {
        // The body names it, not the path.
        RunsError::UnknownFile(file) => {
            ApiError::bad_request(code::FILE_NOT_FOUND, error.to_string()).at(place(&anchors, file))
        }
        _ => error.into(),
    })?;
    app.job(run).await
}

/// The parameter that names a file which is not there.
fn place(anchors: &[String], file: &str) -> String {
    let index = anchors.iter().position(|anchor| anchor == file);
    index.map_or_else(|| "training_file".to_owned(), |index| format!("anchors[{index}]"))
}

/// Lists jobs, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs", tag = "fine-tuning",
    params(
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 20"),
        ("order" = Option<String>, Query, description = "`asc` or `desc` (default)"),
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
        ("order" = Option<String>, Query, description = "`asc` or `desc` (default)"),
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
    let Paging { after, limit, newest_first } =
        Paging::NEWEST_FIRST.read(parameters.into_inner(), MOST, |_, _| Ok(false))?;
    let query = Query { by: Vec::new(), after, limit, newest_first };
    let found = app.runs()?.history(&id, false, query).await?;
    Ok(page(found.rows.into_iter().map(Event::from).collect(), found.more))
}

/// Lists the steps after which a job could go on, newest first.
#[utoipa::path(get, path = "/v1/fine_tuning/jobs/{job_id}/checkpoints", tag = "fine-tuning",
    params(
        ("job_id" = String, Path, description = "Its id"),
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 10"),
        ("order" = Option<String>, Query, description = "`asc` or `desc` (default)"),
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
    let Paging { after, limit, newest_first } =
        Paging { limit: 10, ..Paging::NEWEST_FIRST }.read(parameters.into_inner(), MOST, |_, _| Ok(false))?;
    let query = Query { by: Vec::new(), after, limit, newest_first };
    let found = app.runs()?.history(&id, true, query).await?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actix_web::test::{self, TestRequest};
    use reground_learner::store::rows::{EventKind, EventLevel, RunEvent, RunState};
    use serde_json::{Value, json};

    use super::*;
    use crate::api::configure;
    use crate::api::testing::{Server, open_server};
    use crate::runs::{Base, Program};

    /// A server that takes jobs; none gets as far as a process in these tests.
    async fn training_server() -> Server {
        let mut server = open_server().await;
        let app = Arc::into_inner(server.app.into_inner()).unwrap();
        let (store, rollout) = (app.recorder.store().clone(), app.rollout.clone());
        let base = Base { checkpoint: "pocket".into(), source: "builtin".into(), digest: None };
        let program = Program { path: "/bin/false".into(), arguments: Vec::new() };
        let runs = Runs::start(store, rollout, &app.config, base, program);
        server.app = web::Data::new(app.with_runs(Arc::new(runs)));
        server
    }

    async fn send(server: &Server, request: TestRequest) -> (u16, Value) {
        let service = test::init_service(actix_web::App::new().configure(configure(server.app.clone()))).await;
        let response = test::call_service(&service, request.to_request()).await;
        (response.status().as_u16(), test::read_body_json(response).await)
    }

    async fn refused(server: &Server, more: Value) -> (u16, String, String) {
        let mut body = json!({"model": "reground", "training_file": "pairs"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, said) = send(server, TestRequest::post().uri("/v1/fine_tuning/jobs").set_json(body)).await;
        let text = |name: &str| said["error"][name].as_str().unwrap_or_default().to_owned();
        (status, text("code"), text("param"))
    }

    #[actix_web::test]
    async fn events_and_checkpoints_come_in_the_order_that_was_asked_for() {
        let server = training_server().await;
        let store = server.app.recorder.store();
        let run = Run {
            id: "ftjob-1".into(),
            created_ms: 1,
            started_ms: None,
            finished_ms: Some(2),
            state: RunState::Cancelled,
            trigger: "test".into(),
            parent: "base".into(),
            dataset_digest: None,
            pairs: 0,
            request: Value::Null,
            adapter: None,
            restarts: 0,
            error: None,
            refused: false,
        };
        store.insert(&run).unwrap();
        for number in 1..=3 {
            let event = RunEvent {
                id: format!("ftevent-{number}"),
                run: run.id.clone(),
                created_ms: number,
                level: EventLevel::Info,
                kind: EventKind::Checkpoint,
                message: "A checkpoint is written.".into(),
                data: json!({"step": number}),
            };
            store.insert(&event).unwrap();
        }
        let cases: [(&str, &[&str]); 4] = [
            ("", &["ftevent-3", "ftevent-2", "ftevent-1"]),
            ("order=asc", &["ftevent-1", "ftevent-2", "ftevent-3"]),
            ("order=asc&after=ftevent-1&limit=1", &["ftevent-2"]),
            ("order=desc&after=ftevent-3&limit=1", &["ftevent-2"]),
        ];
        for list in ["events", "checkpoints"] {
            for (parameters, expected) in cases {
                let uri = format!("/v1/fine_tuning/jobs/ftjob-1/{list}?{parameters}");
                let (status, page) = send(&server, TestRequest::get().uri(&uri)).await;
                assert_eq!(status, 200, "{page}");
                let ids: Vec<&str> =
                    page["data"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
                assert_eq!(ids, expected, "{uri}");
            }
        }
    }

    #[actix_web::test]
    async fn the_parameter_at_fault_is_named() {
        let server = training_server().await;
        let fault = |code: &str, param: &str| (400, code.to_owned(), param.to_owned());
        let gone = refused(&server, json!({"anchors": ["file-gone"]})).await;
        assert_eq!(gone, fault(code::FILE_NOT_FOUND, "anchors[0]"));
        let gone = refused(&server, json!({"training_file": "file-gone"})).await;
        assert_eq!(gone, fault(code::FILE_NOT_FOUND, "training_file"));
        assert_eq!(place(&["file-1".to_owned(), "file-2".to_owned()], "file-2"), "anchors[1]");
    }

    #[actix_web::test]
    async fn a_generation_that_cannot_be_read_is_not_one_that_is_not_there() {
        let server = training_server().await;
        let (status, code, param) = refused(&server, json!({"model": "reground@ad-2"})).await;
        assert_eq!((status, code.as_str(), param.as_str()), (404, code::MODEL_NOT_FOUND, "model"));
        // A directory where the manifest should be.
        let manifest = server.app.recorder.store().adapter_directory("ad-1").join("manifest.json");
        fs_err::create_dir_all(manifest).unwrap();
        let (status, code, _) = refused(&server, json!({"model": "reground@ad-1"})).await;
        assert_eq!((status, code.as_str()), (503, code::STORAGE));
    }
}
