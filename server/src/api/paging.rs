//! Lists in OpenAI's shape: `after`, `limit`, `order`.

use actix_web::HttpResponse;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::{ApiError, code, shown};

/// Most items of a page.
pub(super) const MOST: usize = 100;

/// Which page of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Paging {
    /// Behind this id.
    pub(super) after: Option<String>,
    /// Most items.
    pub(super) limit: usize,
    /// `order=desc`.
    pub(super) newest_first: bool,
}

impl Paging {
    /// Twenty items, oldest first: what most lists give when nothing is asked for.
    pub(super) const OLDEST_FIRST: Self = Self { after: None, limit: 20, newest_first: false };
    /// Twenty items, latest first.
    pub(super) const NEWEST_FIRST: Self = Self { after: None, limit: 20, newest_first: true };

    /// Reads the parameters of a list over what it gives without them, `limit` from 1 to `most`; every other one goes to
    /// `filter`, which says whether it is one of the route's.
    ///
    /// # Errors
    /// A parameter that the route does not know, or a wrong value.
    pub(super) fn read(
        self,
        parameters: Vec<(String, String)>,
        most: usize,
        mut filter: impl FnMut(&str, &str) -> Result<bool, ApiError>,
    ) -> Result<Self, ApiError> {
        let mut paging = self;
        for (name, value) in parameters {
            match name.as_str() {
                "after" => paging.after = Some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=most).contains(limit));
                    paging.limit = limit.ok_or_else(|| {
                        ApiError::invalid("limit", format!("`limit` is {}; allowed: 1 to {most}", shown(&value)))
                    })?;
                }
                "order" => {
                    paging.newest_first = match value.as_str() {
                        "asc" => false,
                        "desc" => true,
                        _ => return Err(ApiError::invalid("order", "`order` must be asc or desc")),
                    }
                }
                other => {
                    if !filter(other, &value)? {
                        let name = shown(other).into_owned();
                        let message = format!("`{name}` is no parameter of this route");
                        return Err(ApiError::bad_request(code::UNSUPPORTED_PARAMETER, message).at(name));
                    }
                }
            }
        }
        Ok(paging)
    }
}

/// A page; each item has an `id`.
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

    fn read(parameters: &[(&str, &str)]) -> Result<Paging, ApiError> {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Paging::OLDEST_FIRST.read(parameters, MOST, |name, _| Ok(name == "state"))
    }

    #[test]
    fn a_page_is_asked_for_as_openai_does() {
        assert_eq!(read(&[]).unwrap(), Paging { after: None, limit: 20, newest_first: false });
        let all = read(&[("after", "pair-1"), ("limit", "100"), ("order", "desc"), ("state", "new")]).unwrap();
        assert_eq!(all, Paging { after: Some("pair-1".into()), limit: 100, newest_first: true });
        for (name, value) in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("order", "up"), ("colour", "red")] {
            assert_eq!(read(&[(name, value)]).unwrap_err().param.as_deref(), Some(name), "{value}");
        }
    }
}
