//! One entry at a time from a JSONL file or a JSON array, never the whole file in memory.

use std::io::{self, BufRead};

/// One entry as it stands in the file.
#[derive(Debug)]
pub(super) struct Entry {
    /// Line on which it starts, from 1.
    pub(super) line: u64,
    /// Its size in bytes, even where `bytes` was cut.
    pub(super) size: u64,
    /// Its bytes; `None` when there are more than the limit.
    pub(super) bytes: Option<Vec<u8>>,
}

/// Why the stream cannot go on.
#[derive(Debug)]
pub(super) enum StreamError {
    Io(io::Error),
    Array { line: u64, what: &'static str },
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads lines, or the elements of an array when the first character is `[`.
pub(super) struct Entries<R> {
    reader: R,
    limit: usize,
    line: u64,
    layout: Option<Layout>,
}

#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Lines,
    /// Before the first element; `[]` may end here.
    ArrayStart,
    ArrayNext,
    Done,
}

impl<R: BufRead> Entries<R> {
    pub(super) fn new(reader: R, limit: usize) -> Self {
        Self { reader, limit, line: 1, layout: None }
    }

    /// The next entry; `None` at the end. Blank lines are no entries.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, StreamError> {
        let layout = match self.layout {
            Some(layout) => layout,
            None => {
                let layout = match self.skip_space()? {
                    None => Layout::Done,
                    Some(b'[') => {
                        self.reader.consume(1);
                        Layout::ArrayStart
                    }
                    Some(_) => Layout::Lines,
                };
                self.layout = Some(layout);
                layout
            }
        };
        match layout {
            Layout::Done => Ok(None),
            Layout::Lines => self.next_line(),
            Layout::ArrayStart | Layout::ArrayNext => self.next_element(layout),
        }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.reader.fill_buf()?.first().copied())
    }

    fn skip_space(&mut self) -> io::Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.reader.consume(1);
        }
        Ok(None)
    }

    fn next_line(&mut self) -> Result<Option<Entry>, StreamError> {
        if self.skip_space()?.is_none() {
            return Ok(None);
        }
        let mut entry = Collector::new(self.line, self.limit);
        while let Some(byte) = self.peek()? {
            self.reader.consume(1);
            if byte == b'\n' {
                self.line += 1;
                break;
            }
            entry.push(byte);
        }
        Ok(Some(entry.finish()))
    }

    fn next_element(&mut self, layout: Layout) -> Result<Option<Entry>, StreamError> {
        let first = self.skip_space()?;
        if first == Some(b']') && layout == Layout::ArrayStart {
            self.reader.consume(1);
            return self.end();
        }
        let mut entry = Collector::new(self.line, self.limit);
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let Some(byte) = self.peek()? else {
                return Err(self.array("the array is not closed: the file ends inside it"));
            };
            if depth == 0 && !in_string && (byte == b',' || byte == b']') {
                break;
            }
            self.reader.consume(1);
            self.line += u64::from(byte == b'\n');
            entry.push(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'[' | b'{' if !in_string => depth += 1,
                b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        let closed = self.peek()? == Some(b']');
        self.reader.consume(1);
        if entry.size == 0 {
            return Err(self.array("a comma without an element"));
        }
        if closed {
            self.end()?;
        } else {
            self.layout = Some(Layout::ArrayNext);
        }
        Ok(Some(entry.finish()))
    }

    fn end(&mut self) -> Result<Option<Entry>, StreamError> {
        self.layout = Some(Layout::Done);
        match self.skip_space()? {
            None => Ok(None),
            Some(_) => Err(self.array("something follows the end of the array")),
        }
    }

    fn array(&self, what: &'static str) -> StreamError {
        StreamError::Array { line: self.line, what }
    }
}

/// Bytes up to a limit; beyond it only their number.
struct Collector {
    line: u64,
    limit: usize,
    size: u64,
    bytes: Vec<u8>,
}

impl Collector {
    fn new(line: u64, limit: usize) -> Self {
        Self { line, limit, size: 0, bytes: Vec::new() }
    }

    fn push(&mut self, byte: u8) {
        self.size += 1;
        if self.size <= self.limit as u64 {
            self.bytes.push(byte);
        } else {
            self.bytes = Vec::new();
        }
    }

    fn finish(self) -> Entry {
        let fits = self.size <= self.limit as u64;
        Entry { line: self.line, size: self.size, bytes: fits.then_some(self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &str, limit: usize) -> Result<Vec<(u64, Option<String>)>, String> {
        // A reader that hands out three bytes at a time, so that every boundary is crossed.
        let mut entries = Entries::new(io::BufReader::with_capacity(3, text.as_bytes()), limit);
        let mut out = Vec::new();
        loop {
            match entries.next() {
                Ok(None) => return Ok(out),
                Ok(Some(entry)) => {
                    out.push((entry.line, entry.bytes.map(|bytes| String::from_utf8(bytes).unwrap().trim().to_owned())))
                }
                Err(StreamError::Array { line, what }) => return Err(format!("{line}: {what}")),
                Err(StreamError::Io(error)) => return Err(error.to_string()),
            }
        }
    }

    fn some(line: u64, text: &str) -> (u64, Option<String>) {
        (line, Some(text.to_owned()))
    }

    #[test]
    fn lines_blank_lines_and_no_last_newline() {
        assert_eq!(all("{\"a\":1}\n\r\n\n{\"b\":2}", 100).unwrap(), [some(1, "{\"a\":1}"), some(4, "{\"b\":2}")]);
        assert_eq!(all(" \n ", 100).unwrap(), []);
    }

    #[test]
    fn arrays_keep_brackets_in_strings_apart() {
        let text = "[\n {\"a\": \"],}\\\"[\"},\n [1, 2],\n 3]\n";
        assert_eq!(all(text, 100).unwrap(), [some(2, "{\"a\": \"],}\\\"[\"}"), some(3, "[1, 2]"), some(4, "3")]);
        assert_eq!(all("[]", 100).unwrap(), []);
    }

    #[test]
    fn too_long_is_one_entry_lost_not_the_file() {
        assert_eq!(all("12345678\n1\n", 4).unwrap(), [(1, None), some(2, "1")]);
        assert_eq!(all("[12345678,1]", 4).unwrap(), [(1, None), some(1, "1")]);
    }

    #[test]
    fn broken_arrays_say_where() {
        assert!(all("[{\"a\":1},\n{\"b\"", 99).unwrap_err().starts_with("2: the array is not closed"));
        assert!(all("[1] x", 99).unwrap_err().contains("follows the end"));
        assert!(all("[1,]", 99).unwrap_err().contains("a comma without"));
        assert!(all("[,1]", 99).unwrap_err().contains("a comma without"));
    }

    proptest! {
        #[test]
        fn an_array_and_its_lines_are_the_same(texts in prop::collection::vec(".{0,20}", 1..8)) {
            let values = texts.iter().map(|text| serde_json::to_string(&vec![text]).unwrap()).collect::<Vec<_>>();
            let bytes = |entries: Vec<(u64, Option<String>)>| entries.into_iter().map(|entry| entry.1.unwrap()).collect::<Vec<_>>();
            let array = bytes(all(&format!("[{}]", values.join(",")), 1000).unwrap());
            prop_assert_eq!(&array, &values);
            let objects = values.iter().map(|value| format!("{{\"v\":{value}}}")).collect::<Vec<_>>();
            prop_assert_eq!(bytes(all(&objects.join("\n"), 1000).unwrap()), objects);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut entries = Entries::new(bytes.as_slice(), 50);
            while let Ok(Some(_)) = entries.next() {}
        }
    }
}
