//! Idempotency tokens: what a store remembers of the writes that carried one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_kernel::Version;

/// A write that carried a token, or the version reserved for one. It travels between replicas with the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The token.
    pub token: String,
    /// Version of the write, without ordinal.
    pub version: Version,
    /// Zero for a write: of two versions the lower stays, for a token fixes its version. For a reservation the ballot under
    /// which it was made: of two the higher stays.
    pub ballot: Version,
    /// Hash of the rows, in order. Another one under the same token is a conflict. For a
    /// reservation what its owner says.
    pub fingerprint: u128,
    /// Rows of the write.
    pub rows: u64,
}

impl TokenRecord {
    /// What names this record among all that a store accepts: a write's version, or a reservation's ballot.
    pub fn accepted_as(&self) -> Version {
        if self.is_reservation() { self.ballot } else { self.version }
    }

    /// Whether it keeps a version for rows that may come.
    pub(crate) fn is_reservation(&self) -> bool {
        self.ballot != Version::default()
    }

    fn supersedes(&self, known: &Self) -> bool {
        (self.ballot, known.version) > (known.ballot, self.version)
    }
}

/// A token and the accept position of the record that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenEntry {
    pub(crate) record: TokenRecord,
    pub(crate) position: u64,
    /// No writer has sent it yet in this life of the store, only a peer.
    #[serde(skip)]
    pub(crate) pulled: bool,
}

/// The tokens of a store.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    entries: BTreeMap<String, TokenEntry>,
    /// Tokens whose version is older than this are forgotten.
    horizon_micros: u64,
}

impl Tokens {
    pub(crate) fn get(&self, token: &str) -> Option<&TokenEntry> {
        self.entries.get(token).filter(|entry| self.is_kept(&entry.record))
    }

    pub(crate) fn is_kept(&self, record: &TokenRecord) -> bool {
        record.version.time().micros() >= self.horizon_micros
    }

    /// Whether another token can be remembered, after forgetting what may be forgotten.
    pub(crate) fn has_room(&mut self, tokens_max: usize) -> bool {
        if self.entries.len() >= tokens_max {
            self.purge();
        }
        self.entries.len() < tokens_max
    }

    /// Whether the record would change what is known.
    pub(crate) fn is_news(&self, record: &TokenRecord) -> bool {
        self.is_kept(record) && self.get(&record.token).is_none_or(|known| record.supersedes(&known.record))
    }

    /// Takes a record in, unless the one that is known stays.
    pub(crate) fn put(&mut self, record: TokenRecord, position: u64, pulled: bool) {
        if self.is_news(&record) {
            self.entries.insert(record.token.clone(), TokenEntry { record, position, pulled });
        }
    }

    /// A writer sends what is known, if that has this fingerprint. Gives the entry as it was.
    pub(crate) fn meet(&mut self, token: &str, fingerprint: u128) -> Option<TokenEntry> {
        let known = self.get(token)?.clone();
        if known.record.fingerprint == fingerprint {
            self.entries.entry(token.to_owned()).and_modify(|entry| entry.pulled = false);
        }
        Some(known)
    }

    /// Moves the horizon; it never goes back.
    pub(crate) fn forget_before(&mut self, micros: u64) {
        self.horizon_micros = self.horizon_micros.max(micros);
    }

    /// Drops what is behind the horizon.
    pub(crate) fn purge(&mut self) {
        let horizon = self.horizon_micros;
        self.entries.retain(|_, entry| entry.record.version.time().micros() >= horizon);
    }

    /// Entries of positions in `(after, until]`, by token.
    pub(crate) fn between(&self, after: u64, until: u64) -> impl Iterator<Item = &TokenEntry> {
        self.entries
            .values()
            .filter(move |entry| entry.position > after && entry.position <= until && self.is_kept(&entry.record))
    }
}

#[cfg(test)]
mod tests {
    use shoal_kernel::{Hlc, NodeId};

    use super::*;

    fn record(micros: u64) -> TokenRecord {
        let version = Version::new(Hlc::from_micros(micros), NodeId(1), 0);
        TokenRecord { token: "t".into(), version, ballot: Version::default(), fingerprint: 1, rows: 1 }
    }

    #[test]
    fn the_reservation_of_the_highest_ballot_stays() {
        let ballot = |micros| Version::new(Hlc::from_micros(micros), NodeId(2), 0);
        let reserved =
            |version: u64, at: u64| TokenRecord { ballot: ballot(at), fingerprint: 0, rows: 0, ..record(version) };
        let mut tokens = Tokens::default();
        tokens.put(reserved(20, 100), 1, false);
        tokens.put(reserved(10, 50), 2, false);
        assert_eq!(tokens.get("t").map(|entry| entry.record.clone()), Some(reserved(20, 100)));
        tokens.put(reserved(30, 200), 3, false);
        assert_eq!(tokens.get("t").map(|entry| entry.record.clone()), Some(reserved(30, 200)));
        assert!(!tokens.is_news(&reserved(30, 200)));
        assert_eq!(reserved(30, 200).accepted_as(), ballot(200));
        assert_eq!(record(30).accepted_as(), record(30).version);
    }

    #[test]
    fn the_lower_version_stays_until_it_is_forgotten() {
        let mut tokens = Tokens::default();
        tokens.put(record(20), 1, false);
        tokens.put(record(10), 2, false);
        tokens.put(record(30), 3, false);
        assert_eq!(tokens.get("t").map(|entry| (entry.record.version, entry.position)), Some((record(10).version, 2)));
        assert_eq!(tokens.between(1, 2).count(), 1);
        assert_eq!(tokens.between(2, 9).count(), 0);
        tokens.forget_before(11);
        assert_eq!(tokens.get("t"), None);
        // A forgotten token is free again.
        tokens.put(record(40), 4, true);
        assert_eq!(tokens.get("t").map(|entry| entry.position), Some(4));
        assert_eq!(
            [tokens.meet("t", 2), tokens.meet("t", 1), tokens.meet("t", 1)]
                .map(|entry| entry.map(|entry| entry.pulled)),
            [Some(true), Some(true), Some(false)]
        );
    }
}
