//! Consistency levels, as the user names them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many replicas must have a write on disk before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum WriteLevel {
    /// One replica.
    One,
    /// The majority of the partition's replicas.
    #[default]
    Quorum,
    /// All of them.
    All,
}

impl WriteLevel {
    /// The level at which a statement that writes what it has read must read, to have seen every earlier write of this level.
    pub fn of_reads(self) -> ReadLevel {
        match self {
            Self::One => ReadLevel::One,
            Self::Quorum | Self::All => ReadLevel::Quorum,
        }
    }

    /// Acknowledgements needed from `replicas` members.
    pub fn needed(self, replicas: usize) -> usize {
        match self {
            Self::One => 1,
            Self::Quorum => quorum(replicas),
            Self::All => replicas.max(1),
        }
    }
}

/// How many replicas a read compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum ReadLevel {
    /// Any caught-up replica: may be behind, never invented.
    #[default]
    One,
    /// A majority: sees every earlier write at quorum.
    Quorum,
}

/// The smallest majority of `members`; 1 of none or one.
pub fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// How many members of an old set must have sealed their epoch, or be heard by a member that lost its state, so that every
/// write acknowledged at quorum is among what they hold: N - W + 1.
pub fn seal_quorum(members: usize) -> usize {
    members.saturating_sub(quorum(members)) + 1
}

macro_rules! names {
    ($level:ty { $($variant:ident => $text:literal),+ }) => {
        impl fmt::Display for $level {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),+ })
            }
        }

        impl FromStr for $level {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text.to_ascii_lowercase().as_str() {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(format!("'{text}' is not a level; use one of {}", [$($text),+].join(", "))),
                }
            }
        }
    };
}

names!(WriteLevel { One => "one", Quorum => "quorum", All => "all" });
names!(ReadLevel { One => "one", Quorum => "quorum" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_always_meet() {
        for members in 1..=9 {
            assert!(quorum(members) + seal_quorum(members) > members, "of {members}");
        }
        assert_eq!((quorum(1), quorum(2), quorum(3), quorum(5)), (1, 2, 2, 3));
        assert_eq!((seal_quorum(1), seal_quorum(2), seal_quorum(3)), (1, 1, 2));
    }

    #[test]
    fn levels_are_read_as_users_write_them() {
        assert_eq!("Quorum".parse(), Ok(WriteLevel::Quorum));
        assert!("most".parse::<WriteLevel>().unwrap_err().contains("one, quorum, all"));
    }
}
