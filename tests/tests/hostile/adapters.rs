//! Loading adapters: names and paths that reach for more than the adapter root.

use serde_json::json;

use super::case::Case;

pub(super) fn cases() -> Vec<Case> {
    let load = |name: &str, body| Case::admin(format!("load adapter: {name}"), "/v1/load_lora_adapter", &body);
    let unload = |name: &str, body| Case::admin(format!("unload adapter: {name}"), "/v1/unload_lora_adapter", &body);
    let mut cases = vec![
        load("nothing", json!({})).wrong("missing_required_parameter", "lora_name", &["missing"]),
        load("no path", json!({"lora_name": "a"})).wrong("missing_required_parameter", "lora_path", &["missing"]),
        load("name: a number", json!({"lora_name": 5, "lora_path": "adapter"})).wrong(
            "invalid_type",
            "lora_name",
            &["string"],
        ),
        load("path: a number", json!({"lora_name": "a", "lora_path": 5})).wrong(
            "invalid_type",
            "lora_path",
            &["string"],
        ),
        load("a surprise", json!({"lora_name": "a", "lora_path": "adapter", "surprise": 1})).wrong(
            "unsupported_parameter",
            "surprise",
            &["surprise"],
        ),
        load("a model instead of an adapter", json!({"lora_name": "a", "lora_path": "model"}))
            .refused(404, "adapter_not_found", &["adapter_config.json"])
            .at("lora_path"),
        load("a file instead of a directory", json!({"lora_name": "a", "lora_path": "image_0.png"}))
            .refused(404, "adapter_not_found", &["directory"])
            .at("lora_path"),
        load("in place", json!({"lora_name": "a", "lora_path": "adapter", "load_inplace": true})).wrong(
            "unsupported_value",
            "load_inplace",
            &["new name"],
        ),
        unload("nothing", json!({})).wrong("missing_required_parameter", "lora_name", &["missing"]),
        unload("one that is not there", json!({"lora_name": "nope"}))
            .refused(404, "adapter_not_found", &["nope"])
            .at("lora_name"),
        unload("the base", json!({"lora_name": "base"})).refused(409, "conflict", &["base"]).at("lora_name"),
    ];
    for name in ["", "base", "a b", "a/b", "a@b", "a\u{0}b", "ä", &"x".repeat(129)] {
        let shown: String = name.chars().take(20).collect();
        cases.push(load(&format!("named {shown:?}"), json!({"lora_name": name, "lora_path": "adapter"})).wrong(
            "invalid_value",
            "lora_name",
            &["128"],
        ));
    }
    cases.push(
        load("from nowhere", json!({"lora_name": "a", "lora_path": "nope"}))
            .refused(404, "adapter_not_found", &["nope"])
            .at("lora_path"),
    );
    for path in ["..", "../idefics3/adapter", ".", "../..", "/etc", "/", "adapter/../../..", "", "adapter\u{0}"] {
        let case = load(&format!("from {path:?}"), json!({"lora_name": "a", "lora_path": path}));
        cases.push(case.wrong("invalid_value", "lora_path", &["adapter_root"]));
    }
    cases
}
