//! The flags that set configuration keys.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError, Loader};

/// The settings that are changed most often. Every other one has its environment variable.
///
/// Values with a closed list (device, engine, …) stay text here, so that the configuration is the one place that knows
/// the list and words the error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(super) struct SettingsArgs {
    /// Configuration file; without it, config.toml in the working directory if there is one.
    #[arg(long, short, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The model: `builtin`, a directory, or a hub id such as HuggingFaceTB/SmolVLM-256M-Instruct.
    #[arg(long, short, value_name = "SOURCE")]
    pub(super) model: Option<String>,
    /// What callers put into `model`.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Hub revision: branch, tag or commit.
    #[arg(long)]
    pub(super) revision: Option<String>,
    /// Which engine serves the model: auto, native, mistralrs.
    #[arg(long)]
    pub(super) engine: Option<String>,
    /// Where the model runs: auto, cpu, cuda:N, metal.
    #[arg(long)]
    pub(super) device: Option<String>,
    /// Number format of weights and activations: auto, f32, f16, bf16.
    #[arg(long)]
    pub(super) dtype: Option<String>,
    /// In-situ quantisation while loading: off, q8, q4.
    #[arg(long)]
    pub(super) isq: Option<String>,
    /// Most tokens of prompt and answer together; 0: the model's own limit.
    #[arg(long, value_name = "TOKENS")]
    pub(super) max_len: Option<usize>,
    /// Sequences inside the engine at once; 0: 16 for the native engine, 1 for mistralrs.
    #[arg(long, value_name = "COUNT")]
    pub(super) max_parallel: Option<usize>,
    /// Only directories below this one can be loaded as adapters.
    #[arg(long, value_name = "DIRECTORY")]
    pub(super) adapter_root: Option<PathBuf>,
    /// Address to listen on; anything but a loopback address needs a key in the configuration.
    #[arg(long, visible_alias = "host", value_name = "ADDRESS")]
    pub(super) bind: Option<IpAddr>,
    /// TCP port; 0 takes a free one and prints it.
    #[arg(long, short)]
    pub(super) port: Option<u16>,
    /// What is logged: off, error, warn, info, debug, trace, or a list by module (warn,reground=debug).
    #[arg(long, value_name = "FILTER")]
    pub(super) log: Option<String>,
    /// How a log line looks: text, json.
    #[arg(long, value_name = "FORMAT")]
    pub(super) log_format: Option<String>,
}

impl SettingsArgs {
    /// The configuration with these flags on top.
    pub(super) fn load(self) -> Result<Config, ConfigError> {
        Loader::new(self.config.as_deref())?
            .flag("model.source", self.model)
            .flag("model.name", self.name)
            .flag("model.revision", self.revision)
            .flag("model.engine", self.engine)
            .flag("model.device", self.device)
            .flag("model.dtype", self.dtype)
            .flag("model.isq", self.isq)
            .flag("model.max_len", self.max_len)
            .flag("model.max_parallel", self.max_parallel)
            .flag("model.adapter_root", self.adapter_root)
            .flag("server.bind", self.bind)
            .flag("server.port", self.port)
            .flag("log.filter", self.log)
            .flag("log.format", self.log_format)
            .load()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{DeviceChoice, Dtype, EngineKind, Isq, LogFormat};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: SettingsArgs,
    }

    fn settings(line: &str) -> SettingsArgs {
        // An empty file keeps a configuration in the working directory out.
        let line = format!("reground --config /dev/null {line}");
        Line::try_parse_from(line.split_whitespace()).unwrap().settings
    }

    #[test]
    fn each_flag_sets_its_key() {
        let config = settings(
            "-m org/name --name mine --revision 7 --engine mistralrs --device cuda:3 --dtype bf16 --isq off --max-len 9 \
             --max-parallel 4 --adapter-root /adapters --host ::1 -p 0 --log debug --log-format json",
        )
        .load()
        .unwrap();
        let model = &config.model;
        assert_eq!((model.source.as_str(), model.name.as_str(), model.revision.as_str()), ("org/name", "mine", "7"));
        assert_eq!(
            (model.engine, model.device, model.dtype),
            (EngineKind::Mistralrs, DeviceChoice::Cuda(3), Dtype::Bf16)
        );
        assert_eq!((model.isq, model.max_len, model.max_parallel), (Isq::Off, 9, 4));
        assert_eq!(model.adapter_root, PathBuf::from("/adapters"));
        assert_eq!((config.server.bind.to_string().as_str(), config.server.port), ("::1", 0));
        assert_eq!((config.log.filter.as_str(), config.log.format), ("debug", LogFormat::Json));
        assert_eq!(settings("--isq q4").load().unwrap().model.isq, Isq::Q4);
    }

    #[test]
    fn a_wrong_value_says_that_it_came_from_the_command_line() {
        let error = settings("--isq q5").load().unwrap_err().to_string();
        assert_eq!(error, "model.isq is `q5` on the command line; it must be one of off, q8, q4");
        let error = settings("--engine mistralrs --isq q4 --adapter-root /adapters").load().unwrap_err().to_string();
        assert!(
            error.starts_with("model.adapter_root is `/adapters` on the command line; it must be empty"),
            "{error}"
        );
    }
}
