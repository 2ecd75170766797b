//! `reground pairs`: the pairs of a running server.

use std::fs::Metadata;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use reground_learner::bpo::files;
use serde_json::{Value, json};

use super::remote::{PageArgs, Remote, RemoteArgs};

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(super) struct PairsArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(subcommand)]
    command: PairsCommand,
}

#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum PairsCommand {
    /// List pairs.
    List {
        #[command(flatten)]
        filters: Filters,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Show a pair with its whole provenance.
    Show {
        /// The pair's id.
        id: String,
    },
    /// Decide about a pair.
    Review {
        /// The pair's id.
        id: String,
        /// What is to be done with it.
        verdict: Verdict,
        /// With `edit`: what is right.
        #[arg(long)]
        chosen: Option<String>,
        /// With `edit`: what is wrong.
        #[arg(long)]
        rejected: Option<String>,
    },
    /// Write pairs as preference data, images inside, which `reground train --import` reads.
    Export {
        #[command(flatten)]
        filters: Filters,
        /// Where to; none: standard output.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
struct Filters {
    /// Source of the chosen answer: annotation, correction, accepted, self.
    #[arg(long)]
    source: Option<String>,
    /// Kind of the rejected answer: image_weakened, injected, given.
    #[arg(long)]
    kind: Option<String>,
    /// new, review, accepted, discarded, used.
    #[arg(long)]
    state: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verdict {
    /// Train on it.
    Accept,
    /// The other answer is right.
    Swap,
    /// Never train on it.
    Discard,
    /// Train on it with another text.
    Edit,
}

impl Filters {
    fn named(&self) -> [(&'static str, Option<String>); 3] {
        [("source", self.source.clone()), ("kind", self.kind.clone()), ("state", self.state.clone())]
    }
}

/// Asks the server and prints what it says.
pub(super) fn run(arguments: &PairsArgs) -> Result<ExitCode> {
    let remote = Remote::new(&arguments.remote)?;
    let answer = match &arguments.command {
        PairsCommand::List { filters, page } => remote.page(&["pairs"], page, &filters.named()),
        PairsCommand::Show { id } => remote.get(&["pairs", id]),
        PairsCommand::Review { id, verdict, chosen, rejected } => {
            let verdict = match verdict {
                Verdict::Accept => "accept",
                Verdict::Swap => "swap",
                Verdict::Discard => "discard",
                Verdict::Edit => "edit",
            };
            let body = json!({"verdict": verdict, "chosen": chosen, "rejected": rejected});
            remote.post(&["pairs", id, "review"], &body)
        }
        PairsCommand::Export { filters, output } => {
            let body: Value =
                filters.named().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            let path = ["pairs", "export"];
            match output {
                None => remote.download(&path, &body, &mut std::io::stdout().lock())?,
                Some(output) => write(output, |file| remote.download(&path, &body, file))?,
            }
            return Ok(ExitCode::SUCCESS);
        }
    }?;
    super::print(&serde_json::to_string_pretty(&answer)?)
}

/// Writes a file. What was there stays until the new content is whole, and a failure leaves nothing else behind.
fn write(output: &Path, content: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let found = fs_err::symlink_metadata(output).ok();
    if found.as_ref().is_some_and(|found| !found.is_file()) {
        // A pipe, a device, a link to one of them as `/dev/stdout` is: nothing can take its place.
        return content(&mut fs_err::File::create(output)?);
    }
    let beside = files::beside(output)?;
    let written = write_by_way_of(&beside, output, found.as_ref(), content);
    if written.is_err() {
        // What went wrong is told already; that it may be gone, or was never made, is no news.
        let _ = fs_err::remove_file(&beside);
    }
    written
}

fn write_by_way_of(
    beside: &Path,
    output: &Path,
    found: Option<&Metadata>,
    content: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut file = fs_err::File::create(beside)?;
    if let Some(found) = found {
        // Who could not read the old export cannot read this one.
        file.set_permissions(found.permissions())?;
    }
    content(&mut file)?;
    file.sync_all()?;
    drop(file);
    fs_err::rename(beside, output)?;
    Ok(files::sync_parent(output)?)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn fail(file: &mut dyn Write) -> Result<()> {
        file.write_all(b"new")?;
        bail!("the answer broke off")
    }

    #[test]
    fn an_export_that_fails_leaves_the_one_before() {
        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("pairs.jsonl");
        assert_eq!(write(&output, fail).unwrap_err().to_string(), "the answer broke off");
        assert_eq!(fs_err::read_dir(place.path()).unwrap().count(), 0);
        for text in ["first", "second"] {
            write(&output, |file| Ok(file.write_all(text.as_bytes())?)).unwrap();
            assert!(write(&output, fail).is_err());
            assert_eq!(fs_err::read_to_string(&output).unwrap(), text);
        }
        assert_eq!(fs_err::read_dir(place.path()).unwrap().count(), 1, "nothing is beside it");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_written_and_stays() {
        let place = tempfile::tempdir().unwrap();
        let (file, link) = (place.path().join("file"), place.path().join("link"));
        fs_err::write(&file, "a longer text").unwrap();
        fs_err::os::unix::fs::symlink(&file, &link).unwrap();
        for output in [link.as_path(), Path::new("/dev/null")] {
            write(output, |out| Ok(out.write_all(b"text")?)).unwrap();
        }
        assert!(link.is_symlink());
        assert_eq!(fs_err::read_to_string(&file).unwrap(), "text");
    }

    #[cfg(unix)]
    #[test]
    fn who_may_read_an_export_stays_as_it_is() {
        use std::os::unix::fs::PermissionsExt;

        let place = tempfile::tempdir().unwrap();
        let output = place.path().join("pairs.jsonl");
        fs_err::write(&output, "first").unwrap();
        fs_err::set_permissions(&output, std::fs::Permissions::from_mode(0o600)).unwrap();
        write(&output, |file| Ok(file.write_all(b"second")?)).unwrap();
        assert_eq!(fs_err::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
