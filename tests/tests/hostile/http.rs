//! Routes, methods, headers, keys, and bodies that are no chat request.

use reqwest::Method;
use serde_json::json;

use super::BODY_LIMIT;
use super::case::{CLIENT_KEY, Case, question};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = routes();
    cases.extend(methods());
    cases.extend(keys());
    cases.extend(content_types());
    cases.extend(bodies());
    cases
}

fn routes() -> Vec<Case> {
    let paths = [
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v1/chat/completion",
        "/v1/chat/completions/extra/deep/path",
        "/V1/chat/completions",
        "//v1//chat//completions",
        "/v2/chat/completions",
        "/etc/passwd",
        "/v1/..%2f..%2fetc/passwd",
        "/.git/config",
        "/v1/completions\u{301}",
        "/favicon.ico%00.png",
    ];
    let mut cases: Vec<Case> = paths
        .iter()
        .map(|path| {
            Case::new(format!("route {path}"), Method::GET, *path).refused(404, "unknown_url", &["openapi.json"])
        })
        .collect();
    let long = format!("/v1/{}", "a".repeat(4000));
    cases.push(Case::new("a route of 4000 letters", Method::GET, long).refused(404, "unknown_url", &["…"]));
    cases.push(
        Case::new("model nope", Method::GET, "/v1/models/nope").refused(404, "model_not_found", &["nope"]).at("model"),
    );
    cases.push(
        Case::new("model of 3000 letters", Method::GET, format!("/v1/models/{}", "a".repeat(3000)))
            .refused(404, "model_not_found", &[])
            .at("model"),
    );
    cases.push(
        Case::new("model of broken UTF-8", Method::GET, "/v1/models/%ff%fe")
            .refused(404, "model_not_found", &[])
            .at("model"),
    );
    cases.push(
        Case::new("generation nope", Method::GET, "/v1/models/reground@nope")
            .refused(404, "model_not_found", &["nope"])
            .at("model"),
    );
    cases
}

fn methods() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["PUT", "PATCH", "DELETE", "TRACE", "FROB"] {
        let Ok(verb) = Method::from_bytes(method.as_bytes()) else { continue };
        cases.push(Case::new(format!("{method} chat"), verb, "/v1/chat/completions").refused(
            405,
            "method_not_allowed",
            &[method, "POST"],
        ));
    }
    for (method, path) in [
        (Method::POST, "/v1/models"),
        (Method::DELETE, "/v1/models/reground"),
        (Method::POST, "/ready"),
        (Method::PUT, "/openapi.json"),
        (Method::DELETE, "/metrics"),
    ] {
        let name = format!("{method} {path}");
        let says = method.to_string();
        cases.push(Case::new(name, method, path).refused(405, "method_not_allowed", &[&says, "GET"]));
    }
    cases
}

fn keys() -> Vec<Case> {
    let chat = |name: &str| Case::chat(format!("key: {name}"), &question()).without_key();
    let refused = |case: Case| case.refused(401, "invalid_api_key", &[]);
    let mut cases = vec![
        refused(chat("none")),
        refused(Case::new("key: none, unknown route", Method::GET, "/nope").without_key()),
        refused(Case::new("key: none, models", Method::GET, "/v1/models").without_key()),
        refused(Case::new("key: none, metrics", Method::GET, "/metrics").without_key()),
        refused(Case::new("key: in the query", Method::GET, format!("/v1/models?api_key={CLIENT_KEY}")).without_key()),
        Case::new("key: a client's, metrics", Method::GET, "/metrics").refused(
            403,
            "insufficient_permissions",
            &["admin"],
        ),
        Case::new("key: a client's, loading an adapter", Method::POST, "/v1/load_lora_adapter")
            .header("content-type", "application/json")
            .body(r#"{"lora_name":"x","lora_path":"adapter"}"#)
            .refused(403, "insufficient_permissions", &["admin"]),
    ];
    let wrong = [
        ("empty", Vec::new()),
        ("no scheme", CLIENT_KEY.into()),
        ("another scheme", format!("Basic {CLIENT_KEY}").into()),
        ("a wrong one", b"Bearer sk-wrong".to_vec()),
        ("upper case", format!("Bearer {}", CLIENT_KEY.to_uppercase()).into()),
        ("one letter more", format!("Bearer {CLIENT_KEY}0").into()),
        ("one letter less", format!("Bearer {}", &CLIENT_KEY[..CLIENT_KEY.len() - 1]).into()),
        ("two keys", format!("Bearer {CLIENT_KEY} {CLIENT_KEY}").into()),
        ("nothing after the scheme", b"Bearer ".to_vec()),
        ("8 KB", format!("Bearer {}", "k".repeat(8192)).into()),
        ("not ASCII", b"Bearer \xff\xfe\xfd".to_vec()),
    ];
    cases.extend(wrong.into_iter().map(|(name, value)| refused(chat(name).header("authorization", value))));
    cases
}

fn content_types() -> Vec<Case> {
    let chat = |name: &str| Case::chat(format!("content type: {name}"), &question());
    let refused = |case: Case| case.refused(415, "unsupported_media_type", &["application/json"]);
    vec![
        refused(chat("none").without_header("content-type")),
        refused(chat("text").header("content-type", "text/plain")),
        refused(chat("form").header("content-type", "application/x-www-form-urlencoded")),
        refused(chat("multipart").header("content-type", "multipart/form-data; boundary=x")),
        refused(chat("XML").header("content-type", "application/xml")),
        refused(chat("nonsense").header("content-type", ";;;")),
        refused(chat("8 KB").header("content-type", "x".repeat(8192))),
        chat("with a charset").header("content-type", "application/json; charset=utf-8"),
        chat("in capitals").header("content-type", "APPLICATION/JSON"),
        chat("gzip").header("content-encoding", "gzip").refused(415, "unsupported_media_type", &["Content-Encoding"]),
        chat("identity").header("content-encoding", "identity"),
    ]
}

fn bodies() -> Vec<Case> {
    let no_json =
        |name: &str, body: Vec<u8>| Case::bytes(format!("body: {name}"), body).refused(400, "invalid_json", &["body"]);
    let wrong_type = |name: &str, body: &str| {
        Case::bytes(format!("body: {name}"), body).refused(400, "invalid_type", &["must be an object"])
    };
    let nested = |open: &str, close: &str, depth: usize| {
        let value = format!("{}0{}", open.repeat(depth), close.repeat(depth));
        format!(r#"{{"model":"reground","messages":[{{"role":"user","content":"a"}}],"metadata":{value}}}"#)
            .into_bytes()
    };
    let with = |field: &str| {
        format!(r#"{{"model":"reground","messages":[{{"role":"user","content":"a"}}],{field}}}"#).into_bytes()
    };
    let utf16 = question().to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut with_mark = b"\xef\xbb\xbf".to_vec();
    with_mark.extend(question().to_string().bytes());
    let mut not_utf8 = question().to_string().into_bytes();
    if let Some(at) = not_utf8.windows(5).position(|window| window == b"hello") {
        not_utf8[at] = 0xff;
    }
    vec![
        no_json("empty", Vec::new()),
        no_json("white space", b"  \n ".to_vec()),
        no_json("a word", b"hello".to_vec()),
        no_json("cut off", question().to_string().into_bytes()[..40].to_vec()),
        no_json("something after it", format!("{} true", question()).into_bytes()),
        no_json("a comma too many", b"{\"model\":\"reground\",}".to_vec()),
        no_json("single quotes", b"{'model':'reground'}".to_vec()),
        no_json("a comment", b"{/* hello */}".to_vec()),
        no_json("NaN", with(r#""temperature":NaN"#)),
        no_json("Infinity", with(r#""temperature":Infinity"#)),
        no_json("-Infinity", with(r#""top_p":-Infinity"#)),
        no_json("a number beyond all floats", with(r#""temperature":1e999"#)),
        no_json("hexadecimal", with(r#""seed":0x10"#)),
        no_json("a leading zero", with(r#""seed":007"#)),
        no_json("not UTF-8", not_utf8),
        no_json("UTF-16", utf16),
        no_json("a byte order mark", with_mark),
        no_json("a lone surrogate", with(r#""user":"\ud800""#)),
        no_json("a raw control character", with("\"user\":\"a\u{1}b\"")),
        no_json("zero bytes", vec![0; 1000]),
        no_json("100 nested arrays", nested("[", "]", 100)),
        no_json("100 nested objects", nested("{\"a\":", "}", 100)),
        no_json("a million nested arrays", nested("[", "]", 1_000_000)),
        no_json("a million open brackets", vec![b'['; 1_000_000]),
        no_json("a million values", with(&format!("\"stop\":[{}0]", "0,".repeat(1_000_000)))),
        wrong_type("null", "null"),
        wrong_type("an array", "[]"),
        wrong_type("a string", "\"hello\""),
        wrong_type("a number", "5"),
        wrong_type("true", "true"),
        Case::bytes("body: an empty object", "{}").wrong("missing_required_parameter", "model", &["model"]),
        Case::bytes("body: a parameter twice, the second wrong", with(r#""max_tokens":4,"max_tokens":-4"#)).wrong(
            "invalid_value",
            "max_tokens",
            &["-4"],
        ),
        Case::bytes("body: larger than the limit", vec![b' '; BODY_LIMIT + 1]).refused(
            413,
            "body_too_large",
            &[&BODY_LIMIT.to_string()],
        ),
        Case::with("body: an unknown parameter", "temprature", json!(1)).wrong(
            "unsupported_parameter",
            "temprature",
            &["temprature", "temperature"],
        ),
        Case::with("body: an unknown parameter with a long name", &"x".repeat(5000), json!(1)).wrong(
            "unsupported_parameter",
            &format!("{}…", "x".repeat(80)),
            &["unknown parameter"],
        ),
    ]
}
