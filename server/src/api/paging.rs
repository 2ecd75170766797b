//! Which page of a list is asked for, in OpenAI's parameters.

use actix_web::HttpResponse;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::{ApiError, code, shown};

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Paging {
    /// The last id of the page before.
    pub(super) after: Option<String>,
    /// Most items.
    pub(super) limit: usize,
    /// Latest first.
    pub(super) newest_first: bool,
    /// Parameters that are this list's own.
    pub(super) others: Vec<(String, String)>,
}

impl Paging {
    /// Reads `after`, `limit` (1 to `most`) and `order`; `own` are the names of further parameters.
    ///
    /// # Errors
    /// A parameter that this list does not know, or a value out of range.
    pub(super) fn of(
        parameters: Vec<(String, String)>,
        default_limit: usize,
        most: usize,
        own: &[&str],
    ) -> Result<Self, ApiError> {
        let mut paging = Self { after: None, limit: default_limit, newest_first: true, others: Vec::new() };
        for (name, value) in parameters {
            match name.as_str() {
                "after" => paging.after = Some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=most).contains(limit));
                    paging.limit = limit.ok_or_else(|| {
                        ApiError::invalid("limit", format!("`limit` is {}; allowed: 1 to {most}", shown(&value)))
                    })?;
                }
                "order" if own.contains(&"order") => {
                    paging.newest_first = match value.as_str() {
                        "asc" => false,
                        "desc" => true,
                        _ => return Err(ApiError::invalid("order", "`order` must be asc or desc")),
                    }
                }
                _ if own.contains(&name.as_str()) => paging.others.push((name, value)),
                _ => {
                    let name = shown(&name).into_owned();
                    let message = format!("`{name}` is no parameter of this route");
                    return Err(ApiError::bad_request(code::UNSUPPORTED_PARAMETER, message).at(name));
                }
            }
        }
        Ok(paging)
    }
}

/// A page in OpenAI's shape.
pub(super) fn page<T: Serialize>(items: Vec<T>, more: bool) -> HttpResponse {
    let items: Vec<Value> = items.into_iter().map(|item| json!(item)).collect();
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let (first_id, last_id) = (id(items.first()), id(items.last()));
    HttpResponse::Ok()
        .json(json!({"object": "list", "data": items, "first_id": first_id, "last_id": last_id, "has_more": more}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parameters: &[(&str, &str)]) -> Result<Paging, ApiError> {
        let owned = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Paging::of(owned, 20, 100, &["order", "purpose"])
    }

    #[test]
    fn what_is_asked_for_is_read_and_what_is_unknown_is_named() {
        let paging = of(&[("after", "file-1"), ("limit", "3"), ("order", "asc"), ("purpose", "x")]).unwrap();
        assert_eq!((paging.after.as_deref(), paging.limit, paging.newest_first), (Some("file-1"), 3, false));
        assert_eq!(paging.others, [("purpose".to_owned(), "x".to_owned())]);
        assert_eq!((of(&[]).unwrap().limit, of(&[]).unwrap().newest_first), (20, true));
        for (name, value) in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("order", "up"), ("page", "2")] {
            assert_eq!(of(&[(name, value)]).unwrap_err().param.as_deref(), Some(name), "{name}={value}");
        }
    }
}
