//! One direction between two hosts.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::random::Stream;
use crate::world::{Core, HostId};

/// Latency of a healthy link, in microseconds: drawn once per link from this range, plus jitter per message.
const LATENCY_MICROS: (u64, u64) = (120, 600);
const JITTER_MICROS_MAX: u64 = 150;
/// Within one host.
const LOOPBACK_MICROS: u64 = 15;
/// Bytes that a healthy link carries per millisecond: 1 Gbit/s.
const BYTES_PER_MILLI: u64 = 125_000;

/// What is wrong with a link. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkFaults {
    /// Added to the latency of every message.
    pub delay_micros: u64,
    /// A random part up to this is added too.
    pub jitter_micros: u64,
    /// Datagrams lost, of 1000. Streams get slower instead: a lost segment is sent again.
    pub loss_permille: u64,
    /// Datagrams doubled, of 1000.
    pub duplicate_permille: u64,
    /// Datagrams held back so that later ones overtake them, of 1000.
    pub reorder_permille: u64,
    /// Parts of streams that arrive with one wrong bit, of 1000: checksums of TCP are weak.
    pub corrupt_permille: u64,
    /// Bytes per millisecond, if the link is slow; 0 for a healthy one.
    pub bytes_per_milli: u64,
}

impl fmt::Display for LinkFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("healthy");
        }
        write!(
            f,
            "delay {} us, jitter {} us, loss {} permille, duplicates {} permille, reordering {} permille, \
             wrong bits {} permille, {} bytes/ms",
            self.delay_micros,
            self.jitter_micros,
            self.loss_permille,
            self.duplicate_permille,
            self.reorder_permille,
            self.corrupt_permille,
            self.bytes_per_milli
        )
    }
}

pub(super) struct Link {
    /// Faults that cut it at present.
    pub(super) cuts: u32,
    pub(super) faults: LinkFaults,
    latency_micros: u64,
    jitter: Stream,
    pub(super) loss: Stream,
    pub(super) duplicates: Stream,
    pub(super) reordering: Stream,
    pub(super) splits: Stream,
    pub(super) corruption: Stream,
    /// When the link is free for the next byte.
    free_at_micros: u64,
}

impl Link {
    pub(super) fn new(seed: u64, (from, to): (HostId, HostId)) -> Self {
        let entity = (u64::from(from.0) << 16) | u64::from(to.0);
        let stream = |purpose| Stream::new(seed, purpose, entity);
        let latency_micros = if from == to {
            LOOPBACK_MICROS
        } else {
            stream("link latency").between(LATENCY_MICROS.0, LATENCY_MICROS.1)
        };
        Self {
            cuts: 0,
            faults: LinkFaults::default(),
            latency_micros,
            jitter: stream("link jitter"),
            loss: stream("link loss"),
            duplicates: stream("link duplicates"),
            reordering: stream("link reordering"),
            splits: stream("link splits"),
            corruption: stream("link corruption"),
            free_at_micros: 0,
        }
    }

    /// How long that many bytes take from now, queueing included.
    pub(super) fn transit_micros(&mut self, now_micros: u64, bytes: usize) -> u64 {
        let per_milli = if self.faults.bytes_per_milli > 0 { self.faults.bytes_per_milli } else { BYTES_PER_MILLI };
        let start = self.free_at_micros.max(now_micros);
        self.free_at_micros = start + bytes as u64 * 1_000 / per_milli;
        let jitter_micros =
            self.jitter.between(0, JITTER_MICROS_MAX.min(self.latency_micros) + self.faults.jitter_micros);
        (self.free_at_micros - now_micros) + self.latency_micros + self.faults.delay_micros + jitter_micros
    }
}

/// How long a small message takes from one host to the other; `None` if it does not arrive.
pub(super) fn passes(core: &mut Core, from: HostId, to: HostId) -> Option<u64> {
    let now = core.now_micros;
    let link = core.network.links.get_mut(&(from, to)).filter(|link| link.cuts == 0)?;
    let lost = link.faults.loss_permille;
    if link.loss.chance(lost) {
        return None;
    }
    Some(link.transit_micros(now, 0))
}
