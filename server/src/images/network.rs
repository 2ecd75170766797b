//! The two things of a fetch that touch the network, as traits: tests put others in their place, so that no test, however
//! wrong the code, opens a connection.

use std::io;
use std::net::{IpAddr, SocketAddr};

use actix_web::web::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use thiserror::Error;
use url::Url;

/// Looks up the addresses of names.
pub trait Resolver: Send + Sync {
    /// All addresses of a name. Called once for each host of a fetch.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// Sends single requests.
pub trait Transport: Send + Sync {
    /// Sends one GET request to one of the addresses of the hop and to no other, through no proxy, and follows no redirect.
    fn get<'a>(&'a self, hop: &'a Hop) -> BoxFuture<'a, Result<Reply, TransportError>>;
}

/// One request of a fetch, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// What to ask for: `http` or `https`, without user name and password.
    pub url: Url,
    /// Where to connect to, never empty. Each was checked; the name must not be looked up again.
    pub addresses: Vec<SocketAddr>,
}

/// The start of an answer.
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `Location`, if there is one that is text.
    pub location: Option<String>,
    /// `Content-Type`, if there is one that is text.
    pub content_type: Option<String>,
    /// `Content-Length`, if there is one.
    pub length: Option<u64>,
    /// The body, undecoded.
    pub body: BoxStream<'static, Result<Bytes, TransportError>>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransportError {
    /// No connection.
    #[error("no connection could be made")]
    Connect,
    /// The connection broke, or what came was no HTTP.
    #[error("the connection broke off")]
    Broken,
    /// This side could not even start.
    #[error("the request could not be set up")]
    Setup,
}
