//! /v1/pairs: what the server made of what it served, for people to look at, to decide about and to take along.

use std::io::{self, ErrorKind};

use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream;
use reground_learner::bpo::data::blobs::Blobs;
use reground_learner::bpo::data::preference;
use reground_learner::store::rows::{Pair, Row, Verdict, word};
use reground_learner::store::{Edit, Query, Store, StoreError};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::App;
use super::auth::Admin;
use super::blocking::blocking;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody, code, shown};
use super::json::{self, Fields, Path};
use super::paging::{MOST, Paging, page};
use crate::recorder::{Rules, is_redacted};

/// Pairs that are written at once while they are exported.
const AT_ONCE: usize = 16;
/// States that an export has unless others are asked for: what the next run would read.
const TRAINED: [&str; 3] = ["new", "accepted", "used"];
const STATES: &[&str] = &["new", "review", "accepted", "discarded", "used"];
const SOURCES: &[&str] = &["annotation", "correction", "accepted", "self"];
const KINDS: &[&str] = &["image_weakened", "injected", "given"];

/// What a person decides about a pair.
#[derive(Debug, PartialEq, ToSchema)]
pub(super) struct ReviewPair {
    /// `accept`, `swap` (the other answer is right), `discard`, or `edit` (with new texts).
    #[schema(value_type = String)]
    pub verdict: Verdict,
    /// With `edit`: what is right; at most 32768 characters.
    pub chosen: Option<String>,
    /// With `edit`: what is wrong; at most 32768 characters.
    pub rejected: Option<String>,
}

/// Which pairs to export.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub(super) struct ExportPairs {
    /// Of this source of the chosen answer.
    pub source: Option<String>,
    /// Of this kind of the rejected answer.
    pub kind: Option<String>,
    /// In this state; none: `new`, `accepted` and `used`.
    pub state: Option<String>,
}

/// Filters of a list, as the store's indexes know them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Filters {
    by: Vec<(&'static str, String)>,
}

impl Filters {
    fn add(&mut self, name: &str, value: &str) -> Result<bool, ApiError> {
        let (index, words): (_, &[&str]) = match name {
            "source" => ("source", SOURCES),
            "kind" => ("negative", KINDS),
            "state" => ("state", STATES),
            "record" => ("record", &[]),
            "generation" => ("generation", &[]),
            "key" => ("key", &[]),
            _ => return Ok(false),
        };
        if !words.is_empty() && !words.contains(&value) {
            let message = format!("`{name}` cannot be `{}`; allowed: {}", shown(value), words.join(", "));
            return Err(ApiError::invalid(name, message));
        }
        self.by.push((index, value.to_owned()));
        Ok(true)
    }
}

/// Lists pairs.
#[utoipa::path(get, path = "/v1/pairs", tag = "pairs",
    params(
        ("source" = Option<String>, Query, description = "`annotation`, `correction`, `accepted` or `self`"),
        ("kind" = Option<String>, Query, description = "`image_weakened`, `injected` or `given`"),
        ("state" = Option<String>, Query, description = "`new`, `review`, `accepted`, `discarded` or `used`"),
        ("record" = Option<String>, Query, description = "Made of this record"),
        ("generation" = Option<String>, Query, description = "Made of an answer of this generation"),
        ("key" = Option<String>, Query, description = "Came with the API key of this name"),
        ("after" = Option<String>, Query, description = "The last id of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 100; default 20"),
        ("order" = Option<String>, Query, description = "`asc` (default) or `desc`"),
    ),
    responses((status = 200, description = "A page", body = serde_json::Value),
        (status = 400, description = "A parameter is refused", body = ErrorBody),
        (status = 403, description = "Not an admin's key", body = ErrorBody)))]
pub(super) async fn list(
    _: Admin,
    app: web::Data<App>,
    parameters: web::Query<Vec<(String, String)>>,
) -> Result<HttpResponse, ApiError> {
    let mut filters = Filters::default();
    let paging = Paging::OLDEST_FIRST.read(parameters.into_inner(), MOST, |name, value| filters.add(name, value))?;
    let Paging { after, limit, newest_first } = paging;
    let store = app.recorder.store().clone();
    let query = Query { by: filters.by, after, limit, newest_first };
    let found = blocking(move || Ok(store.list_readable::<Pair>(&query)?)).await?;
    Ok(page(found.rows.iter().map(shape).collect(), found.more))
}

/// One pair with its whole provenance.
#[utoipa::path(get, path = "/v1/pairs/{id}", tag = "pairs",
    params(("id" = String, Path, description = "The pair's id")),
    responses((status = 200, description = "The pair", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "No such pair", body = ErrorBody)))]
pub(super) async fn get(_: Admin, app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let store = app.recorder.store().clone();
    let pair = blocking(move || store.get::<Pair>(&id)?.ok_or_else(|| no_pair(&id))).await?;
    Ok(HttpResponse::Ok().json(shape(&pair)))
}

/// Accepts, swaps, discards or edits a pair. The decision and its audit are on disk when this answers.
#[utoipa::path(post, path = "/v1/pairs/{id}/review", tag = "pairs", request_body = ReviewPair,
    params(("id" = String, Path, description = "The pair's id")),
    responses((status = 200, description = "The pair as it is now", body = serde_json::Value),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "No such pair", body = ErrorBody),
        (status = 503, description = "The store cannot be written now", body = ErrorBody)))]
pub(super) async fn review(
    Admin(caller): Admin,
    app: web::Data<App>,
    id: web::Path<String>,
    body: JsonBody,
) -> Result<HttpResponse, ApiError> {
    let review = body.parse(ReviewPair::parse).await?.redacted(app.recorder.rules())?;
    let ReviewPair { verdict, chosen, rejected } = review;
    for (param, text) in [("chosen", &chosen), ("rejected", &rejected)] {
        let text = text.as_deref().unwrap_or_default();
        if let Some(token) = app.generations.info().vocabulary.control_token_in(text) {
            return Err(ApiError::control_token(token, &param));
        }
    }
    let store = app.recorder.store().clone();
    let pair = blocking(move || {
        store.review(&id, &caller.name, verdict, Edit { chosen, rejected }).map_err(|error| match error {
            StoreError::Missing { kind: Pair::KIND, .. } => no_pair(&id),
            StoreError::Invalid { why, .. } => ApiError::invalid("verdict", format!("that gives no pair: {why}")),
            other => other.into(),
        })
    })
    .await?;
    Ok(HttpResponse::Ok().json(shape(&pair)))
}

/// Pairs as preference rows, one JSON object a line, images inside: what `reground train --import` and OpenAI's preference
/// fine-tuning read. Pairs without a rejected answer are left out, and so are those of which an image is missing or damaged.
#[utoipa::path(post, path = "/v1/pairs/export", tag = "pairs", request_body = ExportPairs,
    responses((status = 200, description = "Preference rows", content_type = "application/jsonl", body = String),
        (status = 403, description = "Not an admin's key", body = ErrorBody)))]
pub(super) async fn export(_: Admin, app: web::Data<App>, body: JsonBody) -> Result<HttpResponse, ApiError> {
    let filters = body.parse(ExportPairs::parse).await?;
    let store = app.recorder.store().clone();
    let query = Query { by: filters.by, limit: AT_ONCE, ..Query::default() };
    let lines = stream::try_unfold(Some(query), move |query| {
        let store = store.clone();
        async move {
            let Some(query) = query else { return Ok::<_, ApiError>(None) };
            let (lines, next) = blocking(move || Ok(lines(&store, query)?)).await?;
            Ok(Some((Bytes::from(lines), next)))
        }
    });
    Ok(HttpResponse::Ok().content_type("application/jsonl").streaming(Box::pin(lines)))
}

/// The lines of the next few pairs, and what to ask for after them. A pair whose image is gone would end the export for all behind it,
/// because the status is sent by then: it is left out and logged.
fn lines(store: &Store, mut query: Query) -> Result<(Vec<u8>, Option<Query>), StoreError> {
    let page = store.list_readable::<Pair>(&query)?;
    let asked_state = query.by.iter().any(|(index, _)| *index == "state");
    let mut lines = Vec::new();
    for pair in &page.rows {
        if !asked_state && !TRAINED.contains(&word(pair.state).as_str()) {
            continue;
        }
        let urls = pair.data.images.iter().map(|image| data_url(&Blobs::get(store, &image.digest)?));
        let urls = match urls.collect::<io::Result<Vec<_>>>() {
            Ok(urls) => urls,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidData) => {
                tracing::warn!(pair.id = pair.data.id, %error, "An image of a pair is missing or damaged; the pair is not exported");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(row) = preference::row(&pair.data, &urls) {
            lines.extend_from_slice(row.to_string().as_bytes());
            lines.push(b'\n');
        }
    }
    query.after = page.rows.last().map(|pair| pair.data.id.clone());
    Ok((lines, page.more.then_some(query)))
}

fn data_url(image: &[u8]) -> io::Result<String> {
    let format = image::guess_format(image).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    Ok(format!("data:{};base64,{}", format.to_mime_type(), BASE64_STANDARD.encode(image)))
}

fn no_pair(id: &str) -> ApiError {
    ApiError::not_found(code::PAIR_NOT_FOUND, format!("there is no pair `{}`", shown(id)))
}

impl ReviewPair {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        const VERDICTS: [(&str, Verdict); 4] = [
            ("accept", Verdict::Accept),
            ("swap", Verdict::Swap),
            ("discard", Verdict::Discard),
            ("edit", Verdict::Edit),
        ];
        let mut fields = Fields::of(json::parse(body)?, &Path::Root)?;
        let verdict = fields.required("verdict", |v, at| json::one_of(v, at, &VERDICTS))?;
        let chosen = fields.optional("chosen", |v, at| json::short_string(v, at, 32_768))?;
        let rejected = fields.optional("rejected", |v, at| json::short_string(v, at, 32_768))?;
        fields.finish()?;
        let texts = [("chosen", &chosen), ("rejected", &rejected)];
        if let Some((param, _)) =
            texts.iter().find(|(_, text)| text.as_ref().is_some_and(|text| text.trim().is_empty()))
        {
            return Err(ApiError::invalid(param, format!("`{param}` is empty; an answer says something")));
        }
        match (verdict, texts.iter().find(|(_, text)| text.is_some())) {
            (Verdict::Edit, None) => {
                let message = "`edit` needs a new text: `chosen`, `rejected` or both";
                Err(ApiError::bad_request(code::MISSING, message).at("chosen"))
            }
            (Verdict::Edit, Some(_)) | (_, None) => Ok(Self { verdict, chosen, rejected }),
            (_, Some((param, _))) => {
                Err(ApiError::invalid(param, format!("`{param}` goes with the verdict `edit` only")))
            }
        }
    }

    /// Without what must not be written down.
    ///
    /// # Errors
    /// What would be chosen has a mark in it, which a model must not learn to say.
    fn redacted(mut self, rules: &Rules) -> Result<Self, ApiError> {
        for text in self.chosen.iter_mut().chain(&mut self.rejected) {
            rules.text(text);
        }
        if self.chosen.as_deref().is_some_and(is_redacted) {
            let message = "the redaction rules find something in `chosen`, whose mark a model must not learn to say";
            return Err(ApiError::invalid("chosen", message));
        }
        Ok(self)
    }
}

impl ExportPairs {
    /// An empty body is `{}`.
    fn parse(body: &[u8]) -> Result<Filters, ApiError> {
        let body = if body.is_empty() { b"{}" } else { body };
        let mut fields = Fields::of(json::parse(body)?, &Path::Root)?;
        let mut filters = Filters::default();
        for name in ["source", "kind", "state"] {
            if let Some(value) = fields.optional(name, |v, at| json::short_string(v, at, 64))? {
                filters.add(name, &value)?;
            }
        }
        fields.finish()?;
        Ok(filters)
    }
}

fn shape(pair: &Pair) -> Value {
    let data = &pair.data;
    json!({
        "id": data.id,
        "object": "pair",
        "created": pair.created_ms / 1000,
        "state": pair.state,
        "reason": pair.reason,
        "source": data.source,
        "kind": data.negative,
        "images": data.images,
        "conversation": data.conversation,
        "chosen": data.chosen,
        "rejected": data.rejected,
        "record": pair.record,
        "generation": pair.generation,
        "feedback": pair.feedback,
        "key": pair.key,
        "distortion": data.distortion,
        "made": pair.made,
        "filters": pair.filters,
        "reviews": pair.reviews,
        "runs": pair.runs,
    })
}

#[cfg(test)]
mod tests {
    use reground_learner::bpo::pair::{ImageRef, Message, NegativeKind, Part, PreferencePair, Role, Source};
    use reground_learner::store::rows::PairState;
    use reground_learner::store::{Options, id};

    use super::*;

    fn pair(store: &Store, image: &[u8]) -> Pair {
        let digest = Blobs::put(store, image).unwrap();
        let pair = Pair {
            created_ms: id::now_ms(),
            record: None,
            generation: None,
            feedback: None,
            made: None,
            key: None,
            filters: std::collections::BTreeMap::new(),
            state: PairState::New,
            reason: None,
            reviews: Vec::new(),
            runs: Vec::new(),
            data: PreferencePair {
                id: id::new("pair"),
                images: vec![ImageRef { digest, width: 4, height: 4 }],
                conversation: vec![Message { role: Role::User, content: vec![Part::Image { index: 0 }] }],
                chosen: "A circle.".into(),
                rejected: Some("A square.".into()),
                distortion: None,
                source: Source::Correction,
                negative: Some(NegativeKind::Injected),
            },
        };
        store.insert(&pair).unwrap();
        pair
    }

    #[test]
    fn a_pair_without_its_image_does_not_end_an_export() {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path(), Options { min_free_bytes: 0, ..Options::default() }).unwrap();
        let png = |tail: &[u8]| [b"\x89PNG\r\n\x1a\n".as_slice(), tail].concat();
        let file = |pair: &Pair| store.blob_path(&pair.data.images[0].digest).unwrap();
        std::fs::remove_file(file(&pair(&store, &png(b"gone")))).unwrap();
        pair(&store, &png(b"there"));
        std::fs::write(file(&pair(&store, &png(b"whole"))), b"damaged").unwrap();
        pair(&store, b"no image");
        pair(&store, &png(b"there, too"));
        let (mut found, mut query) = (0, Some(Query { limit: 2, ..Query::default() }));
        while let Some(asked) = query {
            let (lines, next) = lines(&store, asked).unwrap();
            found += lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
            query = next;
        }
        assert_eq!(found, 2);
    }

    #[test]
    fn a_review_is_one_of_four_things() {
        let parse = |body: Value| ReviewPair::parse(body.to_string().as_bytes());
        assert_eq!(parse(json!({"verdict": "swap"})).unwrap().verdict, Verdict::Swap);
        let edit = parse(json!({"verdict": "edit", "chosen": "A hat."})).unwrap();
        assert_eq!((edit.verdict, edit.chosen.as_deref()), (Verdict::Edit, Some("A hat.")));
        for (body, param) in [
            (json!({}), "verdict"),
            (json!({"verdict": "keep"}), "verdict"),
            (json!({"verdict": "edit"}), "chosen"),
            (json!({"verdict": "edit", "chosen": "A hat.", "rejected": " "}), "rejected"),
            (json!({"verdict": "accept", "rejected": "x"}), "rejected"),
            (json!({"verdict": "accept", "by": "x"}), "by"),
        ] {
            assert_eq!(parse(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
    }

    #[test]
    fn what_must_not_be_written_down_is_in_no_edit() {
        let rules = Rules::new(&["email".to_owned()], &[]).unwrap();
        let edit = |chosen: Option<&str>, rejected: Option<&str>| {
            let [chosen, rejected] = [chosen, rejected].map(|text| text.map(str::to_owned));
            ReviewPair { verdict: Verdict::Edit, chosen, rejected }.redacted(&rules)
        };
        let edited = edit(Some("A hat."), Some("Ask ann@mail.example.org.")).unwrap();
        assert_eq!(edited.chosen.as_deref(), Some("A hat."));
        assert_eq!(edited.rejected.as_deref(), Some("Ask [redacted:email]."));
        let refused = edit(Some("Ask ann@mail.example.org."), None).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("chosen"));
    }

    #[test]
    fn the_filters_are_the_words_of_the_store() {
        let mut filters = Filters::default();
        assert!(filters.add("kind", "injected").unwrap() && filters.add("state", "review").unwrap());
        assert_eq!(filters.by, [("negative", "injected".to_owned()), ("state", "review".to_owned())]);
        assert!(!filters.add("colour", "red").unwrap());
        assert!(filters.add("source", "guess").unwrap_err().message.contains("annotation, correction, accepted, self"));
        assert_eq!(ExportPairs::parse(b"").unwrap(), Filters::default());
    }
}
