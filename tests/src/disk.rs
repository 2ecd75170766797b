//! A disk that fills up, becomes read-only or loses power, and a clock that jumps, for one process at a time.
//!
//! `disk.c` is compiled with the system's C compiler and preloaded into the process; it tells what each of these does. Tests of
//! the learner use this file, too.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Where the numbers are in the control file, see `disk.c`.
#[derive(Clone, Copy)]
enum Number {
    Full,
    ReadOnly,
    Clock,
    Power,
    Flushes,
    Errors,
}

/// What fails with EIO.
#[derive(Clone, Copy, Debug)]
pub enum Errors {
    /// Nothing.
    None,
    /// Flushes: what was written may be there or not.
    Flushes,
    /// Every change, too.
    Changes,
}

/// The disk of one data directory. It goes when this is dropped.
pub struct Disk {
    /// What the directory and the mirror are in, by its real path: that is what the process sees.
    place: PathBuf,
    _owner: TempDir,
    library: PathBuf,
    control: fs::File,
}

impl Disk {
    /// An empty disk.
    ///
    /// # Errors
    /// The C compiler is missing or fails, or files cannot be written.
    pub fn new() -> io::Result<Self> {
        let owner = tempfile::tempdir()?;
        let place = owner.path().canonicalize()?;
        let (source, library) = (place.join("disk.c"), place.join("disk.so"));
        fs::write(&source, include_str!("disk.c"))?;
        let built = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()?;
        if !built.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&built.stderr).into_owned()));
        }
        let control = place.join("control");
        fs::write(&control, [0; 48])?;
        let control = fs::File::options().read(true).write(true).open(control)?;
        fs::create_dir(place.join("data"))?;
        Ok(Self { place, _owner: owner, library, control })
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.place.join("data")
    }

    /// What the environment of the process must have; with `mirror`, what a power cut would leave is kept.
    pub fn environment(&self, mirror: bool) -> Vec<(&'static str, PathBuf)> {
        let mut environment = vec![
            ("LD_PRELOAD", self.library.clone()),
            ("REGROUND_DISK_ROOT", self.data()),
            ("REGROUND_DISK_CONTROL", self.place.join("control")),
        ];
        if mirror {
            environment.push(("REGROUND_DISK_MIRROR", self.mirror()));
        }
        environment
    }

    fn set(&self, number: Number, value: i64) -> io::Result<()> {
        self.control.write_all_at(&value.to_ne_bytes(), 8 * number as u64)
    }

    fn get(&self, number: Number) -> io::Result<i64> {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, 8 * number as u64)?;
        Ok(i64::from_ne_bytes(bytes))
    }

    /// From now on there is room for so many bytes more.
    ///
    /// # Errors
    /// The control file cannot be written; so with the other switches.
    pub fn fill(&self, room: u32) -> io::Result<()> {
        self.set(Number::Full, 1 + i64::from(room))
    }

    /// There is room again.
    pub fn free(&self) -> io::Result<()> {
        self.set(Number::Full, 0)
    }

    /// Whether nothing can be changed from now on.
    pub fn read_only(&self, read_only: bool) -> io::Result<()> {
        self.set(Number::ReadOnly, i64::from(read_only))
    }

    /// What fails from now on.
    pub fn errors(&self, errors: Errors) -> io::Result<()> {
        self.set(Number::Errors, errors as i64)
    }

    /// From now on the clock is off by so many seconds.
    pub fn clock(&self, seconds: i64) -> io::Result<()> {
        self.set(Number::Clock, seconds)
    }

    /// Has the process killed in the place of its `flush`-th flush from now, from 1; 0: never.
    pub fn cut_power(&self, flush: i64) -> io::Result<()> {
        self.set(Number::Power, flush)
    }

    /// Flushes since the disk was made.
    pub fn flushes(&self) -> io::Result<i64> {
        self.get(Number::Flushes)
    }

    fn mirror(&self) -> PathBuf {
        self.place.join("mirror")
    }

    /// Takes all that is in the data directory for flushed. Before a process is started with a mirror.
    pub fn settle(&self) -> io::Result<()> {
        let mirror = self.mirror();
        match fs::remove_dir_all(&mirror) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(mirror.join("grave"))?;
        settle(&self.data(), &mirror)
    }

    /// After the process: has in the data directory what a power cut would have left of it.
    pub fn lose_what_was_not_flushed(&self) -> io::Result<()> {
        let left = self.place.join("left");
        rebuild(fs::metadata(self.data())?.ino(), &self.mirror(), &left)?;
        fs::remove_dir_all(self.data())?;
        fs::rename(left, self.data())
    }
}

fn settle(directory: &Path, mirror: &Path) -> io::Result<()> {
    let mut entries = String::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (name, metadata) = (entry.file_name(), entry.metadata()?);
        let kind = if metadata.is_dir() { 'd' } else { 'f' };
        entries.push_str(&format!("{kind} {} {}\n", metadata.ino(), name.to_string_lossy()));
        if metadata.is_dir() {
            settle(&entry.path(), mirror)?;
        } else {
            fs::copy(entry.path(), mirror.join(format!("f{}", metadata.ino())))?;
        }
    }
    fs::write(mirror.join(format!("d{}", fs::metadata(directory)?.ino())), entries)
}

fn rebuild(inode: u64, mirror: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let entries = match fs::read_to_string(mirror.join(format!("d{inode}"))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for line in entries.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(kind), Some(inode), Some(name)) = (words.next(), words.next(), words.next()) else {
            return Err(io::Error::other(format!("no entry: {line}")));
        };
        let inode = inode.parse().map_err(io::Error::other)?;
        if kind == "d" {
            rebuild(inode, mirror, &to.join(name))?;
            continue;
        }
        match fs::copy(mirror.join(format!("f{inode}")), to.join(name)) {
            // Its name was flushed and none of its bytes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(to.join(name), [])?,
            copied => drop(copied?),
        }
    }
    Ok(())
}
