//! Hybrid logical clock and row versions.
//!
//! Source: Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots in Globally Distributed Databases" (2014).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

/// Bits of an [`Hlc`] that count events within one microsecond.
const LOGICAL_BITS: u32 = 12;

/// A hybrid logical time: 52 bits of microseconds since the Unix epoch (good until the year 2112), then 12 bits of counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The first time stamp of the given microsecond.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros << LOGICAL_BITS)
    }

    /// Microseconds since the Unix epoch.
    pub const fn micros(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The smallest time after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.micros(), self.0 & ((1 << LOGICAL_BITS) - 1))
    }
}

/// The version of a row: time, then node, then the row's place in its batch. Total order; the greatest wins.
///
/// Layout, from the high end: 64 bits [`Hlc`], 32 bits [`NodeId`], 32 bits ordinal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Version(pub u128);

impl Version {
    /// Puts a version together.
    pub const fn new(time: Hlc, node: NodeId, ordinal: u32) -> Self {
        Self(((time.0 as u128) << 64) | ((node.0 as u128) << 32) | ordinal as u128)
    }

    /// When the write was made.
    pub const fn time(self) -> Hlc {
        Hlc((self.0 >> 64) as u64)
    }

    /// The node that took the write.
    pub const fn node(self) -> NodeId {
        NodeId((self.0 >> 32) as u32)
    }

    /// The row's place in its batch.
    pub const fn ordinal(self) -> u32 {
        self.0 as u32
    }

    /// The same write, another row.
    pub const fn with_ordinal(self, ordinal: u32) -> Self {
        Self((self.0 & !0xffff_ffff) | ordinal as u128)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.time(), self.node(), self.ordinal())
    }
}

/// A peer's clock is further ahead than the cluster allows; its message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("clock of the sender is {ahead_micros} µs ahead, more than the {bound_micros} µs allowed (clock_skew_max_ms)")]
pub struct SkewError {
    /// How far ahead the sender was.
    pub ahead_micros: u64,
    /// The bound that it broke.
    pub bound_micros: u64,
}

/// The clock itself, pure: the caller reads the wall and hands it in.
#[derive(Debug, Clone)]
pub struct HlcClock {
    last: Hlc,
    skew_max_micros: u64,
}

impl HlcClock {
    /// A clock that never gives a time at or below `floor` (the upper bound persisted before the last stop).
    pub fn new(floor: Hlc, skew_max_micros: u64) -> Self {
        Self { last: floor, skew_max_micros }
    }

    /// The next time stamp: above all given and seen before, and not behind the wall.
    pub fn tick(&mut self, wall_micros: u64) -> Hlc {
        self.last = self.last.next().max(Hlc::from_micros(wall_micros));
        self.last
    }

    /// Moves past a time that a peer sent.
    ///
    /// # Errors
    /// The peer's time is more than the skew bound ahead of this wall; the clock has not moved.
    pub fn observe(&mut self, remote: Hlc, wall_micros: u64) -> Result<(), SkewError> {
        let ahead_micros = remote.micros().saturating_sub(wall_micros);
        if ahead_micros > self.skew_max_micros {
            return Err(SkewError { ahead_micros, bound_micros: self.skew_max_micros });
        }
        self.last = self.last.max(remote);
        Ok(())
    }

    /// Moves past a time that was accepted elsewhere already: history is never refused.
    pub fn advance(&mut self, accepted: Hlc) {
        self.last = self.last.max(accepted);
    }

    /// The greatest time given or seen.
    pub fn last(&self) -> Hlc {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back_even_when_the_wall_does() {
        let mut clock = HlcClock::new(Hlc::default(), 500_000);
        let first = clock.tick(1_000_000);
        let second = clock.tick(10);
        assert!(second > first);
        assert_eq!(second.micros(), 1_000_000);
    }

    #[test]
    fn refuses_a_peer_from_the_future_and_does_not_follow_it() {
        let mut clock = HlcClock::new(Hlc::default(), 500_000);
        let far = Hlc::from_micros(2_000_000);
        assert_eq!(clock.observe(far, 1_000_000), Err(SkewError { ahead_micros: 1_000_000, bound_micros: 500_000 }));
        assert_eq!(clock.last(), Hlc::default());
        assert!(clock.observe(Hlc::from_micros(1_400_000), 1_000_000).is_ok());
        assert!(clock.tick(1_000_000) > Hlc::from_micros(1_400_000));
    }

    #[test]
    fn version_parts_come_back() {
        let version = Version::new(Hlc(77), NodeId(5), 9);
        assert_eq!((version.time(), version.node(), version.ordinal()), (Hlc(77), NodeId(5), 9));
        assert!(version.with_ordinal(10) > version);
        assert!(Version::new(Hlc(78), NodeId(0), 0) > version);
    }
}
