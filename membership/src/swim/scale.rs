//! What follows the size of the cluster. News takes a number of rounds that grows with the logarithm of the number of nodes;
//! whoever waits for news, or stops telling it, must wait and tell so much longer.
//!
//! Source: section 4.1 and 5 of the paper; memberlist scales in the same way.

use std::num::NonZeroU8;
use std::time::Duration;

/// Times that a piece of news is told by each node that hears it, in a small cluster.
const TRANSMISSIONS_MIN: u8 = 10;

/// Nodes that may all tell something at once when one more comes.
const TELLERS_MAX: u32 = 128;

/// Bits of the number of nodes up to which nothing is scaled: 15 nodes.
const BITS_MIN: u32 = 4;

/// The size of a cluster, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scale {
    /// Bits of the number of nodes.
    bits: u32,
}

impl Scale {
    pub(super) fn of(nodes: usize) -> Self {
        Self { bits: (usize::BITS - nodes.leading_zeros()).max(BITS_MIN) }
    }

    /// Times that each node tells a piece of news. One that is told `t` times by everybody who heard it misses a node with
    /// probability `exp(-t)`; with `2 ln n + 4`, even when news of all `n` nodes goes to all, hardly any of it is missed.
    pub(super) fn transmissions(self) -> NonZeroU8 {
        let times = u8::try_from(self.bits * 7 / 5 + 4).unwrap_or(u8::MAX);
        NonZeroU8::MIN.saturating_add(times.max(TRANSMISSIONS_MIN) - 1)
    }

    /// How long a suspicion lasts that lasts `least` in a small cluster: it must reach the suspect, and the objection everybody.
    pub(super) fn suspicion(self, least: Duration) -> Duration {
        least * self.bits / BITS_MIN
    }

    /// Whether everybody tells a newcomer at once what it told the others before.
    pub(super) fn tells_newcomers(self) -> bool {
        1 << self.bits <= TELLERS_MAX
    }

    /// How often everybody tells again what it told before, if it is every `least` in a small cluster. What a node hears in a
    /// second must not grow with the number of those that tell.
    pub(super) fn tell_every(self, least: Duration) -> Duration {
        least * (1_u32.checked_shl(self.bits).unwrap_or(u32::MAX) / TELLERS_MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_clusters_are_all_alike_and_large_ones_grow_slowly() {
        let of = |nodes| {
            let scale = Scale::of(nodes);
            let ms = |time: Duration| time.as_millis();
            let (suspicion, tell) =
                (scale.suspicion(Duration::from_secs(1)), scale.tell_every(Duration::from_secs(10)));
            (scale.transmissions().get(), ms(suspicion), scale.tells_newcomers(), ms(tell))
        };
        for nodes in [0, 1, 3, 15] {
            assert_eq!(of(nodes), (10, 1_000, true, 10_000));
        }
        assert_eq!(of(100), (13, 1_750, true, 10_000));
        assert_eq!(of(1_000), (18, 2_500, false, 80_000));
        assert_eq!(of(5_000), (22, 3_250, false, 640_000));
    }
}
