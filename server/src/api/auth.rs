//! Who is calling: keys, roles, and the door in front of every route.

use std::future::{Ready, ready};
use std::sync::Arc;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header;
use actix_web::middleware::Next;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, web};
use subtle::ConstantTimeEq;

use super::App;
use super::error::ApiError;
use super::page;
use crate::config::{AuthConfig, ConfigError, Role};

/// The name that requests count for when no key is configured.
const LOCAL: &str = "local";

/// The one route that answers without a key.
const OPEN: &str = "/health";

/// The configured keys, as digests.
pub struct Keyring {
    entries: Vec<Entry>,
}

struct Entry {
    digest: blake3::Hash,
    caller: Caller,
}

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of the key.
    pub name: Arc<str>,
    /// What it opens.
    pub role: Role,
    /// Whether corrections that come with it are learned from without review.
    pub trusted: bool,
}

/// A caller whose key opens everything. As a handler's parameter it is the 403 of the route.
#[derive(Clone, Debug)]
pub(super) struct Admin(pub(super) Caller);

impl Keyring {
    /// Reads the keys. None: every caller is an admin by the name `local`.
    ///
    /// # Errors
    /// A secret cannot be read, or two names have the same key.
    pub fn new(config: &AuthConfig) -> Result<Self, ConfigError> {
        let mut entries: Vec<Entry> = Vec::with_capacity(config.keys.len());
        for key in &config.keys {
            let digest = blake3::hash(key.key.read()?.as_bytes());
            if entries.iter().any(|entry| entry.digest == digest) {
                return Err(ConfigError::value("auth.keys.key", &key.name, "a key that no other name has"));
            }
            let trusted = key.trusted || key.role == Role::Admin;
            entries.push(Entry { digest, caller: Caller { name: key.name.as_str().into(), role: key.role, trusted } });
        }
        Ok(Self { entries })
    }

    /// Whose token it is. The time it takes says nothing about the keys: digests are compared in constant time, all of
    /// them every time.
    #[must_use]
    pub fn find(&self, token: &str) -> Option<Caller> {
        let digest = blake3::hash(token.as_bytes());
        let mut found = None;
        for entry in &self.entries {
            if bool::from(entry.digest.as_bytes().ct_eq(digest.as_bytes())) {
                found = Some(&entry.caller);
            }
        }
        found.cloned()
    }

    /// Whether no key is configured.
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Who sends a request with this `Authorization` header.
    fn authenticate(&self, authorization: Option<&header::HeaderValue>) -> Result<Caller, ApiError> {
        if self.is_empty() {
            return Ok(Caller { name: LOCAL.into(), role: Role::Admin, trusted: true });
        }
        let header = authorization
            .ok_or_else(|| ApiError::unauthorized("no API key given; send it as `Authorization: Bearer KEY`"))?;
        let token = header.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let token = token.ok_or_else(|| {
            ApiError::unauthorized("the Authorization header is badly formed; it must be `Authorization: Bearer KEY`")
        })?;
        self.find(token).ok_or_else(|| ApiError::unauthorized("this API key is not known here"))
    }
}

/// Middleware: no one passes without a key, not even to a 404.
pub(super) async fn require_key(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if request.path() != OPEN {
        let Some(app) = request.app_data::<web::Data<App>>() else {
            return Ok(request.error_response(ApiError::internal("the server has no state")));
        };
        if app.keyring.is_empty() {
            let head = request.head();
            if let Err(error) = page::refuse_foreign(&head.uri, &head.headers, &app.config.server.cors_origins) {
                return Ok(request.error_response(error));
            }
        }
        match app.keyring.authenticate(request.headers().get(header::AUTHORIZATION)) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(error) => return Ok(request.error_response(error)),
        }
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Self>().cloned();
        ready(caller.ok_or_else(|| ApiError::unauthorized("no API key given")))
    }
}

impl FromRequest for Admin {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let caller = Caller::from_request(request, payload).into_inner();
        ready(caller.and_then(|caller| match caller.role {
            Role::Admin => Ok(Self(caller)),
            Role::Client => Err(ApiError::forbidden("this route needs a key with the role `admin`")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;
    use crate::api::testing;

    #[test]
    fn keys_open_by_their_exact_text() {
        let keyring = testing::keyring(&[("alice", "sk-alice", Role::Client), ("root", "sk-root", Role::Admin)]);
        assert_eq!(keyring.find("sk-alice").unwrap().role, Role::Client);
        assert_eq!(&*keyring.find("sk-root").unwrap().name, "root");
        for wrong in ["", "sk-alic", "sk-alice ", "SK-ALICE", "sk-alicesk-root"] {
            assert_eq!(keyring.find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_header_is_a_bearer_token() {
        let keyring = testing::keyring(&[("alice", "sk-alice", Role::Client)]);
        let with = |value: &str| keyring.authenticate(Some(&HeaderValue::from_str(value).unwrap()));
        assert!(with("Bearer sk-alice").is_ok());
        assert!(with("bearer  sk-alice").is_ok());
        for wrong in ["sk-alice", "Basic sk-alice", "Bearer", "Bearer ", "Bearer sk-bob"] {
            let error = with(wrong).unwrap_err();
            assert_eq!(error.status.as_u16(), 401, "{wrong}");
            assert!(!error.message.contains("sk-"), "{}", error.message);
        }
        assert_eq!(keyring.authenticate(None).unwrap_err().status.as_u16(), 401);
    }

    #[test]
    fn without_keys_everyone_is_the_local_admin() {
        let keyring = Keyring::new(&AuthConfig::default()).unwrap();
        let caller = keyring.authenticate(None).unwrap();
        assert_eq!((&*caller.name, caller.role), ("local", Role::Admin));
    }

    #[test]
    fn two_names_cannot_have_one_key() {
        let config = testing::auth_config(&[("a", "sk-same", Role::Client), ("b", "sk-same", Role::Admin)]);
        assert!(Keyring::new(&config.1).err().unwrap().to_string().contains("no other name"));
    }
}
