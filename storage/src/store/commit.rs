//! Group commit: check everything, log it with one write and one fsync, apply it.

use std::collections::{BTreeMap, btree_map};
use std::sync::{Arc, Mutex};

use arrow::array::BooleanArray;
use shoal_kernel::{Applied, Error, ErrorCode, Planted, Result, SegmentId, Version};

use super::purge::{is_within, too_late};
use super::{Store, Writer, lock};
use crate::expiry::expired;
use crate::hash::{content_hashes, fingerprint};
use crate::key::EncodedKeys;
use crate::layout::Layout;
use crate::memtable::{Chunk, Entry, ROW_OVERHEAD_BYTES};
use crate::rows::{Accepted, Incoming, Rows, Write, forgotten_columns, normalise};
use crate::size::batch_bytes;
use crate::state::{Location, SegmentView, SourceId};
use crate::token::{TokenEntry, TokenRecord};
use crate::wal::{FrameBuilder, LogFailure};

/// Tells a client that is ahead of the flusher when to come back.
const OVERLOAD_RETRY_MS: u64 = 200;
/// The same for one that is ahead of compaction.
const MERGE_RETRY_MS: u64 = 1_000;

/// A checked write, with the rows that it meets.
pub(super) struct Prepared {
    pub(super) incoming: Incoming,
    /// For each row, the winner of its key before this group.
    pub(super) met: Vec<Option<Location>>,
    /// It comes from a peer.
    pub(super) pulled: bool,
}

/// What becomes of a write of the group.
enum Fate {
    Settled(Result<Accepted>),
    /// In the log.
    Logged(Accepted),
    /// A resend of the write at that place of the group.
    Resent {
        place: u64,
        accepted: Accepted,
    },
}

impl Store {
    /// Commits a group of writes with one append and one fsync. When it returns, those that were accepted are durable (as
    /// far as [`crate::StoreOptions::sync_commits`] promises), applied and visible, in order; the others had no effect.
    ///
    /// # Errors
    /// The outer error: the log is in doubt (a failed write or fsync) and every later commit fails until the store is opened
    /// anew. The first one is `applied: unknown`. The inner errors, all `applied: false`: [`ErrorCode::InvalidRows`],
    /// [`ErrorCode::TokenConflict`], [`ErrorCode::DiskFull`], [`ErrorCode::Overloaded`], [`ErrorCode::Unsupported`],
    /// [`ErrorCode::LimitExceeded`], and [`ErrorCode::Corruption`] if rows that must be looked up cannot be read.
    pub fn commit(&self, writes: Vec<Write>, now_micros: u64) -> Result<Vec<Result<Accepted>>> {
        let mut writer = lock(&self.writer);
        writer.check_sound()?;
        let keep_micros = u64::try_from(self.options.token_keep.as_micros()).unwrap_or(u64::MAX);
        lock(&self.tokens).forget_before(now_micros.saturating_sub(keep_micros));

        let refusal = self.refusal(&mut writer);
        let position = lock(&self.state).position;
        let mut frame = FrameBuilder::new();
        let mut group: Vec<Prepared> = Vec::new();
        let mut group_tokens: BTreeMap<String, (u64, TokenRecord)> = BTreeMap::new();
        let mut fates = Vec::with_capacity(writes.len());
        for write in writes {
            let fate = self.prepare(&writer, write, position, &group_tokens).and_then(|prepared| {
                let (prepared, mut accepted) = match prepared {
                    Ok(prepared) => prepared,
                    Err(fate) => return Ok(fate),
                };
                if let Some(refusal) = &refusal {
                    return Err(refusal.clone());
                }
                frame.push(&prepared.incoming)?;
                let place = group.len() as u64;
                accepted.position = position + 1 + place;
                for record in &prepared.incoming.tokens {
                    group_tokens.entry(record.token.clone()).or_insert_with(|| (place, record.clone()));
                }
                group.push(prepared);
                Ok(Fate::Logged(accepted))
            });
            fates.push(fate.unwrap_or_else(|error| Fate::Settled(Err(error))));
        }
        let full = if frame.is_empty() { None } else { self.log(&mut writer, frame, &group)? };
        if full.is_none() && !group.is_empty() {
            self.apply_or_fail(&mut writer, group)?;
        }
        Ok(fates
            .into_iter()
            .map(|fate| match (fate, &full) {
                (Fate::Settled(result), _) => result,
                (Fate::Logged(_) | Fate::Resent { .. }, Some(full)) => Err(full.clone()),
                (Fate::Logged(accepted), None) => Ok(accepted),
                (Fate::Resent { place, accepted }, None) => Ok(Accepted { position: position + 1 + place, ..accepted }),
            })
            .collect())
    }

    /// Why no write is taken now, if so.
    fn refusal(&self, writer: &mut Writer) -> Option<Error> {
        if writer.bytes_since_check.is_none_or(|bytes| bytes >= self.options.reserve_check_bytes) {
            // Looked at again before every commit until there is room.
            writer.bytes_since_check = None;
            match self.disk.free_bytes(&self.dir) {
                Ok(free) if free < self.options.disk_reserve_bytes => {
                    let reserve = self.options.disk_reserve_bytes;
                    let message =
                        format!("{free} bytes are free, less than the reserve of {reserve} (disk_reserve_bytes)");
                    return Some(Error::new(ErrorCode::DiskFull, message));
                }
                Ok(_) => writer.bytes_since_check = Some(0),
                Err(error) => return Some(Error::from(error).context("looking at the free space")),
            }
        }
        let state = lock(&self.state);
        if let Err(error) = state.check_whole() {
            return Some(error);
        }
        if state.memtable_bytes() > self.options.memtables_bytes_max {
            let message = "writes come faster than they can be flushed (memtables_bytes_max)";
            return Some(Error::new(ErrorCode::Overloaded, message).with_retry_after_ms(OVERLOAD_RETRY_MS));
        }
        let overdue = self.segments_overdue();
        if overdue >= self.options.segments_overdue_max {
            let message =
                format!("{overdue} segments wait to be merged: writes come faster than that (segments_overdue_max)");
            return Some(Error::new(ErrorCode::Overloaded, message).with_retry_after_ms(MERGE_RETRY_MS));
        }
        None
    }

    /// Checks one write. The inner `Err` is a write whose fate is clear without logging anything.
    fn prepare(
        &self,
        writer: &Writer,
        write: Write,
        position: u64,
        group_tokens: &BTreeMap<String, (u64, TokenRecord)>,
    ) -> Result<Result<(Prepared, Accepted), Fate>> {
        let (version, token) = (write.version.with_ordinal(0), write.token.clone());
        let is_delete = matches!(write.rows, Rows::Delete(_) | Rows::Part { deletes: true, .. });
        let is_replicated = matches!(write.rows, Rows::Replicated(..));
        let reserved = match &write.rows {
            Rows::Reserve { ballot, fingerprint } => Some((*ballot, *fingerprint)),
            _ => None,
        };
        let of_the_whole = match &write.rows {
            Rows::Part { fingerprint, .. } => Some(*fingerprint),
            _ => None,
        };
        let layout = self.layout();
        let forgotten = match &write.rows {
            Rows::Put(batch) if token.is_some() => forgotten_columns(&layout, batch)?,
            _ => Vec::new(),
        };
        let mut incoming = normalise(&layout, write)?;
        incoming = self.within_range(&layout, incoming, is_replicated)?;
        let rows = incoming.rows() as u64;
        let accepted = Accepted { position, version, rows, duplicate: false, pulled: false };

        if is_replicated || is_delete {
            // What has had its time is gone: peers may not know yet, and there is nothing left to delete.
            if let Some(kept) = incoming.kept_from(&layout, writer.takes_from)? {
                incoming = incoming.filter(&layout, &kept)?;
            }
        }
        if is_replicated {
            return self.prepare_replicated(writer, incoming, accepted);
        }
        if let Some((ballot, fingerprint)) = reserved {
            let token =
                token.ok_or_else(|| Error::new(ErrorCode::InvalidRequest, "a reservation needs a token to be for"))?;
            let record = TokenRecord { token, version, ballot, fingerprint, rows: 0 };
            if !lock(&self.tokens).is_kept(&record) {
                let message = "the version is older than what is remembered of tokens (token_keep)";
                return Err(Error::new(ErrorCode::ClockSkew, message));
            }
            self.check_tokens_room(&record.token)?;
            incoming.tokens.push(record);
            return Ok(Ok((
                Prepared { incoming, met: Vec::new(), pulled: false },
                Accepted { version: ballot, ..accepted },
            )));
        }
        if let Some(token) = token {
            // Of all that was sent: a resend is known even if the table has lost a column meanwhile.
            let fingerprint = match of_the_whole {
                Some(fingerprint) => fingerprint,
                None => {
                    let columns = [layout.with_ids(incoming.batch.columns()), forgotten].concat();
                    fingerprint(is_delete, &content_hashes(&columns, incoming.rows())?)
                }
            };
            let record = TokenRecord { token, version, ballot: Version::default(), fingerprint, rows };
            let in_group = group_tokens.get(&record.token);
            let known = match in_group {
                Some((_, known)) => Some(TokenEntry { record: known.clone(), position: 0, pulled: false }),
                None if self.has(Planted::TokensForgotten) => None,
                None => lock(&self.tokens).meet(&record.token, record.fingerprint),
            };
            if let Some(TokenEntry { record: known, position, pulled }) = known {
                if known.fingerprint != record.fingerprint && !self.has(Planted::MistakeOverlooked) {
                    let message = format!("the token '{}' was used for other rows", record.token);
                    return Err(Error::new(ErrorCode::TokenConflict, message));
                }
                let (version, rows) = (known.version, known.rows);
                let accepted = Accepted { position, version, rows, duplicate: true, pulled };
                return Ok(Err(match in_group {
                    Some((place, _)) => Fate::Resent { place: *place, accepted },
                    None => Fate::Settled(Ok(accepted)),
                }));
            }
            self.check_tokens_room(&record.token)?;
            incoming.tokens.push(record);
        } else if incoming.rows() == 0 {
            return Ok(Err(Fate::Settled(Ok(accepted))));
        }
        // A resend is what it was the first time, however long ago.
        if incoming.rows() > 0 && is_within(version, writer.fence) {
            return Err(too_late());
        }
        if let Some(time) = incoming.first_expired(&layout, writer.takes_from)? {
            return Err(expired("a row", time, writer.takes_from));
        }
        let met = self.locate(writer, &incoming.keys)?;
        Ok(Ok((Prepared { incoming, met, pulled: false }, accepted)))
    }

    /// Leaves out replicated rows that this store does not hold: a peer may not have been split yet. Of other writes there
    /// may be none.
    fn within_range(&self, layout: &Layout, incoming: Incoming, is_replicated: bool) -> Result<Incoming> {
        let incoming = match incoming.admitted_by(&self.range) {
            Some(admitted) if is_replicated => incoming.filter(layout, &admitted)?,
            Some(_) => return Err(Error::new(ErrorCode::Moved, "a row's key is not in the range of this partition")),
            None => incoming,
        };
        Ok(incoming)
    }

    /// Whether one more token may be remembered, if it is not known already.
    fn check_tokens_room(&self, token: &str) -> Result<()> {
        let mut tokens = lock(&self.tokens);
        if tokens.get(token).is_some() || tokens.has_room(self.options.tokens_max) {
            return Ok(());
        }
        let message = format!("{} tokens are remembered, which is the limit (tokens_max)", self.options.tokens_max);
        Err(Error::new(ErrorCode::Overloaded, message).with_retry_after_ms(OVERLOAD_RETRY_MS))
    }

    /// Keeps what is news. Rows that are known take no new position: two replicas that pull from each other must come to
    /// rest.
    fn prepare_replicated(
        &self,
        writer: &Writer,
        mut incoming: Incoming,
        mut accepted: Accepted,
    ) -> Result<Result<(Prepared, Accepted), Fate>> {
        let mut met = self.locate(writer, &incoming.keys)?;
        // There is nothing left for it to bury: see `purge`.
        let purged = lock(&self.state).purged;
        let is_purged = |row: usize| incoming.is_tombstone(row) && is_within(incoming.versions[row], purged);
        let is_news = |row: usize| match met[row] {
            Some(old) => self.beats(incoming.versions[row], old.version),
            None => !is_purged(row),
        };
        let news: BooleanArray = (0..incoming.rows()).map(|row| Some(is_news(row))).collect();
        {
            let tokens = lock(&self.tokens);
            incoming.tokens.retain(|record| tokens.is_news(record));
        }
        if news.values().has_false() {
            incoming = incoming.filter(&self.layout(), &news)?;
            met = news.values().set_indices().map(|row| met[row]).collect();
        }
        accepted.rows = incoming.rows() as u64;
        if accepted.rows == 0 && incoming.tokens.is_empty() {
            accepted.duplicate = true;
            return Ok(Err(Fate::Settled(Ok(accepted))));
        }
        Ok(Ok((Prepared { incoming, met, pulled: true }, accepted)))
    }

    /// Logs the group, and makes it durable if that was promised. `Some` if the disk had no room and nothing happened.
    fn log(&self, writer: &mut Writer, frame: FrameBuilder, group: &[Prepared]) -> Result<Option<Error>> {
        if writer.wal.current_bytes() >= self.options.wal_segment_bytes_max {
            match writer.wal.roll() {
                // Only tidiness: if there is no room for another file, this one goes on.
                Ok(()) | Err(LogFailure::Refused(_)) => {}
                Err(LogFailure::Doubt(error)) => return Err(self.give_up(writer, error)),
            }
        }
        // Whoever accepted a version for a token must never forget it: rows may stand under it elsewhere.
        let reserves = || group.iter().any(|prepared| prepared.incoming.tokens.iter().any(TokenRecord::is_reservation));
        let sync = (self.options.sync_commits || reserves()) && !self.has(Planted::SkipFsync);
        let ignores = sync && self.has(Planted::FailedSyncIgnored);
        let appended = writer.wal.append(frame, sync && !ignores);
        if ignores {
            let _ = writer.wal.pending_sync().run();
        }
        match appended {
            Ok(written) => {
                writer.bytes_since_check = writer.bytes_since_check.map(|bytes| bytes + written);
                Ok(None)
            }
            Err(LogFailure::Refused(error)) => {
                writer.bytes_since_check = None;
                Ok(Some(error))
            }
            Err(LogFailure::Doubt(error)) => Err(self.give_up(writer, error)),
        }
    }

    /// Applies what is in the log. If that breaks off, memory and log differ and the store is done for.
    pub(super) fn apply_or_fail(&self, writer: &mut Writer, group: Vec<Prepared>) -> Result<()> {
        writer.failed = Some(Error::internal("applying logged records broke off"));
        self.apply(writer, group).map_err(|error| {
            lock(&self.state).failed = Some(error.clone());
            error.with_applied(Applied::Unknown)
        })?;
        writer.failed = None;
        Ok(())
    }

    fn apply(&self, writer: &mut Writer, group: Vec<Prepared>) -> Result<()> {
        let (number, mut next_row, mut position, digest, layout) = {
            let state = lock(&self.state);
            let active = state.memtables.last().ok_or_else(|| Error::internal("there is no memtable"))?;
            (active.number, active.rows(), state.position, state.digest.clone(), state.layout.clone())
        };
        let mut tally = self.tally(&layout, digest.as_ref().clone());
        let active = SourceId::Memtable(number);
        let mut buried: BTreeMap<SourceId, Vec<u32>> = BTreeMap::new();
        let mut tombstones = Vec::new();
        let mut chunks = Vec::new();
        let mut bytes = 0;
        for Prepared { incoming, met, pulled } in group {
            position += 1;
            let first_row = next_row;
            for (row, key) in incoming.keys.iter().enumerate() {
                let (at, version) = (first_row + row as u32, incoming.versions[row]);
                let tombstone = incoming.is_tombstone(row);
                if tombstone {
                    tombstones.push(at);
                }
                // One way down the tree, which is most of what applying costs.
                let here = writer.index.entry(key.into());
                let old = match &here {
                    btree_map::Entry::Occupied(entry) => Some(entry.get().at(active)),
                    btree_map::Entry::Vacant(_) => met[row],
                };
                let entry = Entry { row: at, version, tombstone };
                if old.is_some_and(|old| !self.beats(version, old.version)) {
                    // It never was a winner, so no reader of changes will ask for it.
                    buried.entry(active).or_default().push(at);
                    continue;
                }
                here.insert_entry(entry);
                tally.add(key, version, tombstone);
                if let Some(old) = old {
                    tally.subtract(key, old.version, old.tombstone);
                    buried.entry(old.source).or_default().push(old.row);
                    writer.deaths.entry(old.source).or_default().push((position, old.row));
                }
            }
            let rows = incoming.rows();
            next_row = u32::try_from(rows)
                .ok()
                .and_then(|rows| next_row.checked_add(rows))
                .ok_or_else(|| Error::internal("a memtable of more than 2^32 rows"))?;
            bytes += memory_bytes(&incoming);
            let mut tokens = lock(&self.tokens);
            incoming.tokens.into_iter().for_each(|record| tokens.put(record, position, pulled));
            if rows > 0 {
                let positions = vec![position; rows];
                let (batch, versions) = (incoming.batch, incoming.versions);
                let (zones, digest) = (Mutex::default(), Mutex::default());
                chunks.push(Chunk { first_row, batch, versions, positions, zones, digest });
            }
        }

        let mut state = lock(&self.state);
        state.wal_bytes = writer.wal.bytes();
        state.position = position;
        state.digest = Arc::new(tally.finish());
        buried.iter().for_each(|(source, rows)| state.bury(*source, rows));
        let view = state.memtables.last_mut().ok_or_else(|| Error::internal("there is no memtable"))?;
        view.bytes += bytes;
        view.last_position = position;
        if !tombstones.is_empty() {
            Arc::make_mut(&mut view.tombstones).extend(tombstones);
        }
        chunks.into_iter().try_for_each(|chunk| view.push(chunk))
    }

    /// The present winner of each key.
    pub(super) fn locate(&self, writer: &Writer, keys: &EncodedKeys) -> Result<Vec<Option<Location>>> {
        let (active, segments, layout) = {
            let state = lock(&self.state);
            (state.memtables.last().map_or(0, |view| view.number), state.segments.clone(), state.layout.clone())
        };
        let newest = std::iter::once((active, &writer.index));
        let sealed = writer.sealed.iter().rev().map(|(number, index)| (*number, &**index));
        // Rows mostly come in the order of their keys: no index is searched for what comes behind its last one.
        let indexes: Vec<_> = newest
            .chain(sealed)
            .filter_map(|(number, index)| Some((SourceId::Memtable(number), index, index.last_key_value()?.0)))
            .collect();
        let in_memory = |key: &[u8]| {
            let mut near = indexes.iter().filter(|(_, _, last)| *key <= ***last);
            near.find_map(|(source, index, _)| Some(index.get(key)?.at(*source)))
        };
        let mut met: Vec<Option<Location>> = keys.iter().map(in_memory).collect();
        self.locate_in_segments(&layout, &segments, keys, &mut met)?;
        Ok(met)
    }

    /// The winner in segments of each key for which none is known yet.
    pub(super) fn locate_in_segments(
        &self,
        layout: &Layout,
        segments: &BTreeMap<SegmentId, SegmentView>,
        keys: &EncodedKeys,
        met: &mut [Option<Location>],
    ) -> Result<()> {
        // The rows of history are dead, all of them.
        let mut views = segments.values().filter(|view| !view.history && !self.has(Planted::ReplacedRowsStay));
        views.try_for_each(|view| view.find(layout, keys, met))
    }
}

fn memory_bytes(incoming: &Incoming) -> u64 {
    let columns = batch_bytes(&incoming.batch);
    (columns + incoming.keys.memory_bytes()) as u64 + incoming.rows() as u64 * ROW_OVERHEAD_BYTES
}
