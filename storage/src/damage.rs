//! What is wrong with a file, and what to do about it.

use std::fmt;

use serde::Serialize;
use shoal_kernel::{Error, ErrorCode, FilePlace};

/// What to do about a file of a replica that is not what was written.
pub(crate) const REMEDY: &str = "a replica that has peers is emptied and filled from them; for one that has none, stop the \
                                 node, see `shoal doctor` for all that is damaged, and put a copy of its directory in place";

/// Something on disk that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, by its name.
    pub file: String,
    /// The byte where what cannot be read begins, if that is known.
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    /// What an error says of a file; `file` if it names none.
    pub(crate) fn of(error: &Error, file: &str) -> Self {
        let place = error.file().cloned().unwrap_or_else(|| FilePlace { file: file.to_owned(), offset: None });
        let message = error.message();
        let message = message.strip_prefix(&format!("{place}: ")).unwrap_or(message).to_owned();
        Self { file: place.file, offset: place.offset, message }
    }

    /// The error of whoever needs the file.
    pub fn to_error(&self) -> Error {
        damaged(Error::new(ErrorCode::Corruption, self.message.as_str()), &self.file, self.offset)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_error().message())
    }
}

/// Says where an error arose, and if it is damage what to do.
pub(crate) fn damaged(error: Error, file: impl fmt::Display, offset: Option<u64>) -> Error {
    let error = error.in_file(file, offset);
    match error.code() {
        ErrorCode::Corruption => error.with_help(REMEDY),
        _ => error,
    }
}

/// Damage of a file.
pub(crate) fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorCode::Corruption, what)
}
