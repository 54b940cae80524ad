//! Finding out what one has missed.
//!
//! News is told a limited number of times, and whoever comes later has missed all of it. So from time to time a node shows
//! another what it knows, as one mark for each group of addresses, and is answered with those groups that differ. As long as
//! answers say something new, it asks again soon, somebody else; then less and less often.
//!
//! Asking costs the same at any size. With foca's own way, a handful of random members in each answer, a newcomer among 5,000
//! would need more than an hour to hear of the last.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use shoal_kernel::wire;

use super::identity::Identity;

/// Groups of addresses: at 5,000 nodes one group fills one datagram.
pub(super) const GROUPS: usize = 64;

/// The upper bits of a hash are the group.
const GROUP_SHIFT: u32 = u64::BITS - GROUPS.ilog2();

const MARK_BYTES: usize = size_of::<u32>();

/// What is known of each group, in a nutshell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks([u32; GROUPS]);

impl Default for Marks {
    fn default() -> Self {
        Self([0; GROUPS])
    }
}

impl Marks {
    /// Adds a life, or takes it away again.
    pub(super) fn toggle(&mut self, id: &Identity) {
        let place = place(id.address);
        let mark = mix(mix(u64::from(id.node.0)) ^ id.generation ^ place.0.rotate_left(32));
        if let Some(group) = self.0.get_mut(group_of(&place)) {
            *group ^= (mark >> 32) as u32;
        }
    }

    /// Which groups differ.
    pub(super) fn differing(&self, other: &Self) -> [bool; GROUPS] {
        std::array::from_fn(|group| self.0[group] != other.0[group])
    }
}

/// An address after its hash, the same everywhere. The hash keeps groups of like size, and compares fast.
pub(super) type Place = (u64, SocketAddr);

pub(super) fn place(address: SocketAddr) -> Place {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let (high, low) = ((ip >> 64) as u64, ip as u64);
    (mix(mix(mix(u64::from(address.port())) ^ high) ^ low), address)
}

/// The group of an address.
pub(super) fn group_of(place: &Place) -> usize {
    (place.0 >> GROUP_SHIFT) as usize
}

/// The first place of a group.
pub(super) fn first_of(group: usize) -> Place {
    ((group as u64) << GROUP_SHIFT, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
}

/// The last step of SplitMix64: every bit of the number moves half of the others.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The question.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    from: Identity,
    to: Identity,
    /// The marks, each little endian.
    marks: Vec<u8>,
}

pub(super) fn encode(from: Identity, to: Identity, marks: &Marks) -> Option<Vec<u8>> {
    let marks = marks.0.iter().flat_map(|mark| mark.to_le_bytes()).collect();
    wire::encode(&Question { from, to, marks }).ok()
}

/// Who asks, whom, and with which marks.
pub(super) fn decode(bytes: &[u8]) -> Option<(Identity, Identity, Marks)> {
    let Question { from, to, marks } = wire::decode(bytes).ok()?;
    if marks.len() != GROUPS * MARK_BYTES {
        return None;
    }
    let mut read = Marks::default();
    for (mark, bytes) in read.0.iter_mut().zip(marks.chunks_exact(MARK_BYTES)) {
        *mark = u32::from_le_bytes(bytes.try_into().ok()?);
    }
    Some((from, to, read))
}

#[cfg(test)]
mod tests {
    use shoal_kernel::NodeId;

    use super::*;

    fn identity(number: u16, generation: u64) -> Identity {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, number));
        Identity { node: NodeId(u32::from(number)), address, generation }
    }

    #[test]
    fn marks_tell_what_differs() {
        let mut ours = Marks::default();
        (1..=1_000).for_each(|number| ours.toggle(&identity(number, 1)));
        let mut theirs = Marks::default();
        (1..=1_000).rev().for_each(|number| theirs.toggle(&identity(number, 1)));
        assert_eq!(ours, theirs, "the order does not matter");
        theirs.toggle(&identity(7, 1));
        theirs.toggle(&identity(7, 2));
        let differing = ours.differing(&theirs);
        assert_eq!(differing.iter().filter(|differs| **differs).count(), 1);
        assert!(differing[group_of(&place(identity(7, 1).address))], "another life stands in the same group");
        let read = decode(&encode(identity(7, 2), identity(8, 1), &theirs).unwrap()).unwrap();
        assert_eq!(read, (identity(7, 2), identity(8, 1), theirs));
    }

    #[test]
    fn groups_are_of_like_size() {
        let mut sizes = [0; GROUPS];
        (1..=6_400).for_each(|number| sizes[group_of(&place(identity(number, 1).address))] += 1);
        assert!(sizes.iter().all(|size| (50..150).contains(size)), "{sizes:?}");
    }
}
