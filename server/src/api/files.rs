//! Uploaded preference data: /v1/files, in OpenAI's shapes.

use std::io;

use actix_web::body::SizedStream;
use actix_web::http::header;
use actix_web::{FromRequest as _, HttpRequest, HttpResponse, web};
use futures::{StreamExt, future, stream};
use multer::{Constraints, Field, Multipart, SizeLimit};
use reground_learner::store::rows::FileRow;
use reground_learner::store::{Query, Store};
use serde::Serialize;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;

use super::App;
use super::auth::Admin;
use super::blocking::blocking;
use super::error::{ApiError, ErrorBody, code, shown};
use super::observe::Arrival;
use super::paging::{Paging, page};
use crate::runs::files::{self, PURPOSE, Upload};

/// Bytes of a multipart body beside the file: boundaries, headers, the purpose.
const AROUND: u64 = 64 << 10;
/// Most files of a page.
const MOST: usize = 10_000;
/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// An uploaded file.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct File {
    /// `file-…`.
    pub id: String,
    /// `file`.
    pub object: &'static str,
    /// Its size.
    pub bytes: u64,
    /// When it came, in seconds since 1970.
    pub created_at: u64,
    /// The name that it came with, without directories.
    pub filename: String,
    /// `fine-tune`.
    pub purpose: String,
    /// `processed`: every line was checked when it came.
    pub status: &'static str,
}

/// The form of an upload.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the form, which is read field by field")]
pub(super) struct UploadFile {
    /// Preference JSONL, LLaVA JSON or BPO JSON; images are data URLs.
    #[schema(value_type = String, format = Binary)]
    pub file: Vec<u8>,
    /// `fine-tune`.
    pub purpose: String,
}

impl From<FileRow> for File {
    fn from(row: FileRow) -> Self {
        let FileRow { id, created_ms, filename, purpose, bytes, .. } = row;
        Self { id, object: "file", bytes, created_at: created_ms / 1000, filename, purpose, status: "processed" }
    }
}

/// Uploads preference data. Every line is checked; a bad one is named.
#[utoipa::path(post, path = "/v1/files", tag = "files",
    request_body(content = UploadFile, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "Taken in", body = File),
        (status = 400, description = "A line cannot be used; the message names it", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 413, description = "Larger than `train.max_file_bytes`", body = ErrorBody),
    ))]
pub(super) async fn create(
    Admin(caller): Admin,
    app: web::Data<App>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<web::Json<File>, ApiError> {
    app.runs()?;
    let store = app.recorder.store().clone();
    let Arrival(arrival) = Arrival::extract(&request).await?;
    let limit = app.config.train.max_file_bytes;
    let received = timeout_at(arrival + app.deadline(), receive(&request, payload, &store, limit));
    let (file, filename) = received.await.map_err(|_| ApiError::body_timeout())??;
    let upload = Upload { filename, key: caller.name.to_string() };
    // The name goes when this is dropped: by the thread that reads the file, which goes on when the caller has left.
    let file = file.into_temp_path();
    let row = blocking(move || Ok(files::add(&store, &file, upload)?)).await?;
    Ok(web::Json(row.into()))
}

/// Lists uploaded files, newest first.
#[utoipa::path(get, path = "/v1/files", tag = "files",
    params(
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 10000, which is the default"),
        ("order" = Option<String>, Query, description = "`desc` (default) or `asc`"),
        ("purpose" = Option<String>, Query, description = "Only files of this purpose"),
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
    let mut by = Vec::new();
    let all = Paging { limit: MOST, ..Paging::NEWEST_FIRST };
    let Paging { after, limit, newest_first } = all.read(parameters.into_inner(), MOST, |name, value| {
        let known = name == "purpose";
        by.extend(known.then(|| ("purpose", value.to_owned())));
        Ok(known)
    })?;
    let query = Query { by, after, limit, newest_first };
    let found = app.runs()?.files(query).await?;
    Ok(page(found.rows.into_iter().map(File::from).collect(), found.more))
}

/// Shows an uploaded file.
#[utoipa::path(get, path = "/v1/files/{file_id}", tag = "files",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The file", body = File),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
    ))]
pub(super) async fn get(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<web::Json<File>, ApiError> {
    Ok(web::Json(app.runs()?.file(&id).await?.into()))
}

/// Gives the bytes of an uploaded file.
#[utoipa::path(get, path = "/v1/files/{file_id}/content", tag = "files",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Its bytes", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
    ))]
pub(super) async fn content(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let (row, path) = app.runs()?.file_content(&id).await?;
    let file = tokio::fs::File::open(path)
        .await
        .map_err(|error| ApiError::unavailable(code::STORAGE, format!("the file cannot be read: {error}"), 5))?;
    let chunks = stream::try_unfold(file, |mut file| async move {
        let mut chunk = web::BytesMut::with_capacity(CHUNK);
        let count = file.read_buf(&mut chunk).await?;
        Ok::<_, io::Error>((count > 0).then(|| (chunk.freeze(), file)))
    });
    Ok(HttpResponse::Ok().content_type("application/octet-stream").body(SizedStream::new(row.bytes, chunks)))
}

/// Removes an uploaded file. Runs that have begun keep what they froze of it.
#[utoipa::path(delete, path = "/v1/files/{file_id}", tag = "files",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Removed", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "There is none of this id", body = ErrorBody),
        (status = 409, description = "A queued job needs it", body = ErrorBody),
    ))]
pub(super) async fn remove(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    app.runs()?.remove_file(&id).await?;
    Ok(HttpResponse::Ok().json(serde_json::json!({"id": *id, "object": "file", "deleted": true})))
}

/// Reads the form into a file of `directory`; with the name that the caller gave it.
async fn receive(
    request: &HttpRequest,
    mut payload: web::Payload,
    store: &Store,
    limit: u64,
) -> Result<(NamedTempFile, String), ApiError> {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(given)
        .map_err(|_| ApiError::media_type("Content-Type must be multipart/form-data with a boundary"))?;
    let sizes = SizeLimit::new().whole_stream(limit + AROUND).for_field("file", limit).for_field("purpose", 1024);
    let (sender, receiver) = mpsc::channel(4);
    // multer wants a stream that can change threads, which actix' payload cannot.
    let pump = async move {
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|error| io::Error::other(error.to_string()));
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
    };
    let form =
        Multipart::with_constraints(ReceiverStream::new(receiver), boundary, Constraints::new().size_limit(sizes));
    let (received, ()) = future::join(read(form, store, limit), pump).await;
    received
}

async fn read(mut form: Multipart<'static>, store: &Store, limit: u64) -> Result<(NamedTempFile, String), ApiError> {
    let (mut file, mut purpose) = (None, None);
    let refused = |error| refuse(error, limit);
    while let Some(field) = form.next_field().await.map_err(refused)? {
        match field.name() {
            Some("file") if file.is_none() => {
                let name = field.file_name().unwrap_or_default().to_owned();
                file = Some((write_down(field, store, limit).await?, name));
            }
            Some("purpose") if purpose.is_none() => purpose = Some(field.text().await.map_err(refused)?),
            name => {
                let name = shown(name.unwrap_or_default()).into_owned();
                let message = format!("the form field `{name}` is not known or there twice; known: file, purpose");
                return Err(ApiError::bad_request(code::UNSUPPORTED_PARAMETER, message).at(name));
            }
        }
    }
    let missing = |name: &str| ApiError::bad_request(code::MISSING, format!("the form has no `{name}`")).at(name);
    match purpose.ok_or_else(|| missing("purpose"))?.as_str() {
        PURPOSE => file.ok_or_else(|| missing("file")),
        other => {
            let message = format!("`purpose` must be `{PURPOSE}`, not `{}`", shown(other));
            Err(ApiError::unsupported("purpose", message))
        }
    }
}

/// Writes the file's bytes down as they come, and leaves the space free that the store needs.
async fn write_down(mut field: Field<'static>, store: &Store, limit: u64) -> Result<NamedTempFile, ApiError> {
    let failed =
        |error: io::Error| ApiError::unavailable(code::STORAGE, format!("the file cannot be written: {error}"), 5);
    let file = NamedTempFile::new_in(store.incoming().map_err(failed)?).map_err(failed)?;
    let mut out = tokio::fs::File::from_std(file.reopen().map_err(failed)?);
    while let Some(chunk) = field.chunk().await.map_err(|error| refuse(error, limit))? {
        store.check_room(chunk.len() as u64)?;
        out.write_all(&chunk).await.map_err(failed)?;
    }
    out.flush().await.map_err(failed)?;
    Ok(file)
}

fn refuse(error: multer::Error, limit: u64) -> ApiError {
    match error {
        multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. } => {
            ApiError::too_large(usize::try_from(limit).unwrap_or(usize::MAX))
        }
        error => ApiError::bad_request(code::INVALID_VALUE, format!("the form cannot be read: {error}")),
    }
}
