//! When writes reach the disk for good, as the user names it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest pause between two syncs, in milliseconds.
pub const FSYNC_INTERVAL_MS_MAX: u32 = 60_000;

/// When a replica syncs what it has written to its log. Whatever is chosen, the end of a process loses nothing: the operating
/// system has it. A loss of power takes from a replica the newest writes that were not synced, in order; the replica then takes
/// part again once it has fetched from its peers what they still have. So an acknowledged write is lost only if every replica
/// that held it lost its power before it was synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Fsync {
    /// Before it acknowledges. A loss of power loses nothing that was acknowledged.
    #[default]
    Always,
    /// So often, behind the acknowledgements. A loss of power loses the writes of about the last interval.
    Interval {
        /// The pause in milliseconds: a sync begins at the latest so long after the acknowledgement of the oldest write that
        /// needs it.
        ms: u32,
    },
    /// When a file of the log is full, when the memtable is flushed, and when the replica notes how far it follows its peers. A
    /// loss of power loses everything since then: as much as a memtable holds.
    Never,
}

impl Fsync {
    /// The names that users give.
    pub const NAMES: [&'static str; 3] = ["always", "interval", "never"];

    /// The pause, if no other is asked for.
    pub const INTERVAL_MS_DEFAULT: u32 = 1_000;

    /// The name, without the pause.
    pub fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Interval { .. } => "interval",
            Self::Never => "never",
        }
    }

    /// The longest time between an acknowledgement and the beginning of a sync, if there is one.
    pub fn interval(self) -> Option<Duration> {
        match self {
            Self::Interval { ms } => Some(Duration::from_millis(u64::from(ms))),
            Self::Always | Self::Never => None,
        }
    }
}

impl fmt::Display for Fsync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interval { ms } => write!(f, "interval ({ms} ms)"),
            other => f.write_str(other.name()),
        }
    }
}

impl FromStr for Fsync {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "always" => Ok(Self::Always),
            "interval" => Ok(Self::Interval { ms: Self::INTERVAL_MS_DEFAULT }),
            "never" => Ok(Self::Never),
            _ => Err(format!("fsync is one of {}, not '{text}'", Self::NAMES.join(", "))),
        }
    }
}
