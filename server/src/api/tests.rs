//! The routes over HTTP, above an engine that repeats what it is told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_http::Request;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Service, ServiceResponse};
use actix_web::middleware::from_fn;
use actix_web::test::{self, TestRequest};
use actix_web::{App as ActixApp, Error, HttpResponse, web};
use futures::future::poll_fn;
use serde_json::{Value, json};

use super::observe::{catch_panic, observe};
use super::routes::{ROUTES, configure, documented};
use super::testing::{self, Server, data_url, open_server};
use crate::config::{Config, Role};
