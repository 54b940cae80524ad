//! Finite partitions: windows of the key, each made when the first of its rows comes (`partition_size_hint`). The narrowest hold one
//! key each (`PARTITION BY VALUE`).
//!
//! Keys outside all windows are in no partition. Windows never change: another width holds for those made from then on, which
//! are as wide as those around them leave room for.

use arrow_schema::{DataType, TimeUnit};
use shoal_kernel::{Column, Datum, KeyRange, PartitionId, TableId, TableSchema, Ttl};

use crate::command::{CatalogError, Command, Effect};
use crate::state::{Catalog, Partition, PartitionBounds, Partitioning, Table};
use crate::tables::{check_partition_count, invalid};

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// What the windows along a column are measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowUnit {
    /// Whole numbers.
    Number,
    /// Days, of dates.
    Day,
    /// Microseconds, of timestamps.
    Microsecond,
}

impl WindowUnit {
    /// Of a column's type; `None` if there are no windows along such a column.
    pub fn of(data_type: &DataType) -> Option<Self> {
        match data_type {
            DataType::Date32 => Some(Self::Day),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Some(Self::Microsecond),
            whole if whole.is_integer() => Some(Self::Number),
            _ => None,
        }
    }

    /// A time, in microseconds since 1970, as a value of such a column; `None` if it holds no times.
    fn value_at(self, micros: i64) -> Option<i64> {
        match self {
            Self::Number => None,
            Self::Day => Some(micros.div_euclid(MICROS_PER_DAY)),
            Self::Microsecond => Some(micros),
        }
    }
}

impl Table {
    /// The column that windows go along: the first of the partition key.
    pub fn window_column(&self) -> Option<&Column> {
        let place = self.schema.index_of(*self.partitioning.columns().first()?)?;
        self.schema.columns.get(place)
    }

    /// Whether partitions come with their rows: then keys may be in none.
    pub fn has_windows(&self) -> bool {
        self.options.partition_size_hint.is_some() || matches!(self.partitioning, Partitioning::Value { .. })
    }

    /// The window, with the width of today, in which an encoded partition key lies. `None` of a table without windows.
    pub fn window_of(&self, encoded: &[u8]) -> Option<KeyRange> {
        if let Partitioning::Value { .. } = self.partitioning {
            // Nothing lies between a key and the same with a zero behind it.
            return Some(KeyRange { start: encoded.to_vec(), end: Some([encoded, &[0]].concat()) });
        }
        let width = i128::from(self.options.partition_size_hint.filter(|width| *width > 0)?);
        let unsigned = self.window_column()?.data_type.is_unsigned_integer();
        let body = u64::from_be_bytes(encoded.get(1..9)?.try_into().ok()?);
        // As `kernel::key` encodes whole numbers: the sign bit of signed ones is flipped.
        let value = if unsigned { i128::from(body) } else { i128::from((body ^ (1 << 63)) as i64) };
        let start = value.div_euclid(width) * width;
        let least = if unsigned { 0 } else { i128::from(i64::MIN) };
        Some(KeyRange { start: encode(start.max(least), unsigned)?, end: encode(start + width, unsigned) })
    }
}

impl Table {
    /// Whether all rows of a window have had their time.
    pub fn has_passed(&self, window: &KeyRange) -> bool {
        let by_window = |column| self.partitioning.columns().first() == Some(&column);
        self.cutoff
            .filter(|cutoff| self.has_windows() && by_window(cutoff.column))
            .is_some_and(|cutoff| window.end.as_ref().is_some_and(|end| *end <= Datum::Int(cutoff.micros).encode()))
    }
}

/// `None` if the number is above all that the column can hold.
fn encode(value: i128, unsigned: bool) -> Option<Vec<u8>> {
    Some(match unsigned {
        true => Datum::UInt(u64::try_from(value).ok()?).encode(),
        false => Datum::Int(i64::try_from(value).ok()?).encode(),
    })
}

impl Catalog {
    /// Makes partitions of what no partition holds yet of the windows.
    pub(crate) fn add_windows(&mut self, id: TableId, windows: Vec<KeyRange>) -> Result<Vec<Effect>, CatalogError> {
        let table = self.tables.get(&id).ok_or(CatalogError::TableGone(id))?;
        if !table.has_windows() {
            return Err(invalid(format!("the partitions of '{}' are not windows", table.name)));
        }
        if windows.iter().any(|window| window.end.as_ref().is_some_and(|end| *end <= window.start)) {
            return Err(invalid("a window ends before it starts"));
        }
        let (factor, wanted) = (table.options.replication_factor, self.missing(table, &windows));
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        check_partition_count((table.partitions.len() + wanted.len()) as u64).map_err(|error| {
            let why = match table.partitioning {
                Partitioning::Value { .. } => "its partition key has too many values",
                _ => "its windows are too narrow, or too many are kept",
            };
            invalid(format!("{error}; '{}' has more: {why}", table.name))
        })?;
        let wanted = wanted.into_iter().map(PartitionBounds::Range).collect();
        let mut effects = vec![Effect::Table(id)];
        let made = self.place_partitions(id, wanted, factor, &mut effects)?;
        self.set_partitions(id, |ids| ids.extend(made));
        Ok(effects)
    }

    /// What no partition of the table holds of windows whose rows have not all had their time.
    pub fn missing(&self, table: &Table, windows: &[KeyRange]) -> Vec<KeyRange> {
        let (mut taken, mut missing) = (self.ranges(table), Vec::new());
        for window in windows.iter().filter(|window| !table.has_passed(window)) {
            for part in free_parts(window, &taken) {
                let place = taken.partition_point(|range| range.start < part.start);
                taken.insert(place, part.clone());
                missing.push(part);
            }
        }
        missing
    }

    /// Drops the windows of which every row has had its time.
    pub(crate) fn drop_windows(&mut self, id: TableId) -> Result<Vec<Effect>, CatalogError> {
        let table = self.tables.get(&id).ok_or(CatalogError::TableGone(id))?;
        let passed = self.passed_windows(table);
        if passed.is_empty() {
            return Ok(Vec::new());
        }
        let mut effects = vec![Effect::Table(id)];
        passed.iter().for_each(|partition| self.drop_partition(*partition, &mut effects));
        self.set_partitions(id, |ids| ids.retain(|partition| !passed.contains(partition)));
        Ok(effects)
    }

    /// The tables that have windows of which every row has had its time, but for the oldest.
    pub fn wanted_windows(&self) -> Vec<Command> {
        let passed = self.tables.values().filter(|table| !self.passed_windows(table).is_empty());
        passed.map(|table| Command::DropWindows { table: table.id }).collect()
    }

    /// The window behind that of the present, at that time by somebody's clock, if there is a window of the present and none behind
    /// it. For rows of the present: made ahead, they go on coming while the catalog has no quorum.
    pub fn window_ahead(&self, table: &Table, clock_micros: u64) -> Option<KeyRange> {
        let now = i64::try_from(clock_micros).unwrap_or(i64::MAX);
        let now = WindowUnit::of(&table.window_column()?.data_type)?.value_at(now)?;
        let Some(PartitionBounds::Range(KeyRange { end: Some(next), .. })) =
            self.partition_for(table, &Datum::Int(now).encode()).map(|partition| &partition.bounds)
        else {
            return None;
        };
        match self.partition_for(table, next) {
            Some(_) => None,
            None => table.window_of(next),
        }
    }

    /// The windows below the cut-off, each as a whole, whether it was split or not: what was sent once is cut as it was then. What the
    /// oldest begins with is not among them: it keeps the reservations of idempotency keys.
    fn passed_windows(&self, table: &Table) -> Vec<PartitionId> {
        let oldest = table.partitions.iter().map(|id| self.root_of(*id)).min();
        let first_of_oldest = oldest.and_then(|id| self.partition_for(table, &self.range_of(id)?.start));
        let kept = first_of_oldest.map(|partition| partition.id);
        let is_passed = |partition: &&Partition| {
            let window = self.range_of(partition.root);
            window.is_some_and(|window| table.has_passed(window)) && Some(partition.id) != kept
        };
        self.partitions_of(table).filter(is_passed).map(|partition| partition.id).collect()
    }

    /// The ranges of the table's partitions, ascending.
    fn ranges(&self, table: &Table) -> Vec<KeyRange> {
        let range = |partition: &Partition| match &partition.bounds {
            PartitionBounds::Range(range) => Some(range.clone()),
            PartitionBounds::Bucket(_) => None,
        };
        self.partitions_of(table).filter_map(range).collect()
    }

    /// Changes the list of a table's partitions, and brings it in order.
    pub(crate) fn set_partitions(&mut self, id: TableId, change: impl FnOnce(&mut Vec<PartitionId>)) {
        let (partitions, Some(table)) = (&self.partitions, self.tables.get_mut(&id)) else { return };
        change(&mut table.partitions);
        let start = |id: &PartitionId| match partitions.get(id).map(|partition| &partition.bounds) {
            Some(PartitionBounds::Range(range)) => Some(range.start.clone()),
            _ => None,
        };
        table.partitions.sort_by_cached_key(start);
    }
}

/// What is left of a window beside ranges that ascend and do not overlap.
fn free_parts(window: &KeyRange, taken: &[KeyRange]) -> Vec<KeyRange> {
    let (mut parts, mut start) = (Vec::new(), window.start.clone());
    for range in taken.iter().filter(|range| range.overlaps(window)) {
        if start < range.start {
            parts.push(KeyRange { start, end: Some(range.start.clone()) });
        }
        let Some(end) = &range.end else { return parts };
        start = end.clone();
    }
    if window.end.as_ref().is_none_or(|end| start < *end) {
        parts.push(KeyRange { start, end: window.end.clone() });
    }
    parts
}

/// Windows that a table has beside those whose rows are kept: that of the present, the one ahead of it, and the oldest, which stays.
const WINDOWS_BESIDE: u64 = 3;

/// How many windows of that width, in microseconds, a table has whose rows are kept for that time.
pub fn windows_kept(ttl: &Ttl, width: u64) -> u64 {
    // The cut-off moves by steps.
    ttl.micros.saturating_add(ttl.step_micros()).div_ceil(width.max(1)).saturating_add(WINDOWS_BESIDE)
}

/// Checks whether there can be windows of that width.
pub(crate) fn check_windows(width: u64, partitioning: &Partitioning, schema: &TableSchema) -> Result<(), CatalogError> {
    if width == 0 {
        return Err(invalid("partition_size_hint must be greater than zero"));
    }
    let Partitioning::Range { columns } = partitioning else {
        return Err(invalid("partition_size_hint is for partitions by range, and these are not"));
    };
    let place = columns.first().and_then(|first| schema.index_of(*first));
    match place.and_then(|place| WindowUnit::of(&schema.columns[place].data_type)) {
        Some(_) => Ok(()),
        None => Err(invalid(
            "partition_size_hint needs a partition key that begins with a whole number, a date or a timestamp",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: i64, end: i64) -> KeyRange {
        KeyRange { start: Datum::Int(start).encode(), end: Some(Datum::Int(end).encode()) }
    }

    #[test]
    fn a_window_takes_what_others_leave() {
        let taken = [range(10, 20), range(20, 30), range(40, 50)];
        for (window, free) in [
            (range(0, 10), vec![range(0, 10)]),
            (range(0, 60), vec![range(0, 10), range(30, 40), range(50, 60)]),
            (range(15, 35), vec![range(30, 35)]),
            (range(20, 30), vec![]),
            (range(45, 70), vec![range(50, 70)]),
        ] {
            assert_eq!(free_parts(&window, &taken), free, "{window:?}");
        }
        let above = KeyRange { start: Datum::Int(45).encode(), end: None };
        assert_eq!(free_parts(&above, &taken), [KeyRange { start: Datum::Int(50).encode(), end: None }]);
        assert_eq!(free_parts(&range(0, 99), std::slice::from_ref(&above)), [range(0, 45)]);
    }
}
