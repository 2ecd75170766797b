//! The pocket's command line: draws its world, builds its model, evaluates it.
//!
//! ```text
//! cargo run --release -p reground-learner --example pocket -- build --seed 0 --out DIR
//! cargo run --release -p reground-learner --example pocket -- eval --model DIR
//! cargo run --release -p reground-learner --example pocket -- held-out --out DIR
//! cargo run --release -p reground-learner --example pocket -- sheet FILE.png
//! ```

mod build;
mod evaluate;
mod sheet;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use reground_learner::pocket::builder::Recipe;
use reground_learner::pocket::held_out::Size;

const USAGE: &str = "usage: pocket build [--seed N] [--speech-steps N] --out DIR
       pocket eval --model DIR [--images N] [--seed N] [--json FILE]
       pocket held-out --out DIR [--images N] [--seed N]
       pocket sheet FILE.png";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("build") => {
            let options = Options::parse(arguments, &["--seed", "--speech-steps", "--out"])?;
            let mut recipe = Recipe::default();
            recipe.seed = options.number("--seed")?.unwrap_or(recipe.seed);
            if let Some(steps) = options.number("--speech-steps")? {
                recipe.speech.steps = usize::try_from(steps)?;
            }
            build::run(&recipe, &options.path("--out")?)
        }
        Some("eval") => {
            let options = Options::parse(arguments, &["--model", "--images", "--seed", "--json"])?;
            let json = options.text("--json").map(PathBuf::from);
            evaluate::run(&options.path("--model")?, options.size()?, json.as_deref())
        }
        Some("held-out") => {
            let options = Options::parse(arguments, &["--out", "--images", "--seed"])?;
            evaluate::write(&options.path("--out")?, options.size()?)
        }
        Some("sheet") => sheet::draw(&PathBuf::from(arguments.next().context(USAGE)?)),
        _ => bail!(USAGE),
    }
}

/// `--name value` pairs.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>, known: &[&str]) -> Result<Self> {
        let mut options = Vec::new();
        while let Some(name) = arguments.next() {
            if !known.contains(&name.as_str()) {
                bail!("unknown option {name}\n{USAGE}");
            }
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            options.push((name, value));
        }
        Ok(Self(options))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        self.text(name).map(PathBuf::from).with_context(|| format!("{name} is missing\n{USAGE}"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        self.text(name).map(|value| value.parse().with_context(|| format!("{name} {value}: not a number"))).transpose()
    }

    fn size(&self) -> Result<Size> {
        let default = Size::default();
        Ok(Size {
            images: self.number("--images")?.map_or(Ok(default.images), usize::try_from)?,
            seed: self.number("--seed")?.unwrap_or(default.seed),
            ..default
        })
    }
}
