//! Tests of the configuration as a whole: file, environment, flags, and what is said when they are wrong.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;

const WRITTEN: &str = include_str!("../../../config.toml");

/// A configuration file that goes away with this.
struct File {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn file(content: impl AsRef<[u8]>) -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, content).unwrap();
    File { _directory: directory, path }
}

fn variables(list: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    list.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn load(content: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Loader::from_layers(Some(&file(content).path), variables(environment))?.load()
}

/// What is said of a file, without the directory it is in.
fn refused(content: impl AsRef<[u8]>) -> String {
    let file = file(content);
    let error = Loader::from_layers(Some(&file.path), []).and_then(Loader::load).unwrap_err();
    error.to_string().replace(&format!("{}/", file.path.parent().unwrap().display()), "")
}

fn refused_environment(name: &str, value: &str) -> String {
    load("", &[(name, value)]).unwrap_err().to_string()
}

#[test]
fn the_written_file_holds_every_setting_with_its_default() {
    assert_eq!(load(WRITTEN, &[]).unwrap(), Config::default());
    // As tables too: a default that is not written, or written as comment only, would pass the line above.
    let written: toml::Table = WRITTEN.parse().unwrap();
    assert_eq!(written, toml::Table::try_from(Config::default()).unwrap());
}

#[test]
fn every_written_setting_has_a_comment() {
    let lines: Vec<&str> = WRITTEN.lines().collect();
    for pair in lines.windows(2) {
        let set = !pair[1].starts_with(['#', '[']) && pair[1].contains(" = ");
        assert!(!set || pair[0].starts_with("# "), "no comment above {}", pair[1]);
    }
}

#[test]
fn the_written_example_of_a_key_works() {
    let example: String = WRITTEN
        .lines()
        .skip_while(|line| *line != "# [[auth.keys]]")
        .take_while(|line| line.starts_with('#'))
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect();
    let config = load(&WRITTEN.replace("[model]", &format!("{example}\n[model]")), &[]).unwrap();
    assert_eq!(config.auth.keys.len(), 1);
    assert_eq!(config.auth.keys[0].role, Role::Admin);
}

#[test]
fn what_is_printed_loads_again() {
    let config = load("", &[("REGROUND__AUTH__KEYS", r#"[{ name = "ci", key = "env:CI_KEY" }]"#)]).unwrap();
    let printed = config.to_toml().unwrap();
    assert!(printed.contains("\"env:CI_KEY\""), "{printed}");
    assert_eq!(load(&printed, &[]).unwrap(), config);
    assert_eq!(load(&Config::default().to_toml().unwrap(), &[]).unwrap(), Config::default());
}

#[test]
fn later_layers_win() {
    let file = file("[server]\nport = 1\nkeep_alive_s = 7\n[model]\nname = \"file\"");
    let environment = [("REGROUND__SERVER__PORT", "2"), ("REGROUND__MODEL__NAME", "environment"), ("PORT", "9")];
    let loader = |port| {
        let loader = Loader::from_layers(Some(&file.path), variables(&environment)).unwrap();
        loader.flag("server.port", port).load().unwrap()
    };
    let (without, with) = (loader(None::<u16>), loader(Some(3)));
    assert_eq!((without.server.port, with.server.port), (2, 3));
    assert_eq!((with.server.keep_alive_s, with.model.name.as_str()), (7, "environment"));
    assert_eq!(with.server.body_limit, ServerConfig::default().body_limit);
}

#[test]
fn variables_are_read_by_the_type_of_the_setting() {
    let config = load(
        "",
        &[
            ("REGROUND__MODEL__REVISION", "0123456"),
            ("REGROUND__MODEL__NAME", "true"),
            ("REGROUND__MODEL__DEVICE", "cuda:1"),
            ("REGROUND__MODEL__ADAPTER_ROOT", "/srv/adapters, old"),
            ("REGROUND__SERVER__BIND", "::1"),
            ("REGROUND__SERVER__CORS_ORIGINS", r#"["https://a.example", "http://b.example:81"]"#),
            ("REGROUND__IMAGES__ALLOW_HTTP", " true"),
            ("REGROUND__IMAGES__MAX_PIXELS", "1_000_000"),
            ("REGROUND__LOG__FILTER", "warn,reground=debug"),
            ("REGROUND__AUTH__KEYS", r#"[{ name = "1", key = "file:/run/key", role = "admin" }]"#),
        ],
    )
    .unwrap();
    assert_eq!((config.model.revision.as_str(), config.model.name.as_str()), ("0123456", "true"));
    assert_eq!(config.model.device, DeviceChoice::Cuda(1));
    assert_eq!(config.model.adapter_root, Path::new("/srv/adapters, old"));
    assert_eq!(config.server.bind.to_string(), "::1");
    assert_eq!(config.server.cors_origins, ["https://a.example", "http://b.example:81"]);
    assert!(config.images.allow_http);
    assert_eq!(config.images.max_pixels, 1_000_000);
    assert_eq!(config.log.filter, "warn,reground=debug");
    assert_eq!((config.auth.keys[0].name.as_str(), config.auth.keys[0].role), ("1", Role::Admin));
}

#[test]
fn a_wrong_key_or_value_in_the_file_is_named_with_its_line() {
    for (content, expected) in [
        (
            "[server]\n\nprot = 1",
            "server.prot, set in config.toml, line 3, is no setting; [server] has: bind, port, body_limit, bodies_limit, \
             bodies_limit_per_key, cors_origins, keep_alive_s, shutdown_deadline_s",
        ),
        (
            "port = 1",
            "port, set in config.toml, line 1, is no setting; the configuration has: server, auth, model, admission, \
             images, data, record, bootstrap, train, gate, rollout, watch, log",
        ),
        (
            "[server]\nport = \"x\"",
            "server.port is `x` in config.toml, line 2; it must be a whole number from 0 to 65535",
        ),
        ("server.port = -1", "server.port is `-1` in config.toml, line 1; it must be a whole number from 0 to 65535"),
        ("server = 1", "server is `1` in config.toml, line 1; it must be a table"),
        ("[server]\nbind = \"here\"", "server.bind is `here` in config.toml, line 2: invalid IP address syntax"),
        ("[images]\nallow_http = 1", "images.allow_http is `1` in config.toml, line 2; it must be true or false"),
        (
            "[model]\ndtype = \"f8\"",
            "model.dtype is `f8` in config.toml, line 2; it must be one of auto, f32, f16, bf16",
        ),
        (
            "[model]\ndevice = \"cuda:x\"",
            "model.device is `cuda:x` in config.toml, line 2: there are `auto`, `cpu`, `cuda:N` (N counts from 0) and \
             `metal`",
        ),
        ("\n\n[admission]\nqueue = 0", "admission.queue is `0` in config.toml, line 4; it must be from 1 to 100000"),
        (
            "[server]\nbind = \"0.0.0.0\"",
            "server.bind is `0.0.0.0` in config.toml, line 2; it must be a loopback address (127.0.0.1, ::1) as long as \
             [auth] has no key",
        ),
        (
            "[server]\ncors_origins = [\"https://a.example/\"]",
            "server.cors_origins is `https://a.example/` in config.toml, line 2; it must be a list of `*` or origins as \
             browsers send them, such as `https://app.example`",
        ),
        (
            "[log]\nfilter = \"reground=loud\"",
            "log.filter is `reground=loud` in config.toml, line 2; it must be `off`, `error`, `warn`, `info`, `debug`, \
             `trace` or a list such as `warn,reground=debug`",
        ),
        (
            "[model]\nname = \"a@b\"",
            "model.name is `a@b` in config.toml, line 2; it must be a name without `@`, which separates the generation",
        ),
        ("[[auth.keys]]\nname = \"a\"", "auth.keys.0.key is missing in config.toml, line 1"),
        (
            "[[auth.keys]]\nname = \"a\"\nkey = \"env:A\"\n[[auth.keys]]\nname = \"a\"\nkey = \"env:B\"",
            "auth.keys is `name = \"a\"` in config.toml, line 1; it must be a list of keys with different names, none of \
             them empty",
        ),
    ] {
        assert_eq!(refused(content), expected, "{content}");
    }
}

#[test]
fn a_wrong_variable_or_flag_is_named() {
    assert_eq!(
        refused_environment("REGROUND__SERVER__PORT", "http"),
        "server.port is `http` in the environment variable REGROUND__SERVER__PORT; it must be a whole number from 0 to \
         65535"
    );
    let unknown = refused_environment("REGROUND__SERVER__PROT", "1");
    assert!(
        unknown.starts_with("server.prot, set in the environment variable REGROUND__SERVER__PROT, is no"),
        "{unknown}"
    );
    let above = refused_environment("REGROUND__ADMISSION__QUEUE", "0");
    assert!(
        above.contains("admission.queue is `0` in the environment variable REGROUND__ADMISSION__QUEUE; it"),
        "{above}"
    );
    let flag =
        Loader::from_layers(None, []).unwrap().flag("model.engine", Some("vllm")).load().unwrap_err().to_string();
    assert_eq!(flag, "model.engine is `vllm` on the command line; it must be one of auto, native, mistralrs");
    let code = Config { admission: AdmissionConfig { queue: 0, ..Default::default() }, ..Default::default() };
    assert_eq!(code.validate().unwrap_err().to_string(), "admission.queue is `0` in code; it must be from 1 to 100000");
}

#[test]
fn nothing_of_the_auth_section_is_repeated() {
    for content in [
        "[[auth.keys]]\nname = \"a\"\nkey = \"sk-12345\"",
        "[[auth.keys]]\nname = \"a\"\nkey = 12345",
        "[[auth.keys]]\nname = \"a\"\nkey = [\"sk-12345\"]",
        "[[auth.keys]]\nname = \"a\"\nkey = \"env:A\"\nrole = \"sk-12345\"",
        "[auth]\nkeys = \"sk-12345\"",
        "[auth]\nkeys = [\"sk-12345\"]",
        "auth = \"sk-12345\"",
        "[[auth.keys]]\nname = \"a\"\nkey = sk-12345",
        "[[auth.keys]]\nname = \"a\"\nkey = \"sk-12345",
    ] {
        let error = refused(content);
        assert!(error.contains("line ") && !error.contains("12345"), "{error}");
    }
    let error = refused_environment("REGROUND__AUTH__KEYS", "sk-12345");
    assert!(error.contains("REGROUND__AUTH__KEYS") && !error.contains("12345"), "{error}");
    let config = load("[[auth.keys]]\nname = \"a\"\nkey = \"env:A_KEY\"", &[]).unwrap();
    assert!(format!("{config:?}").contains("env:A_KEY"));
}

#[test]
fn a_file_that_is_no_configuration_is_refused_with_a_reason() {
    assert_eq!(
        refused("[server]\nport = = 1"),
        "configuration file config.toml, line 2, column 8: extra `=`, expected nothing"
    );
    assert!(
        refused("[server]\nport = 1\nport = 2").starts_with("configuration file config.toml, line 3, column 1: dup")
    );
    assert_eq!(refused([0xff, 0xfe, 0]), "configuration file config.toml: it is no text in UTF-8");
    assert!(refused("\u{0}\u{1}\u{2}").starts_with("configuration file config.toml, line 1, column"));
    assert_eq!(
        refused("#".repeat(2 << 20)),
        "configuration file config.toml: it has more than 1048576 bytes, so it is no configuration"
    );
    for deep in ["[".repeat(200_000), format!("a = {}", "[".repeat(200_000)), format!("a = {}", "{a=".repeat(100_000))]
    {
        assert!(refused(&deep).starts_with("configuration file config.toml, line 1, column"));
    }
    let keys = format!("{}a = 1", "a.".repeat(100_000));
    assert!(refused(&keys).starts_with("configuration file config.toml, line 1, column"));
    let long = refused(format!("[model]\ndtype = \"{}\"", "ä".repeat(100_000)));
    assert!(long.len() < 600 && long.contains('…'), "{}", long.len());
    let deep = refused_environment("REGROUND__SERVER__CORS_ORIGINS", &"[".repeat(100_000));
    assert!(deep.ends_with("it must be a list"), "{deep}");
}

#[test]
fn a_path_that_is_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (path, reason) in
        [(directory.path().to_owned(), "Is a directory"), (directory.path().join("x"), "No such file")]
    {
        let error = Loader::new(Some(&path)).err().unwrap().to_string();
        assert!(error.starts_with(&format!("configuration file {}: {reason}", path.display())), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_flag_or_variable_that_is_no_utf_8_is_refused() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = OsString::from_vec(vec![b'/', 0xff]);
    let loader = Loader::from_layers(None, []).unwrap().flag("model.adapter_root", Some(PathBuf::from(&bytes)));
    assert!(loader.load().unwrap_err().to_string().contains("model.adapter_root"));
    let variable = [(OsString::from("REGROUND__MODEL__NAME"), bytes)];
    let error = Loader::from_layers(None, variable).err().unwrap().to_string();
    assert!(error.contains("REGROUND__MODEL__NAME; it must be text in UTF-8"), "{error}");
}
