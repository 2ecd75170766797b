//! A model hub on loopback: one repository, the two routes that a download takes.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

/// A client that says nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// The commit that every file belongs to.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one repository. Dropping it closes its port.
pub struct Hub {
    address: SocketAddr,
    repository: Arc<Repository>,
    thread: Option<JoinHandle<()>>,
}

struct Repository {
    id: String,
    directory: PathBuf,
    /// Listed, and not there.
    other: Vec<String>,
    /// Breaks off in the middle of this file.
    broken: Option<String>,
    /// Files of which contents were sent, not only their sizes.
    sent: Mutex<Vec<String>>,
    closing: AtomicBool,
}

impl Hub {
    /// Offers the files of a directory as repository `id`, and lists `other` files besides, which nobody should ask for.
    /// With `broken`, the connection breaks off in the middle of that file.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(id: &str, directory: &Path, other: &[&str], broken: Option<&str>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let repository = Arc::new(Repository {
            id: id.into(),
            directory: directory.into(),
            other: other.iter().map(ToString::to_string).collect(),
            broken: broken.map(Into::into),
            sent: Mutex::default(),
            closing: AtomicBool::new(false),
        });
        let served = repository.clone();
        let thread = std::thread::Builder::new().spawn(move || {
            for stream in listener.incoming() {
                if served.closing.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is none of the hub's concern.
                let _answered = stream.map(|stream| served.answer(stream));
            }
        })?;
        Ok(Self { address, repository, thread: Some(thread) })
    }

    /// What `HF_ENDPOINT` is set to.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The files that were sent so far, in order.
    #[must_use]
    pub fn sent(&self) -> Vec<String> {
        self.repository.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.repository.closing.store(true, Ordering::SeqCst);
        // Wakes the thread, which waits for a connection.
        drop(TcpStream::connect(self.address));
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

impl Repository {
    /// Answers one request and closes the connection.
    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (mut path, mut range) = (String::new(), None);
        for line in BufReader::new(stream.try_clone()?).lines() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            if path.is_empty() {
                path = line.split(' ').nth(1).context("a path")?.into();
            } else if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (first, last) = value.split_once('-').context("a range")?;
                range = Some((first.parse::<usize>()?, last.parse::<usize>()?));
            }
        }
        let listing = format!("/api/models/{}/revision/main", self.id);
        if path == listing {
            return Ok(write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", self.listing()?)?);
        }
        let file = path.strip_prefix(&format!("/{}/resolve/main/", self.id));
        let contents = file.and_then(|file| Some((file, std::fs::read(self.directory.join(file)).ok()?)));
        let (Some((file, contents)), Some((first, last))) = (contents, range) else {
            return Ok(write!(stream, "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")?);
        };
        let part = contents.get(first..contents.len().min(last + 1)).context("a part of the file")?;
        let (size, length, end) = (contents.len(), part.len(), first + part.len() - 1);
        let etag = file.replace('.', "-");
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nconnection: close\r\nx-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\n\
             content-range: bytes {first}-{end}/{size}\r\ncontent-length: {length}\r\n\r\n"
        )?;
        // Only its size was asked for.
        if (first, last) == (0, 0) {
            return Ok(stream.write_all(part)?);
        }
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(file.into());
        let sent = if self.broken.as_deref() == Some(file) { &part[..length / 2] } else { part };
        Ok(stream.write_all(sent)?)
    }

    fn listing(&self) -> Result<String> {
        let mut names = self.other.clone();
        for entry in std::fs::read_dir(&self.directory)? {
            names.push(entry?.file_name().into_string().ok().context("a name")?);
        }
        let files: Vec<_> = names.iter().map(|name| json!({"rfilename": name})).collect();
        Ok(json!({"id": self.id, "sha": COMMIT, "siblings": files}).to_string())
    }
}
