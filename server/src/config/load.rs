//! The layers of the configuration: defaults, file, environment, flags; later ones win.

use std::ffi::OsString;
use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::error::Origin;
use super::file::ConfigFile;
use super::{Config, ConfigError};

/// What environment variables start with.
const PREFIX: &str = "REGROUND__";

/// Puts the layers on top of each other.
pub struct Loader {
    figment: Figment,
    file: Option<ConfigFile>,
    /// The first layer that could not be built; reported by [`Loader::load`].
    failed: Option<ConfigError>,
}

/// One layer, or one variable of it, for figment to remember where a value came from.
struct Layer {
    origin: Origin,
    dict: Dict,
}

impl Loader {
    /// The defaults, on them `file` if one is named, and on that the environment. Without a name, `config.toml` in the
    /// working directory is read if it is there.
    ///
    /// In the environment, `REGROUND__SECTION__KEY` sets `section.key`. Text is taken as it is, everything else is
    /// written as in TOML (`true`, `8080`, `["https://app.example"]`).
    ///
    /// # Errors
    /// The file cannot be read or is no TOML, or a variable is no UTF-8.
    pub fn new(file: Option<&Path>) -> Result<Self, ConfigError> {
        let file = file.or_else(|| Some(Path::new("config.toml")).filter(|path| path.exists()));
        Self::from_layers(file, std::env::vars_os())
    }

    /// As [`Loader::new`], with this environment.
    pub(super) fn from_layers(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let defaults = Value::serialize(Config::default()).ok().and_then(Value::into_dict).unwrap_or_default();
        let file = file.map(ConfigFile::read).transpose()?;
        let mut figment = Figment::from(Layer { origin: Origin::Code, dict: defaults.clone() });
        if let Some(file) = &file {
            figment = figment.merge(Layer { origin: Origin::File(file.path.clone(), None), dict: file.dict()? });
        }
        let defaults = Value::from(defaults);
        let mut variables: Vec<_> = environment
            .into_iter()
            .filter_map(|(name, value)| name.into_string().ok().map(|name| (name, value)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        // The order of the environment is nobody's intention; sorted, the same variables always give the same result.
        variables.sort();
        for (name, value) in variables {
            let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
            let value = value.into_string().map_err(|_| {
                let (origin, allowed) = (Origin::Environment(name.clone()), "text in UTF-8".into());
                ConfigError::Value { key: key.clone(), value: "(not shown)".into(), origin, allowed }
            })?;
            let dict = nested(&key, variable(value, defaults.find_ref(&key)));
            figment = figment.merge(Layer { origin: Origin::Environment(name), dict });
        }
        Ok(Self { figment, file, failed: None })
    }

    /// Sets one dotted key above every other layer, as a flag does; `None` leaves it.
    #[must_use]
    pub fn flag(mut self, key: &str, value: Option<impl serde::Serialize>) -> Self {
        let Some(value) = value else { return self };
        match Value::serialize(value) {
            Ok(value) => {
                self.figment = self.figment.merge(Layer { origin: Origin::CommandLine, dict: nested(key, value) });
            }
            // A path that is no UTF-8.
            Err(error) => {
                let error = ConfigError::from_figment(error.kind, key.to_owned(), None, Origin::CommandLine);
                self.failed.get_or_insert(error);
            }
        }
        self
    }

    /// The validated result.
    ///
    /// # Errors
    /// A flag cannot be represented, a key is not known or missing, or a value has the wrong type or is out of range.
    pub fn load(self) -> Result<Config, ConfigError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let config: Config = self.figment.extract().map_err(|error| self.explain(error))?;
        config.validate().map_err(|error| {
            error.located(|key| {
                let path: Vec<String> = key.split('.').map(str::to_owned).collect();
                self.origin(self.figment.find_metadata(key), &path)
            })
        })?;
        Ok(config)
    }

    fn explain(&self, error: figment::Error) -> ConfigError {
        let key = error.path.join(".");
        let found = self.figment.find_value(&key).ok();
        let origin = self.origin(error.metadata.as_ref(), &error.path);
        ConfigError::from_figment(error.kind, key, found.as_ref().and_then(Value::as_str), origin)
    }

    /// Back from figment's words to ours; see [`Layer::metadata`].
    fn origin(&self, metadata: Option<&Metadata>, path: &[String]) -> Origin {
        match metadata.map(|metadata| (&metadata.source, &metadata.name)) {
            Some((Some(Source::File(file)), _)) => {
                Origin::File(file.clone(), self.file.as_ref().and_then(|file| file.line_of(path)))
            }
            Some((Some(Source::Custom(_)), name)) => Origin::Environment(name.to_string()),
            Some((None, name)) if name == "flag" => Origin::CommandLine,
            _ => Origin::Code,
        }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        match &self.origin {
            Origin::Code => Metadata::named("default"),
            Origin::File(path, _) => Metadata::from("file", path.as_path()),
            Origin::Environment(name) => Metadata::from(name.clone(), "environment"),
            Origin::CommandLine => Metadata::named("flag"),
        }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// A dictionary in which the dotted key has this value.
fn nested(key: &str, value: Value) -> Dict {
    let mut segments = key.rsplit('.');
    let innermost = segments.next().unwrap_or_default().to_owned();
    segments.fold(Dict::from([(innermost, value)]), |inner, segment| Dict::from([(segment.to_owned(), inner.into())]))
}

/// What a variable means. The default tells text from the rest: a revision of digits stays text, and nobody has to put
/// quotes inside quotes.
fn variable(text: String, default: Option<&Value>) -> Value {
    if matches!(default, Some(Value::String(..))) {
        return text.into();
    }
    let parsed = text.trim().parse::<toml::Value>().ok().and_then(|value| Value::serialize(value).ok());
    parsed.unwrap_or_else(|| text.into())
}
