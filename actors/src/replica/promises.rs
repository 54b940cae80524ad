//! What a replica has promised to gateways that reserve a version for an idempotency key.
//!
//! Two gateways may hold the first request of one key at the same moment, and a gateway may be asked again while the only
//! replica that knows of an earlier attempt is away. So the version of a key's rows is agreed on before the rows are sent:
//! one instance of single-decree Paxos per key, in which replicas are the acceptors. What they accept goes through the log
//! like any write. What they promise is kept here, in memory: every ballot lies below the node's clock once it has been
//! seen, the clock's bound survives a crash, and a new life promises nothing below the clock it starts with.
//!
//! Source: Lamport, "Paxos Made Simple" (2001).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_kernel::{Hlc, NodeId, Version};

/// Keys whose promises are remembered. Beyond, the older half is forgotten, and nothing below them is promised any more.
const PROMISES_MAX: usize = 8_192;

/// A version that a replica has accepted for a key, and the ballot under which it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Reserved {
    pub(crate) ballot: Version,
    pub(crate) version: Version,
    /// Of the rows that the key stands for, as the client sent them.
    pub(crate) fingerprint: u128,
}

/// The promises of one life of a replica.
#[derive(Debug)]
pub(crate) struct Promises {
    by_token: BTreeMap<String, Promise>,
    /// What was promised before, or has been forgotten, had ballots up to this one.
    floor: Version,
}

#[derive(Debug, Default)]
struct Promise {
    /// Nothing below is accepted.
    ballot: Version,
    /// Accepted, and not yet in the store.
    under_way: Option<Reserved>,
}

impl Promises {
    /// A life that begins at this time of the node's clock.
    pub(crate) fn new(born: Hlc) -> Self {
        Self { by_token: BTreeMap::new(), floor: Version::new(born, NodeId(u32::MAX), u32::MAX) }
    }

    /// Promises to accept nothing below the ballot; gives what is being accepted already.
    ///
    /// # Errors
    /// The ballot that is in the way: ask again with a higher one.
    pub(crate) fn prepare(&mut self, token: &str, ballot: Version) -> Result<Option<Reserved>, Version> {
        let known = self.by_token.get(token);
        let promised = known.map_or(self.floor, |promise| promise.ballot);
        if ballot <= promised {
            return Err(promised);
        }
        let under_way = known.and_then(|promise| promise.under_way);
        self.by_token.insert(token.to_owned(), Promise { ballot, under_way });
        self.forget();
        Ok(under_way)
    }

    /// Whether this may be accepted; if so it is under way from now on, until [`Promises::settle`].
    ///
    /// # Errors
    /// The ballot that is in the way: ask again with a higher one.
    pub(crate) fn accept(&mut self, token: &str, reserved: Reserved) -> Result<(), Version> {
        let promised = self.by_token.get(token).map_or(self.floor, |promise| promise.ballot);
        if reserved.ballot < promised {
            return Err(promised);
        }
        self.by_token.insert(token.to_owned(), Promise { ballot: reserved.ballot, under_way: Some(reserved) });
        Ok(())
    }

    /// The commit of what was accepted under that ballot has ended: the store says what came of it.
    pub(crate) fn settle(&mut self, token: &str, ballot: Version) {
        if let Some(promise) = self.by_token.get_mut(token) {
            promise.under_way = promise.under_way.filter(|reserved| reserved.ballot != ballot);
        }
    }

    fn forget(&mut self) {
        if self.by_token.len() <= PROMISES_MAX {
            return;
        }
        let settled = |promise: &Promise| promise.under_way.is_none();
        let mut ballots: Vec<Version> =
            self.by_token.values().filter(|promise| settled(promise)).map(|promise| promise.ballot).collect();
        ballots.sort_unstable();
        if let Some(middle) = ballots.get(ballots.len() / 2).copied() {
            self.by_token.retain(|_, promise| !settled(promise) || promise.ballot > middle);
            self.floor = self.floor.max(middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(micros: u64) -> Version {
        Version::new(Hlc::from_micros(micros), NodeId(1), 0)
    }

    fn reserved(at: u64, version: u64) -> Reserved {
        Reserved { ballot: ballot(at), version: ballot(version), fingerprint: 7 }
    }

    #[test]
    fn what_is_promised_is_kept() {
        let mut promises = Promises::new(Hlc::default());
        assert_eq!(promises.prepare("a", ballot(10)), Ok(None));
        assert_eq!(promises.prepare("a", ballot(10)), Err(ballot(10)));
        assert_eq!(promises.prepare("a", ballot(20)), Ok(None));
        assert_eq!(promises.accept("a", reserved(10, 5)), Err(ballot(20)));
        assert_eq!(promises.accept("a", reserved(20, 6)), Ok(()));
        assert_eq!(promises.prepare("b", ballot(1)), Ok(None), "another key");
        // Whoever comes next learns of it before it is on the disk.
        assert_eq!(promises.prepare("a", ballot(30)), Ok(Some(reserved(20, 6))));
        promises.settle("a", ballot(20));
        assert_eq!(promises.prepare("a", ballot(40)), Ok(None), "the store says it now");
    }

    #[test]
    fn a_new_life_promises_nothing_below_its_clock() {
        let mut promises = Promises::new(Hlc::from_micros(100));
        assert!(promises.prepare("a", ballot(100)).is_err());
        assert!(promises.accept("a", reserved(99, 1)).is_err());
        assert_eq!(promises.prepare("a", ballot(101)), Ok(None));
    }

    #[test]
    fn what_is_forgotten_stays_promised() {
        let mut promises = Promises::new(Hlc::default());
        promises.accept("kept", reserved(1, 1)).unwrap();
        for number in 0..=PROMISES_MAX as u64 {
            promises.prepare(&format!("{number}"), ballot(10 + number)).unwrap();
        }
        assert!(promises.by_token.len() <= PROMISES_MAX);
        assert!(promises.prepare("0", ballot(11)).is_err(), "forgotten, and still no lower one is accepted");
        assert_eq!(promises.prepare("kept", ballot(1_000_000)), Ok(Some(reserved(1, 1))), "not yet in the store");
    }
}
