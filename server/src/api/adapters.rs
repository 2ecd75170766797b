//! Adapters in and out while the server runs, in vLLM's shapes.
//!
//! A path comes from outside, so it is confined: only directories below `model.adapter_root` are read, and neither `..`
//! nor a symbolic link leads out of it.

use std::path::{Component, Path, PathBuf};

use actix_web::{HttpResponse, web};
use utoipa::ToSchema;

use super::App;
use super::auth::Admin;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody, code, shown};
use super::json::{self, Fields, Path as JsonPath};
use crate::engine::GenerationId;

/// The files of an adapter; both must be there, below the root.
const FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Which adapter to load, and as what.
#[derive(Debug, PartialEq, Eq, ToSchema)]
pub(super) struct LoadAdapter {
    /// The new generation's id: 1 to 128 letters, digits, `-`, `_` or `.`. Ask for it as `name@lora_name`.
    pub lora_name: String,
    /// A directory in PEFT format, below `model.adapter_root`, or relative to it.
    pub lora_path: String,
    /// Only `false`: a generation never changes. Load the new adapter under a new name.
    #[schema(default = false)]
    pub load_inplace: Option<bool>,
}

/// Which adapter to unload.
#[derive(Debug, PartialEq, Eq, ToSchema)]
pub(super) struct UnloadAdapter {
    /// The generation's id.
    pub lora_name: String,
}

/// Loads an adapter as a generation beside what is loaded; traffic does not change.
#[utoipa::path(post, path = "/v1/load_lora_adapter", tag = "adapters", request_body = LoadAdapter,
    responses(
        (status = 200, description = "Loaded", content_type = "text/plain", body = String),
        (status = 400, description = "The path or the adapter is refused", body = ErrorBody),
        (status = 403, description = "Not an admin's key, or no `model.adapter_root` is set", body = ErrorBody),
        (status = 404, description = "There is no adapter at the path", body = ErrorBody),
        (status = 409, description = "The name is taken", body = ErrorBody),
    ))]
pub(super) async fn load(_: Admin, app: web::Data<App>, body: JsonBody) -> Result<HttpResponse, ApiError> {
    let adapter = body.parse(LoadAdapter::parse).await?;
    let root = app.config.model.adapter_root.clone();
    let path = adapter.lora_path;
    let directory = web::block(move || confine(&root, &path, "lora_path"))
        .await
        .map_err(|_| ApiError::internal("the thread that looked for the adapter is gone"))??;
    app.generations.load(&adapter.lora_name, directory).await?;
    let message = format!("Success: LoRA adapter '{}' added successfully.", adapter.lora_name);
    Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(message))
}

/// Unloads a generation; answers under way keep it until they are done.
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "adapters", request_body = UnloadAdapter,
    responses(
        (status = 200, description = "Unloaded", content_type = "text/plain", body = String),
        (status = 403, description = "Not an admin's key", body = ErrorBody),
        (status = 404, description = "No such generation", body = ErrorBody),
        (status = 409, description = "The generation is live", body = ErrorBody),
    ))]
pub(super) async fn unload(_: Admin, app: web::Data<App>, body: JsonBody) -> Result<HttpResponse, ApiError> {
    let adapter = body.parse(UnloadAdapter::parse).await?;
    app.rollout.unload_named(&GenerationId::from(adapter.lora_name.as_str())).await?;
    let message = format!("Success: LoRA adapter '{}' removed successfully.", adapter.lora_name);
    Ok(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(message))
}

impl LoadAdapter {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(body)?, &JsonPath::Root)?;
        let lora_name = fields.required("lora_name", json::string)?;
        let lora_path = fields.required("lora_path", json::string)?;
        let load_inplace = fields.optional("load_inplace", json::boolean)?;
        fields.finish()?;
        let adapter = Self { lora_name, lora_path, load_inplace };
        if adapter.load_inplace == Some(true) {
            let message = "`load_inplace` must be false: a generation never changes; load the adapter under a new name";
            return Err(ApiError::unsupported("load_inplace", message));
        }
        Ok(adapter)
    }
}

impl UnloadAdapter {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::of(json::parse(body)?, &JsonPath::Root)?;
        let lora_name = fields.required("lora_name", json::string)?;
        fields.finish()?;
        if lora_name.chars().nth(128).is_some() {
            let message = format!("`{}` is no adapter id: it has more than 128 characters", shown(&lora_name));
            return Err(ApiError::invalid("lora_name", message));
        }
        Ok(Self { lora_name })
    }
}

/// The real directory of an adapter, if it and its files are below the root; `at` is the parameter that errors name.
pub(super) fn confine(root: &Path, asked: &str, at: &str) -> Result<PathBuf, ApiError> {
    if root.as_os_str().is_empty() {
        let message = "adapters cannot be loaded: `model.adapter_root` is not set on this server";
        return Err(ApiError::forbidden(message).at(at));
    }
    let outside = || {
        let message = format!("`{}` is not below `model.adapter_root`", shown(asked));
        ApiError::invalid(at, message)
    };
    let missing = || {
        let message = format!("there is no adapter directory `{}` below `model.adapter_root`", shown(asked));
        ApiError::not_found(code::ADAPTER_NOT_FOUND, message).at(at)
    };
    let asked_path = Path::new(asked);
    // Without `..`, a path that starts with the root is below it as far as names go; links are resolved after that.
    if asked.is_empty() || asked.contains('\0') || asked_path.components().any(|part| part == Component::ParentDir) {
        return Err(outside());
    }
    let root =
        fs_err::canonicalize(root).map_err(|error| ApiError::internal(format!("model.adapter_root: {error}")))?;
    let directory = fs_err::canonicalize(root.join(asked_path)).map_err(|_| {
        let named_below = asked_path.is_relative() || asked_path.starts_with(&root);
        if named_below { missing() } else { outside() }
    })?;
    if !directory.starts_with(&root) || directory == root {
        return Err(outside());
    }
    for file in FILES {
        let file = fs_err::canonicalize(directory.join(file)).map_err(|_| {
            let message =
                format!("`{}` holds no {file}; an adapter directory has {}", shown(asked), FILES.join(" and "));
            ApiError::not_found(code::ADAPTER_NOT_FOUND, message).at(at)
        })?;
        if !file.starts_with(&root) {
            return Err(outside());
        }
        // Opening a named pipe would wait for whoever writes into it.
        if !file.is_file() {
            let message = format!("`{}` of `{}` is no regular file", shown(&file.to_string_lossy()), shown(asked));
            return Err(ApiError::bad_request(code::INVALID_ADAPTER, message).at(at));
        }
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(directory: &Path) {
        fs_err::create_dir_all(directory).unwrap();
        for file in FILES {
            fs_err::write(directory.join(file), b"{}").unwrap();
        }
    }

    #[test]
    fn only_directories_below_the_root_are_found() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("adapters");
        adapter(&root.join("good"));
        adapter(&root.join("team/good"));
        adapter(&place.path().join("outside"));
        adapter(&place.path().join("adapters-too"));
        fs_err::create_dir_all(root.join("empty")).unwrap();
        let real = fs_err::canonicalize(&root).unwrap();
        for asked in ["good", "./good", "team/good", root.join("good").to_str().unwrap()] {
            assert!(confine(&root, asked, "path").unwrap().starts_with(&real), "{asked}");
        }
        let refused = |asked: &str| confine(&root, asked, "path").unwrap_err().status.as_u16();
        for asked in ["", ".", "..", "../outside", "good/../../outside", "/etc", "/nowhere", "a\0b"] {
            assert_eq!(refused(asked), 400, "{asked}");
        }
        assert_eq!(refused(place.path().join("outside").to_str().unwrap()), 400);
        assert_eq!(refused(place.path().join("adapters-too").to_str().unwrap()), 400);
        for asked in ["nowhere", "empty", "good/adapter_config.json"] {
            assert_eq!(refused(asked), 404, "{asked}");
        }
        assert_eq!(confine(Path::new(""), "good", "path").unwrap_err().status.as_u16(), 403);
    }

    #[cfg(unix)]
    #[test]
    fn links_do_not_lead_out() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("adapters");
        adapter(&place.path().join("outside"));
        adapter(&root.join("half"));
        std::os::unix::fs::symlink(place.path().join("outside"), root.join("link")).unwrap();
        assert_eq!(confine(&root, "link", "path").unwrap_err().status.as_u16(), 400);
        let weights = root.join("half/adapter_model.safetensors");
        fs_err::remove_file(&weights).unwrap();
        std::os::unix::fs::symlink(place.path().join("outside/adapter_model.safetensors"), &weights).unwrap();
        assert_eq!(confine(&root, "half", "path").unwrap_err().status.as_u16(), 400);
    }
}
