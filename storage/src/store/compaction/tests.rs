//! Events and their windows.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{Column, ColumnId, Datum, Hlc, LogId, NodeId, TableKind, TableSchema, Version};

use super::super::{Store, lock};
use crate::options::StoreOptions;
use crate::rows::{Rows, Write};

const HOUR: i64 = 3_600_000_000;
/// Some day of 2026, at a window's beginning.
const START: i64 = 493_440 * HOUR;
const ROWS_PER_HOUR: i64 = 10_000;

fn column(id: u32, name: &str, data_type: DataType) -> Column {
    Column { id: ColumnId(id), name: name.into(), data_type, nullable: false }
}

/// `_ts, _dedup, n`, or an upsert table with the key `(_ts, n)`.
fn schema(upserts: bool) -> Arc<TableSchema> {
    let kind = match upserts {
        true => TableKind::Upsert { primary_key: vec![ColumnId(1), ColumnId(3)] },
        false => TableKind::Event,
    };
    let columns = vec![
        column(1, "_ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        column(2, "_dedup", DataType::Utf8),
        column(3, "n", DataType::Int64),
    ];
    Arc::new(TableSchema::new(columns, kind))
}

struct World {
    store: Arc<Store>,
    rows: u64,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(upserts: bool, fan_in: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = env(&RealOptions::default()).unwrap().disk();
        let options = StoreOptions { disk_reserve_bytes: 0, compaction_fan_in: fan_in, ..StoreOptions::default() };
        let (store, _) = Store::open(disk, dir.path(), schema(upserts), options, LogId(1), 9).unwrap();
        Self { store, rows: 0, _dir: dir }
    }

    /// Commits and flushes rows with these times.
    fn write(&mut self, times: impl Iterator<Item = i64>) {
        let times: Vec<i64> = times.collect();
        let first = self.rows as i64;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from_iter_values(times.iter().copied()).with_timezone("UTC")),
            Arc::new(StringArray::from_iter_values(times.iter().map(|_| "d"))),
            Arc::new(Int64Array::from_iter_values((first..).take(times.len()))),
        ];
        let batch = RecordBatch::try_new(schema(false).arrow(), columns).unwrap();
        self.rows += times.len() as u64;
        let version = Version::new(Hlc(self.rows), NodeId(1), 0);
        let write = Write { version, token: None, rows: Rows::Put(batch) };
        self.store.commit(vec![write], 0).unwrap().remove(0).unwrap();
        self.store.flush().unwrap();
    }

    /// Writes the rows of a range, counted from the start.
    fn in_order(&mut self, rows: Range<i64>) {
        self.write(rows.map(|n| START + n * (HOUR / ROWS_PER_HOUR)));
    }

    fn compact(&self) {
        while self.store.compact().unwrap() {}
        assert_eq!(self.store.snapshot().rows(), self.rows);
        assert_eq!(self.store.verify().unwrap(), []);
        assert_eq!(self.store.segments_overdue(), 0);
    }

    /// First and last hour of each segment, and its rows.
    fn segments(&self) -> Vec<(i64, i64, u32)> {
        let state = lock(&self.store.state).clone();
        let span = |segment: &crate::segment::Segment| {
            let zone = segment.zone(&state.layout, 0);
            let (Some(Datum::Int(min)), Some(Datum::Int(max))) = (zone.min, zone.max) else { unreachable!() };
            let window = |micros: i64| (micros - START).div_euclid(HOUR);
            (window(min), window(max), segment.rows())
        };
        let mut spans: Vec<_> = state.segments.values().map(|view| span(&view.segment)).collect();
        spans.sort_unstable();
        spans
    }
}

#[test]
fn rows_in_order_are_merged_within_their_windows() {
    for upserts in [false, true] {
        let mut world = World::new(upserts, 4);
        for part in 0..8 {
            world.in_order(part * 15_000..(part + 1) * 15_000);
            world.compact();
        }
        let apart = world.segments().iter().filter(|(first, last, _)| first == last).count();
        assert!(apart >= 8, "{:?}", world.segments());
        world.store.optimize(&|| true).unwrap();
        assert_eq!(world.segments(), (0..12).map(|hour| (hour, hour, 10_000)).collect::<Vec<_>>());
        assert_eq!(world.store.optimize(&|| true).unwrap(), 0, "it is as it should be");
        world.compact();
    }
}

#[test]
fn late_rows_go_to_their_windows() {
    let mut world = World::new(false, 2);
    world.in_order(0..50_000);
    world.compact();
    // From all over: each flush holds some rows of every window.
    for part in 0..8 {
        world.write((0..12_000).map(|n| START + n * (5 * HOUR / 12_000) + 1 + part));
        world.compact();
    }
    let loose: u32 = world.segments().iter().filter(|(first, last, _)| first != last).map(|segment| segment.2).sum();
    assert_eq!(loose, 50_000, "the first flush, which nothing has been merged with: {:?}", world.segments());
    world.store.optimize(&|| true).unwrap();
    assert_eq!(world.segments(), (0..5).map(|hour| (hour, hour, 29_200)).collect::<Vec<_>>());
    // More of one window: the others are left alone.
    for part in 0..2 {
        world.write((0..9_000).map(|n| START + 3 * HOUR + n * 1_000 + 10 + part));
    }
    world.compact();
    let segments = world.segments();
    assert_eq!(segments[..3], (0..3).map(|hour| (hour, hour, 29_200)).collect::<Vec<_>>());
    assert_eq!(segments.iter().filter(|segment| segment.0 == 3).map(|segment| segment.2).sum::<u32>(), 47_200);
}

/// A clock that was wrong stretches no window, and makes no file for each of its rows.
#[test]
fn rows_far_away_stay_together() {
    let mut world = World::new(false, 2);
    for part in 0..4 {
        let stray = |n: i64| (part * 31 + n) * 90_000 * HOUR / 7;
        let bulk = (part * 30_000..(part + 1) * 30_000).map(|n| START + n * (HOUR / ROWS_PER_HOUR));
        world.write(bulk.chain((0..40).map(stray)));
        world.compact();
    }
    world.store.optimize(&|| true).unwrap();
    let segments = world.segments();
    let strays = segments.iter().filter(|(first, last, _)| first != last).map(|segment| segment.2).sum::<u32>();
    assert_eq!((segments.len(), strays), (13, 160), "{segments:?}");
    world.compact();
}
