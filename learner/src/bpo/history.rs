//! `DIR/metrics.jsonl`: every step and evaluation, one JSON object a line.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::files;
use super::metrics::{Evaluation, StepMetrics};

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Line {
    /// An optimiser step.
    Step(StepMetrics),
    /// An evaluation.
    Evaluated(Evaluation),
}

impl Line {
    fn step(&self) -> u64 {
        match self {
            Self::Step(metrics) => metrics.step,
            Self::Evaluated(evaluation) => evaluation.step,
        }
    }
}

/// The metrics of a run, in memory and in its file.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    file: fs::File,
    lines: Vec<Line>,
}

impl History {
    /// Opens `path` for a run that stands at `step`. Later lines, which a killed process wrote after its last checkpoint,
    /// are dropped, since those steps are taken again; so is a line that was cut off.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, step: u64) -> io::Result<Self> {
        let mut lines = read(path)?;
        lines.retain(|line| line.step() <= step);
        files::write_atomic(path, |file| lines.iter().try_for_each(|line| write_line(file, line)))?;
        let file = fs::OpenOptions::new().append(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, lines })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The disk is full.
    pub fn push(&mut self, line: Line) -> io::Result<()> {
        write_line(&mut self.file, &line)?;
        self.lines.push(line);
        Ok(())
    }

    /// Makes what was added survive a power cut; before a checkpoint, which counts on it.
    ///
    /// # Errors
    /// The disk is full.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything so far.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}

/// Reads a metrics file; a line that is cut off or of another version is left out. A file that is not there is empty.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn write_line(file: &mut (impl Write + ?Sized), line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
    text.push(b'\n');
    file.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Line {
        Line::Step(StepMetrics { step, loss: 1.0 / 3.0 + step as f64, ..StepMetrics::default() })
    }

    #[test]
    fn a_resumed_run_drops_what_it_will_do_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut history = History::open(&path, 0).unwrap();
        for at in 1..=5 {
            history.push(step(at)).unwrap();
        }
        history.push(Line::Evaluated(Evaluation { step: 5, ..Evaluation::default() })).unwrap();
        let mut cut = fs::read(&path).unwrap();
        cut.truncate(cut.len() - 4);
        fs::write(&path, cut).unwrap();
        let mut again = History::open(&path, 3).unwrap();
        assert_eq!(again.lines(), [step(1), step(2), step(3)]);
        again.push(step(4)).unwrap();
        assert_eq!(read(&path).unwrap(), [step(1), step(2), step(3), step(4)]);
    }
}
