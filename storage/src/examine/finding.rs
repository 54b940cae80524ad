//! What an examination found, and what it means.

use serde::Serialize;
use shoal_kernel::{Error, ErrorCode};

use crate::damage::{Problem, REMEDY};

/// Whether somebody has to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Not as it was written, or in doubt.
    Damage,
    /// What a crash leaves behind and the next start puts in order by itself.
    Note,
}

/// Something about a file that is worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it is damage.
    pub severity: Severity,
    /// Which file, where, and what is wrong with it.
    #[serde(flatten)]
    pub problem: Problem,
    /// What happens, or what to do.
    pub remedy: String,
}

impl Finding {
    /// Something that the next start puts in order.
    pub fn note(file: impl Into<String>, offset: Option<u64>, what: impl Into<String>, remedy: &str) -> Self {
        let problem = Problem { file: file.into(), offset, message: what.into() };
        Self { severity: Severity::Note, problem, remedy: remedy.to_owned() }
    }

    /// Something that is wrong.
    pub fn damage(file: impl Into<String>, offset: Option<u64>, what: impl Into<String>, remedy: &str) -> Self {
        Self { severity: Severity::Damage, ..Self::note(file, offset, what, remedy) }
    }

    /// Puts what the replica's owner knows of its peers in the place of the general remedy.
    pub fn advise(&mut self, remedy: &str) {
        if self.remedy == REMEDY {
            self.remedy = remedy.to_owned();
        }
    }

    /// What an error says; of `file`, if it names none.
    pub fn of(error: &Error, file: &str) -> Self {
        let remedy = match error.code() {
            ErrorCode::IncompatibleVersion => "start the directory with the build that wrote it",
            ErrorCode::Io => {
                "look at the disk and the rights on the file; what cannot be read is not known to be damaged"
            }
            _ => error.help().unwrap_or(REMEDY),
        };
        Self { severity: Severity::Damage, problem: Problem::of(error, file), remedy: remedy.to_owned() }
    }
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        Self { severity: Severity::Damage, problem, remedy: REMEDY.to_owned() }
    }
}
