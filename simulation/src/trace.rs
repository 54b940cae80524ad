//! The trace of a run: one line per delivered message, disk operation, fault and note, in order. Its running hash is what
//! "the same run" means.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::{self, Write};

use xxhash_rust::xxh3::Xxh3;

/// Lines of faults and notes that are kept for the story of a failing run.
const STORY_LINES_MAX: usize = 40;

/// Where a line belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message arrived, or was lost on the way.
    Network,
    /// A disk did something.
    Disk,
    /// The plan did something to the world.
    Fault,
    /// The code under test said something.
    Note,
    /// A client began or ended an operation.
    Client,
    /// A promise was found broken, after everything else.
    Broken,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Disk => "disk",
            Self::Fault => "fault",
            Self::Note => "note",
            Self::Client => "client",
            Self::Broken => "broken",
        }
    }
}

/// The trace. Lines go to a writer if there is one; the hash is kept always.
pub struct Trace {
    hash: Xxh3,
    line: String,
    lines: u64,
    writer: Option<Box<dyn Write + Send>>,
    failed: Option<io::Error>,
    story: VecDeque<String>,
}

impl Trace {
    /// A trace that also writes its lines.
    pub fn new(writer: Option<Box<dyn Write + Send>>) -> Self {
        Self { hash: Xxh3::new(), line: String::new(), lines: 0, writer, failed: None, story: VecDeque::new() }
    }

    /// Adds a line.
    pub fn line(&mut self, now_micros: u64, kind: Kind, what: fmt::Arguments<'_>) {
        self.line.clear();
        // Writing to a string cannot fail.
        let _ = write!(self.line, "{:>5}.{:06} {:<6} ", now_micros / 1_000_000, now_micros % 1_000_000, kind.word());
        let _ = self.line.write_fmt(what);
        if kind == Kind::Fault {
            if self.story.len() == STORY_LINES_MAX {
                self.story.pop_front();
            }
            self.story.push_back(self.line.clone());
        }
        self.line.push('\n');
        self.hash.update(self.line.as_bytes());
        self.lines += 1;
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.write_all(self.line.as_bytes())
        {
            self.failed = Some(error);
            self.writer = None;
        }
    }

    /// The hash of all lines so far.
    pub fn hash(&self) -> u128 {
        self.hash.digest128()
    }

    /// Lines so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The last faults, oldest first.
    pub fn story(&self) -> impl Iterator<Item = &str> {
        self.story.iter().map(String::as_str)
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// This or an earlier write failed; the file is not whole.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.writer.as_mut().map_or(Ok(()), Write::flush)
    }
}
