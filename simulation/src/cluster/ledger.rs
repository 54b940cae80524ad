//! What every replica has accepted, by the positions of its accept logs: the books against which answers are held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use shoal_actors::service::{Moment, Observer};
use shoal_catalog::Catalog;
use shoal_kernel::level::quorum;
use shoal_kernel::schema::{TOMBSTONE_COLUMN, TS_COLUMN, VERSION_COLUMN};
use shoal_kernel::{Datum, Epoch, KeyRange, LogId, NodeId, PartitionId};
use shoal_membership::CatalogObserver;
use shoal_storage::{Rows, Write};

use super::states::States;

/// A row of the tables that are written under faults: the key, or the id of an event, and the value; none of a key that was
/// deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    key: i64,
    version: u128,
    value: Option<i64>,
    /// The time of an event, in microseconds since 1970.
    at: Option<i64>,
}

impl Row {
    /// As it is encoded: events are spread by their time.
    fn partition_key(&self) -> Vec<u8> {
        Datum::Int(self.at.unwrap_or(self.key)).encode()
    }
}

/// What a replica shows of a key or an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) value: i64,
    /// The time of an event, in microseconds since 1970.
    pub(crate) at: Option<i64>,
}

/// A life of a replica's accept log.
#[derive(Debug)]
struct Log {
    /// The log before it, which may be that of a partition that was split, and the position at which it goes on there.
    goes_on: Option<(Replica, LogId, u64)>,
    /// Accepted rows, by position.
    entries: Vec<(u64, Vec<Row>)>,
    /// The last position of which everything is known.
    known: u64,
    /// It has been told how the replica stood with it.
    stood: bool,
    /// The first position at which the replica had not got what it must hold, and the first one at which it had.
    lacking: Vec<(u64, Option<u64>)>,
}

/// A group that is being written.
#[derive(Debug)]
struct Group {
    after: u64,
    writes: Vec<Vec<Row>>,
}

type Replica = (PartitionId, NodeId);

#[derive(Debug, Default)]
struct Books {
    logs: BTreeMap<(Replica, LogId), Log>,
    /// The log that each replica has now.
    current: BTreeMap<Replica, LogId>,
    /// Where logs go on that begin with what a peer held, if they ever do.
    copied: BTreeMap<(Replica, LogId), (Replica, LogId, u64)>,
    under_way: BTreeMap<Replica, Group>,
    /// The keys of each partition.
    ranges: BTreeMap<PartitionId, KeyRange>,
    /// Replicas that were opened with less of their log than they had shown.
    shortened: BTreeSet<String>,
    /// The epoch that each replica has sealed.
    sealed: BTreeMap<Replica, Epoch>,
    /// Acknowledgements of epochs that had been sealed by a later one.
    late: BTreeSet<String>,
    /// Replicas that have left with rows that no majority of the voters had.
    deserted: BTreeSet<String>,
    catalog: States,
}

/// The books of a run, shared by its nodes.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Books>);

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What some replicas, each of another partition, show at some moment, by key; nothing if it is not known for one of them
    /// what it had accepted.
    pub(crate) fn contents(&self, seen: &[Moment]) -> Option<BTreeMap<i64, Shown>> {
        let books = self.books();
        let mut contents = BTreeMap::new();
        for moment in seen {
            let kept = |row: &Row| moment.cutoff_micros.is_none_or(|cutoff| row.at.is_none_or(|at| at >= cutoff));
            let rows = books.newest(moment)?.filter(kept);
            contents.extend(rows.filter_map(|row| Some((row.key, Shown { value: row.value?, at: row.at }))));
        }
        Some(contents)
    }

    /// The newest version of each key, deletions too, that some replicas had accepted; nothing as above.
    pub(crate) fn versions(&self, seen: &[Moment]) -> Option<BTreeMap<i64, u128>> {
        let books = self.books();
        let mut versions = BTreeMap::new();
        for moment in seen {
            versions.extend(books.newest(moment)?.map(|row| (row.key, row.version)));
        }
        Some(versions)
    }

    /// Where partitions do not lie side by side over all keys, the first of which may be left out; nothing if they do.
    pub(crate) fn gap(&self, seen: &[PartitionId], first_may_be_missing: bool) -> Option<String> {
        let books = self.books();
        let mut ranges: Vec<&KeyRange> = seen.iter().filter_map(|id| books.ranges.get(id)).collect();
        ranges.sort_by(|one, other| one.start.cmp(&other.start));
        let first = ranges.first().filter(|_| first_may_be_missing).map(|range| range.start.clone());
        let mut end = Some(first.unwrap_or_default());
        for range in ranges {
            if end.as_ref() != Some(&range.start) {
                return Some(format!("{range:?} does not begin where the one before ends"));
            }
            end.clone_from(&range.end);
        }
        end.map(|_| "and nobody was asked for the last keys".to_owned())
    }

    /// Whether a replica had got, at some moment, what it must hold to answer anybody.
    pub(crate) fn was_whole(&self, moment: &Moment) -> bool {
        let books = self.books();
        let Some(log) = books.logs.get(&((moment.partition, moment.node), moment.log_id)) else { return true };
        let at = moment.position;
        let lacked = |(first, whole): &(u64, Option<u64>)| at >= *first && whole.is_none_or(|whole| at < whole);
        !log.lacking.iter().any(lacked)
    }

    /// Acknowledgements that should not have counted, as the replica that gave them had sealed a later epoch.
    pub(crate) fn late(&self) -> Vec<String> {
        self.books().late.iter().cloned().collect()
    }

    /// Replicas that have left with rows that no majority of the voters had.
    pub(crate) fn deserted(&self) -> Vec<String> {
        self.books().deserted.iter().cloned().collect()
    }

    /// What became of the catalog.
    pub(crate) fn catalog<T>(&self, look: impl FnOnce(&States) -> T) -> T {
        look(&self.books().catalog)
    }

    /// Logs of which something was missing that had been accepted, and no new log begun.
    pub(crate) fn shortened(&self) -> Vec<String> {
        self.books().shortened.iter().cloned().collect()
    }
}

impl Books {
    /// The newest row of each key of a partition that a replica had accepted.
    fn newest(&self, moment: &Moment) -> Option<impl Iterator<Item = Row> + use<>> {
        let mut newest = BTreeMap::new();
        self.gather((moment.partition, moment.node), moment.log_id, moment.position, &mut newest)?;
        // Of a partition that was split, the log holds rows of all that came of it.
        let range = self.ranges.get(&moment.partition)?.clone();
        Some(newest.into_values().filter(move |row: &Row| range.contains(&row.partition_key())))
    }

    /// Where a log that nobody has heard of goes on if it begins with a copy. A node that went down before it had opened the copy may have
    /// begun its log anew; if it had as much without it, nobody knows which of the two it is.
    fn begun_as_copy(
        &self,
        of: Replica,
        log: LogId,
        there: u64,
        before: Option<LogId>,
    ) -> Option<(Replica, LogId, u64)> {
        if let Some(lent) = self.copied.get(&(of, log)) {
            return Some(*lent);
        }
        let known = before.and_then(|before| self.logs.get(&(of, before))).map_or(0, |log| log.known);
        let begun_anew = |((copied, log), lent): (&(Replica, LogId), &(Replica, LogId, u64))| {
            let is_that = *copied == of && there > 0 && lent.2 == there;
            // Nobody has heard of the log that was never opened.
            is_that.then_some(if known < there { *lent } else { (of, *log, there) })
        };
        self.copied.iter().find_map(begun_anew)
    }

    /// Whether a replica has accepted these versions, or later ones, of these keys; also if that is not known.
    fn holds(&self, replica: Replica, versions: &BTreeMap<i64, u128>) -> bool {
        let current =
            self.current.get(&replica).and_then(|log_id| Some((*log_id, self.logs.get(&(replica, *log_id))?)));
        let Some((log_id, log)) = current else { return true };
        // It may have been emptied a moment ago.
        if log.lacking.last().is_some_and(|(_, whole)| whole.is_none()) {
            return true;
        }
        let (partition, node) = replica;
        let now = Moment { partition, node, log_id, position: log.known, cutoff_micros: None };
        let Some(newest) = self.newest(&now) else { return true };
        let newest: BTreeMap<i64, u128> = newest.map(|row| (row.key, row.version)).collect();
        versions.iter().all(|(key, version)| newest.get(key).is_some_and(|newest| newest >= version))
    }

    /// Adds what a log held at a position.
    fn gather(&self, replica: Replica, log: LogId, position: u64, newest: &mut BTreeMap<i64, Row>) -> Option<()> {
        let Log { goes_on, entries, known, .. } = self.logs.get(&(replica, log))?;
        if position > *known {
            return None;
        }
        if let Some((replica, before, at)) = goes_on {
            self.gather(*replica, *before, *at, newest)?;
        }
        for row in entries.iter().take_while(|(at, _)| *at <= position).flat_map(|(_, rows)| rows) {
            let shown = newest.entry(row.key).or_insert(*row);
            if row.version > shown.version {
                *shown = *row;
            }
        }
        Some(())
    }
}

impl CatalogObserver for Ledger {
    fn applied(&self, node: NodeId, catalog: &Catalog) {
        self.books().catalog.note(node, catalog);
    }
}

impl Observer for Ledger {
    fn opened(&self, at: Moment, ancestors: &[PartitionId], range: &KeyRange) {
        let mut books = self.books();
        let replica = (at.partition, at.node);
        books.ranges.entry(at.partition).or_insert_with(|| range.clone());
        let before = books.current.insert(replica, at.log_id);
        let inherited = ancestors.iter().map(|ancestor| (*ancestor, at.node)).find_map(|ancestor| {
            let log = books.current.get(&ancestor)?;
            Some((ancestor, *log))
        });
        let group = books.under_way.remove(&replica);
        // Of a group that was under way when the node went down, the beginning may have been written.
        if let Some((group, log)) = group.zip(before.and_then(|before| books.logs.get_mut(&(replica, before))))
            && let ([rows], true) = (group.writes.as_slice(), log.known == group.after)
            && at.position == group.after + 1
        {
            log.entries.push((at.position, rows.clone()));
            log.known = at.position;
        }
        let (id, node, there, log_id) = (at.partition, at.node, at.position, at.log_id);
        match books.logs.get(&(replica, log_id)).map(|log| log.known) {
            None => {
                let last = before.map(|before| (replica, before)).or(inherited);
                let goes_on = last.filter(|_| there > 0).map(|(replica, before)| (replica, before, there));
                let goes_on = books.begun_as_copy(replica, log_id, there, before).or(goes_on);
                books.logs.insert(
                    (replica, log_id),
                    Log { goes_on, entries: Vec::new(), known: there, stood: false, lacking: Vec::new() },
                );
            }
            Some(_) if before != Some(log_id) => {
                books
                    .shortened
                    .insert(format!("{id} on {node} was opened with {log_id}, after which it had begun another log"));
            }
            Some(known) if there < known => {
                let what = format!("{id} on {node} was opened at {there} of {log_id}, of which it had shown {known}");
                books.shortened.insert(what);
            }
            Some(_) => {}
        }
        // Whatever else was about to be copied has come to nothing.
        books.copied.retain(|(copied, _), _| *copied != replica);
    }

    fn copied(&self, at: Moment, from: Moment) {
        let lent = ((from.partition, from.node), from.log_id, from.position);
        self.books().copied.insert(((at.partition, at.node), at.log_id), lent);
    }

    fn stands(&self, at: Moment, sealed: Epoch, whole: bool) {
        let mut books = self.books();
        let replica = (at.partition, at.node);
        books.sealed.insert(replica, sealed);
        let Some(log) = books.logs.get_mut(&(replica, at.log_id)) else { return };
        match (log.lacking.last_mut(), whole) {
            (Some((_, lacked @ None)), true) => *lacked = Some(at.position),
            // At the position where it was whole before, it may have been read.
            (None | Some((_, Some(_))), false) => log.lacking.push((at.position + u64::from(log.stood), None)),
            _ => {}
        }
        log.stood = true;
    }

    fn acknowledged(&self, at: Moment, epoch: Epoch) {
        let mut books = self.books();
        let (partition, node) = (at.partition, at.node);
        if let Some(sealed) = books.sealed.get(&(partition, node)).copied().filter(|sealed| epoch < *sealed) {
            let what = format!("{partition} on {node} acknowledged a write of {epoch}, and had sealed {sealed}");
            books.late.insert(what);
        }
    }

    fn handed_over(&self, at: Moment, voters: &[NodeId]) {
        let mut books = self.books();
        // Tombstones are purged, and events have their time.
        let stays = |row: &Row| row.at.is_none() && row.value.is_some();
        let Some(rows) = books.newest(&at) else { return };
        let versions: BTreeMap<i64, u128> = rows.filter(stays).map(|row| (row.key, row.version)).collect();
        let holding = voters.iter().filter(|voter| books.holds((at.partition, **voter), &versions)).count();
        if holding < quorum(voters.len()) {
            let (partition, node, of) = (at.partition, at.node, voters.len());
            let what = format!("{partition} on {node} left when {holding} of {of} voters had all of its rows");
            books.deserted.insert(what);
        }
    }

    fn writing(&self, at: Moment, group: &[Write]) {
        let writes = group.iter().map(rows_of).collect();
        self.books().under_way.insert((at.partition, at.node), Group { after: at.position, writes });
    }

    fn written(&self, at: Moment, positions: &[Option<u64>]) {
        let mut books = self.books();
        let replica = (at.partition, at.node);
        let Some(group) = books.under_way.remove(&replica) else { return };
        let Some(log) = books.logs.get_mut(&(replica, at.log_id)) else { return };
        // Else a group before it was lost sight of, and so is what comes behind it.
        if log.known != group.after {
            return;
        }
        for (rows, position) in group.writes.into_iter().zip(positions) {
            if let Some(position) = position {
                log.entries.push((*position, rows));
                log.known = *position;
            }
        }
    }
}

/// The rows of a write to one of the tables of events and upserts; none of others.
fn rows_of(write: &Write) -> Vec<Row> {
    let version = |row: usize| write.version.with_ordinal(u32::try_from(row).unwrap_or(u32::MAX)).0;
    match &write.rows {
        Rows::Put(batch) => rows(batch, version, |_| false),
        Rows::Delete(batch) => rows(batch, version, |_| true),
        Rows::Part { deletes, rows: batch, ordinals, .. } => {
            let version = |row: usize| write.version.with_ordinal(ordinals.get(row).copied().unwrap_or(u32::MAX)).0;
            rows(batch, version, |_| *deletes)
        }
        Rows::Reserve { .. } => Vec::new(),
        Rows::Replicated(batch, _) => {
            let versions = batch.column_by_name(VERSION_COLUMN).and_then(|column| column.as_fixed_size_binary_opt());
            let tombstones = batch.column_by_name(TOMBSTONE_COLUMN).and_then(|column| column.as_boolean_opt());
            let (Some(versions), Some(tombstones)) = (versions, tombstones) else { return Vec::new() };
            let version = |row| versions.value(row).try_into().map_or(0, u128::from_be_bytes);
            rows(batch, version, |row| tombstones.value(row))
        }
    }
}

fn rows(batch: &RecordBatch, version: impl Fn(usize) -> u128, deleted: impl Fn(usize) -> bool) -> Vec<Row> {
    let numbers = |names: [&str; 2]| {
        let column = names.iter().find_map(|name| batch.column_by_name(name))?;
        column.as_primitive_opt::<Int64Type>()
    };
    let Some(keys) = numbers(["k", "id"]) else { return Vec::new() };
    let values = numbers(["v", "amount"]);
    let value = |row: usize| values.filter(|_| !deleted(row)).map(|values| values.value(row));
    let times =
        batch.column_by_name(TS_COLUMN).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    let at = |row: usize| times.map(|times| times.value(row));
    let row = |row| Row { key: keys.value(row), version: version(row), value: value(row), at: at(row) };
    (0..batch.num_rows()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array};
    use shoal_kernel::{Hlc, Version};

    use super::*;

    impl Ledger {
        fn opens(&self, at: Moment) {
            self.opened(at, &[], &KeyRange::all());
        }
    }

    fn at(log: u64, position: u64) -> Moment {
        Moment { partition: PartitionId(1), node: NodeId(1), log_id: LogId(log), position, cutoff_micros: None }
    }

    fn write(time: u64, rows: &[(i64, i64)]) -> Write {
        let column =
            |pick: fn(&(i64, i64)) -> i64| -> ArrayRef { Arc::new(rows.iter().map(pick).collect::<Int64Array>()) };
        let batch = RecordBatch::try_from_iter([("k", column(|row| row.0)), ("v", column(|row| row.1))]).unwrap();
        Write { version: Version::new(Hlc::from_micros(time), NodeId(1), 0), token: None, rows: Rows::Put(batch) }
    }

    #[test]
    fn a_moment_shows_what_was_accepted_up_to_it() {
        let ledger = Ledger::default();
        ledger.opens(at(1, 0));
        ledger.writing(at(1, 0), &[write(5, &[(1, 10), (2, 20), (1, 11)]), write(3, &[(1, 9), (3, 30)])]);
        ledger.written(at(1, 0), &[Some(1), Some(2)]);
        let shown = |moment| {
            ledger.contents(&[moment]).map(|rows| rows.iter().map(|(key, row)| (*key, row.value)).collect::<Vec<_>>())
        };
        assert_eq!(shown(at(1, 0)), Some(vec![]));
        assert_eq!(shown(at(1, 1)), Some(vec![(1, 11), (2, 20)]), "the last row of a write counts");
        assert_eq!(shown(at(1, 2)), Some(vec![(1, 11), (2, 20), (3, 30)]), "the newest version wins, not the last");
        assert_eq!(shown(at(1, 3)), None);
        assert_eq!(shown(at(2, 1)), None);

        // The node goes down with a group half written, and comes back without it, in a new log.
        ledger.writing(at(1, 2), &[write(7, &[(1, 12)]), write(8, &[(1, 13)])]);
        ledger.opens(at(2, 1));
        assert_eq!(shown(at(2, 1)), Some(vec![(1, 11), (2, 20)]));
        ledger.writing(at(2, 1), &[write(9, &[(4, 40)]), write(9, &[(4, 40)])]);
        ledger.written(at(2, 1), &[Some(2), None]);
        assert_eq!(shown(at(2, 2)), Some(vec![(1, 11), (2, 20), (4, 40)]));
        assert!(ledger.shortened().is_empty());
        ledger.opens(at(2, 1));
        assert_eq!(ledger.shortened().len(), 1);
        ledger.opens(at(3, 0));
        assert_eq!(shown(at(3, 0)), Some(vec![]), "emptied");
        ledger.opens(at(2, 1));
        assert_eq!(ledger.shortened().len(), 2, "a log that was given up has come back");
    }

    #[test]
    fn a_copy_may_begin_its_log_anew_before_it_is_opened() {
        let ledger = Ledger::default();
        let of = |node, log, position| Moment { node: NodeId(node), ..at(log, position) };
        ledger.opens(of(1, 1, 0));
        ledger.writing(of(1, 1, 0), &[write(5, &[(1, 10)])]);
        ledger.written(of(1, 1, 0), &[Some(1)]);
        let shown = |moment| ledger.contents(&[moment]).map(|rows| rows.len());

        ledger.copied(of(2, 2, 1), of(1, 1, 1));
        ledger.opens(of(2, 3, 1));
        assert_eq!(shown(of(2, 3, 1)), Some(1), "the node went down in between");
        ledger.copied(of(3, 4, 1), of(1, 1, 1));
        ledger.opens(of(3, 5, 0));
        assert_eq!(shown(of(3, 5, 0)), Some(0), "nothing came of it");
        ledger.copied(of(2, 6, 1), of(1, 1, 1));
        ledger.opens(of(2, 7, 1));
        assert_eq!(shown(of(2, 7, 1)), None, "the copy, or what was there before");
    }

    #[test]
    fn a_single_write_that_was_under_way_is_there_or_not() {
        for survived in [false, true] {
            let ledger = Ledger::default();
            ledger.opens(at(1, 0));
            ledger.writing(at(1, 0), &[write(5, &[(1, 10)])]);
            ledger.opens(at(1, u64::from(survived)));
            let shown = ledger.contents(&[at(1, u64::from(survived))]).unwrap();
            assert_eq!(shown.len(), usize::from(survived));
        }
    }

    #[test]
    fn what_was_filled_by_files_shows_what_its_peer_held() {
        let ledger = Ledger::default();
        ledger.opens(at(1, 0));
        ledger.writing(at(1, 0), &[write(5, &[(1, 10)]), write(6, &[(2, 30)])]);
        ledger.written(at(1, 0), &[Some(1), Some(2)]);
        let filled = |log, position| Moment { node: NodeId(2), ..at(log, position) };
        // The replica had another log before, and a copy of which nothing has come.
        ledger.opens(filled(2, 0));
        ledger.writing(filled(2, 0), &[write(4, &[(9, 90)])]);
        ledger.written(filled(2, 0), &[Some(1)]);
        ledger.copied(filled(3, 2), at(1, 2));
        ledger.copied(filled(4, 1), at(1, 1));
        ledger.opens(filled(4, 1));
        let shown = |moment| ledger.contents(&[moment]).map(|rows| rows.into_keys().collect::<Vec<_>>());
        assert_eq!(shown(filled(4, 1)), Some(vec![1]));
        ledger.writing(filled(4, 1), &[write(7, &[(3, 40)])]);
        ledger.written(filled(4, 1), &[Some(2)]);
        assert_eq!(shown(filled(4, 2)), Some(vec![1, 3]));
        assert!(ledger.shortened().is_empty());
    }

    #[test]
    fn what_came_of_a_split_shows_its_keys_of_what_was_before() {
        let ledger = Ledger::default();
        ledger.opens(at(1, 0));
        ledger.writing(at(1, 0), &[write(5, &[(1, 10), (50, 20)]), write(6, &[(2, 30)])]);
        ledger.written(at(1, 0), &[Some(1), Some(2)]);
        let half = |partition, position| Moment { partition: PartitionId(partition), ..at(1, position) };
        let middle = Datum::Int(40).encode();
        let ranges = [(2, vec![], Some(middle.clone())), (3, middle, None)];
        for (partition, start, end) in ranges {
            ledger.opened(half(partition, 2), &[PartitionId(1)], &KeyRange { start, end });
        }
        let shown = |moment| ledger.contents(&[moment]).map(|rows| rows.into_keys().collect::<Vec<_>>());
        assert_eq!((shown(half(2, 2)), shown(half(3, 2))), (Some(vec![1, 2]), Some(vec![50])));
        // Filled by its peers, one that began empty shows nothing of that.
        ledger.opened(Moment { node: NodeId(2), ..half(2, 0) }, &[PartitionId(1)], &KeyRange::all());
        assert_eq!(shown(Moment { node: NodeId(2), ..half(2, 0) }), Some(vec![]));
        ledger.writing(half(2, 2), &[write(9, &[(2, 31)])]);
        ledger.written(half(2, 2), &[Some(3)]);
        assert_eq!(ledger.contents(&[half(2, 3)]).unwrap()[&2].value, 31);
    }
}
