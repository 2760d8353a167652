//! Writes messages as JSON lines. It never drops one: what cannot be written is an error.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kalshi_feed::{Continuity, RawMessage, Role};
use serde::Serialize;

use crate::failure::Failure;

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 128 << 10;

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct Output {
    file: Option<BufWriter<File>>,
    name: Name,
    dirty: bool,
}

#[derive(Debug)]
enum Name {
    Stdout,
    File(PathBuf),
    None,
}

/// One line; the order of the keys is part of the format.
#[derive(Serialize)]
struct Line<'a> {
    conn_id: u16,
    epoch: u32,
    role: Role,
    sid: Option<u64>,
    seq: Option<u64>,
    #[serde(serialize_with = "rfc3339")]
    received_at: SystemTime,
    seq_gap: bool,
    gap_size: u64,
    continuity: Continuity,
    suspect: bool,
    data: std::borrow::Cow<'a, str>,
}

impl Output {
    /// Opens the output: `-` is stdout, `none` nothing, anything else a file, emptied first.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: io::Error| {
            Failure::usage(format!(
                "output: cannot write {}: {error}; give a writable path, - or none",
                path.display()
            ))
        };
        let (file, name) = if path == Path::new("-") {
            // The descriptor itself: stdout's own buffer would write every line by itself.
            let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(cannot)?;
            (Some(File::from(stdout)), Name::Stdout)
        } else if path == Path::new("none") {
            (None, Name::None)
        } else {
            let file = File::create(path).map_err(cannot)?;
            (Some(file), Name::File(path.to_owned()))
        };
        let file = file.map(|file| BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(Self { file, name, dirty: false })
    }

    /// Writes one message.
    ///
    /// # Errors
    /// The system takes no more: disk full, reader gone.
    pub(crate) fn write(&mut self, message: &RawMessage) -> Result<(), Failure> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let line = Line {
            conn_id: message.conn_id.number(),
            epoch: message.epoch.number(),
            role: message.role,
            sid: message.sid.map(kalshi_feed::Sid::number),
            seq: message.seq.map(kalshi_feed::Seq::number),
            received_at: message.received_at.wall,
            seq_gap: message.seq_gap,
            gap_size: message.gap_size,
            continuity: message.continuity,
            suspect: message.suspect,
            data: String::from_utf8_lossy(&message.data),
        };
        self.dirty = true;
        let written = serde_json::to_writer(&mut *file, &line)
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(b"\n"));
        written.map_err(|error| self.failure(&error))
    }

    /// Hands everything written so far to the system.
    ///
    /// # Errors
    /// As for `write`.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        let flushed = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
        flushed.map_err(|error| self.failure(&error))
    }

    /// What a write error means. The buffer is given up: it would only fail again.
    fn failure(&mut self, error: &io::Error) -> Failure {
        if let Some(file) = self.file.take() {
            drop(file.into_parts());
        }
        match &self.name {
            Name::Stdout if error.kind() == io::ErrorKind::BrokenPipe => Failure::ReaderLeft,
            Name::File(path) => Failure::job(format!(
                "output: cannot write {}: {error}; messages after that are not in it",
                path.display()
            )),
            Name::Stdout | Name::None => {
                Failure::job(format!("output: cannot write stdout: {error}"))
            }
        }
    }
}

/// RFC 3339 in UTC, always nine fraction digits.
fn rfc3339<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let time = jiff::Timestamp::try_from(*time).map_err(serde::ser::Error::custom)?;
    serializer.collect_str(&format_args!("{time:.9}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_line_has_its_keys_in_order_and_nanoseconds() {
        let line = Line {
            conn_id: 7,
            epoch: 2,
            role: Role::Orderbook,
            sid: Some(1),
            seq: None,
            received_at: UNIX_EPOCH + Duration::from_nanos(1_793_534_400_000_000_120),
            seq_gap: true,
            gap_size: 3,
            continuity: Continuity::Gap,
            suspect: false,
            data: "{\"a\":1}\n".into(),
        };
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            "{\"conn_id\":7,\"epoch\":2,\"role\":\"orderbook\",\"sid\":1,\"seq\":null,\
             \"received_at\":\"2026-11-01T12:00:00.000000120Z\",\"seq_gap\":true,\"gap_size\":3,\
             \"continuity\":\"gap\",\"suspect\":false,\"data\":\"{\\\"a\\\":1}\\n\"}"
        );
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let failure = Output::open(Path::new("/nowhere/feed.jsonl")).unwrap_err();
        assert!(matches!(&failure, Failure::Usage(text) if text.contains("/nowhere/feed.jsonl")));
    }
}
