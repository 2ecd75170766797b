//! Without keys: programs of this machine may ask, a web page that somebody has open may not.
//!
//! A browser sends what any page tells it to, also to this machine. A page of another site is known by its `Origin`; one whose
//! name was made to lead here (DNS rebinding) by its `Host`.

use std::net::IpAddr;

use actix_web::http::Uri;
use actix_web::http::header::{self, HeaderMap};
use actix_web::http::uri::Authority;

use super::error::ApiError;

/// Refuses what a page of another site has a browser send; pages of `origins` may, or all with `*`.
///
/// # Errors
/// 403.
pub(super) fn refuse_foreign(uri: &Uri, headers: &HeaderMap, origins: &[String]) -> Result<(), ApiError> {
    // HTTP/2 has it in the address. Not `connection_info`: a page can send `X-Forwarded-Host`.
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    let authority = uri.authority().map(Authority::as_str).or(host).unwrap_or_default();
    if !is_this_machine(authority) {
        let message = "without API keys this server answers only under a name of this machine (`localhost`, `127.0.0.1`, `[::1]`), \
                       and the Host of this request is another one";
        return Err(ApiError::forbidden(message));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let is_allowed = origin.to_str().is_ok_and(|origin| {
        let is_own = origin.split_once("://").is_some_and(|(_, host)| host.eq_ignore_ascii_case(authority));
        is_own || origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    });
    if is_allowed {
        return Ok(());
    }
    let message =
        "without API keys this server does nothing for web pages of other origins but those of `server.cors_origins`";
    Err(ApiError::forbidden(message))
}

/// Whether `host` or `host:port` can be nothing but this machine; no name at all comes from no browser.
fn is_this_machine(authority: &str) -> bool {
    if authority.is_empty() {
        return true;
    }
    let Ok(authority) = authority.parse::<Authority>() else { return false };
    let host = authority.host().to_ascii_lowercase();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn asked(authority: &str, origin: Option<&'static str>, origins: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(authority).unwrap());
        headers.insert(HeaderName::from_static("x-forwarded-host"), HeaderValue::from_static("localhost"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        refuse_foreign(&Uri::from_static("/v1/models"), &headers, &origins).is_ok()
    }

    #[test]
    fn names_of_this_machine_and_no_others() {
        for own in
            ["", "localhost", "localhost:8080", "LOCALHOST:1", "a.localhost", "127.0.0.1:8080", "127.9.9.9", "[::1]:80"]
        {
            assert!(asked(own, None, &[]), "{own:?}");
        }
        for other in
            ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "localhost.evil", "[::2]", "@"]
        {
            assert!(!asked(other, None, &[]), "{other:?}");
        }
    }

    #[test]
    fn pages_of_this_server_and_of_configured_origins_and_no_others() {
        let here = "127.0.0.1:8080";
        assert!(asked(here, Some("http://127.0.0.1:8080"), &[]));
        for other in
            ["https://evil.example", "http://127.0.0.1:9090", "http://localhost:8080", "null", "127.0.0.1:8080"]
        {
            assert!(!asked(here, Some(other), &[]), "{other:?}");
        }
        assert!(asked(here, Some("https://app.example"), &["https://app.example"]));
        assert!(asked(here, Some("https://evil.example"), &["*"]));
        assert!(!asked("evil.example", Some("http://evil.example"), &["*"]), "rebinding");
    }
}
