//! Scans whose reader keeps the first few rows of an order: pages with the first values are read first, and what comes behind the
//! rows that the reader has got is passed over.

use std::cmp::{Ordering, Reverse};
use std::mem::discriminant;

use shoal_kernel::{ColumnPredicate, CompareOp, Datum, Error, Frontier, FrontierSource, Result, ScanOrder};

use crate::layout::Layout;
use crate::predicate::{Zone, may_match};

/// What the reader is after, as far as it has said.
pub(crate) struct Order {
    wanted: ScanOrder,
    /// Place of the column in the table's schema.
    pub(crate) column: usize,
    frontier: Option<FrontierSource>,
}

impl Order {
    pub(crate) fn new(wanted: ScanOrder, layout: &Layout) -> Result<Self> {
        let column = layout.visible_place(wanted.column)?;
        let data_type = &layout.schema.columns[column].data_type;
        if !ScanOrder::is_on(data_type) {
            return Err(Error::internal(format!("SQL has another order of type {data_type} than zones have")));
        }
        Ok(Self { wanted, column, frontier: None })
    }

    pub(crate) fn follow(&mut self, frontier: FrontierSource) {
        self.frontier = Some(frontier);
    }

    /// What is worth reading first has the least rank: what may hold the first values.
    pub(crate) fn rank(&self, zone: Option<&Zone>) -> Rank {
        let Some(zone) = zone else { return Rank::First };
        let bound = if self.wanted.descending { &zone.max } else { &zone.min };
        match bound {
            _ if zone.nulls > 0 && self.wanted.nulls_first => Rank::First,
            Some(bound) if self.wanted.descending => Rank::Descending(Reverse(Bound(bound.clone()))),
            Some(bound) => Rank::Ascending(Bound(bound.clone())),
            None if zone.nulls == zone.rows => Rank::Last,
            None => Rank::First,
        }
    }

    /// Where the reader stands now, if it has told.
    pub(crate) fn frontier(&self) -> Option<Frontier> {
        self.frontier.as_ref().and_then(FrontierSource::get)
    }

    /// Whether a row of the zone may come before the frontier.
    pub(crate) fn may_matter(&self, frontier: &Frontier, zone: &Zone) -> bool {
        let has_nulls = zone.nulls > 0;
        match frontier {
            Frontier::Null => has_nulls && self.wanted.ties,
            Frontier::Value(value) => {
                has_nulls && self.wanted.nulls_first || may_match(&self.before(value.clone()), zone)
            }
        }
    }

    /// What the rows of a unit satisfy that come before the frontier, if one condition says it: of NULLs only those that come
    /// last are ruled out by a comparison.
    pub(crate) fn condition(&self, frontier: &Frontier, zone: Option<&Zone>) -> Option<ColumnPredicate> {
        let Frontier::Value(value) = frontier else { return None };
        let no_first_nulls = !self.wanted.nulls_first || zone.is_some_and(|zone| zone.nulls == 0);
        no_first_nulls.then(|| self.before(value.clone()))
    }

    fn before(&self, value: Datum) -> ColumnPredicate {
        let op = match (self.wanted.descending, self.wanted.ties) {
            (true, true) => CompareOp::GtEq,
            (true, false) => CompareOp::Gt,
            (false, true) => CompareOp::LtEq,
            (false, false) => CompareOp::Lt,
        };
        ColumnPredicate::Compare { column: self.wanted.column, op, value }
    }
}

/// When a unit is read.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    First,
    Descending(Reverse<Bound>),
    Ascending(Bound),
    Last,
}

/// A bound of a zone. All of one column are of one kind, and none is NaN.
pub(crate) struct Bound(Datum);

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Bound {}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bound {
    fn cmp(&self, other: &Self) -> Ordering {
        debug_assert_eq!(discriminant(&self.0), discriminant(&other.0));
        self.0.partial_cmp(&other.0).unwrap_or(Ordering::Equal)
    }
}
