//! What rows come to, told by statistics instead of by the rows: of pages that are seen whole and whose rows all satisfy the
//! conditions. The rest of the scan has the other rows.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, UInt64Array, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use shoal_kernel::{Datum, Error, Measure, Result, Summary, SummaryPart};

use crate::layout::Layout;
use crate::predicate::{Zone, exact_bound, scalar};
use crate::state::SegmentView;
use crate::visible::{Visible, visibility};

/// Tells measures of pages, and adds them up.
pub(crate) struct Teller {
    part: SummaryPart,
    measures: Vec<Placed>,
    totals: Vec<Total>,
}

/// A measure, with the place of its column in the table's schema and the column's type.
type Placed = (Measure, Option<(usize, DataType)>);

/// What a measure comes to, so far.
#[derive(Debug, Clone, PartialEq)]
enum Total {
    Count(u64),
    Sum(Option<i128>),
    /// The value that is on that side of all others.
    Extreme(Ordering, Option<Datum>),
}

impl Total {
    fn nothing(measure: &Measure) -> Self {
        match measure {
            Measure::Rows | Measure::Values(_) => Self::Count(0),
            Measure::Sum(_) => Self::Sum(None),
            Measure::Least(_) => Self::Extreme(Ordering::Less, None),
            Measure::Greatest(_) => Self::Extreme(Ordering::Greater, None),
        }
    }

    fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Count(ours), Self::Count(theirs)) => *ours += theirs,
            (Self::Sum(ours), Self::Sum(Some(theirs))) => *ours = Some(ours.unwrap_or(0) + theirs),
            (Self::Extreme(side, ours), Self::Extreme(_, Some(theirs)))
                if ours.as_ref().is_none_or(|ours| theirs.partial_cmp(ours) == Some(*side)) =>
            {
                *ours = Some(theirs);
            }
            _ => {}
        }
    }

    /// As a column of one row.
    fn array(&self, data_type: &DataType) -> Result<ArrayRef> {
        Ok(match self {
            Self::Count(count) => {
                let count = i64::try_from(*count).map_err(|_| Error::internal("more rows than can be counted"))?;
                Arc::new(Int64Array::from(vec![count]))
            }
            Self::Sum(Some(sum)) if data_type.is_unsigned_integer() => Arc::new(UInt64Array::from(vec![*sum as u64])),
            Self::Sum(Some(sum)) => Arc::new(Int64Array::from(vec![*sum as i64])),
            Self::Extreme(_, Some(value)) => scalar(value, data_type)
                .ok_or_else(|| Error::internal(format!("a bound of a column is no value of type {data_type}")))?
                .into_inner(),
            Self::Sum(None) | Self::Extreme(_, None) => new_null_array(data_type, 1),
        })
    }
}

impl Teller {
    pub(crate) fn new(summary: &Summary, layout: &Layout) -> Result<Self> {
        let placed = |measure: &Measure| {
            let Some(column) = measure.column() else { return Ok((*measure, None)) };
            let place = layout.visible_place(column)?;
            let data_type = &layout.schema.columns[place].data_type;
            if matches!(measure, Measure::Sum(_)) && !data_type.is_integer() {
                return Err(Error::internal(format!("statistics have no sums of columns of type {data_type}")));
            }
            Ok((*measure, Some((place, data_type.clone()))))
        };
        Ok(Self {
            part: summary.part,
            measures: summary.measures.iter().map(placed).collect::<Result<_>>()?,
            totals: summary.measures.iter().map(Total::nothing).collect(),
        })
    }

    pub(crate) fn part(&self) -> SummaryPart {
        self.part
    }

    /// Adds a page, all of whose rows satisfy the conditions, if statistics tell enough of it. Says whether they do.
    pub(crate) fn take(&mut self, layout: &Layout, view: &SegmentView, page: u32) -> bool {
        let Some(told) = self.tell(layout, view, page) else { return false };
        self.totals.iter_mut().zip(told).for_each(|(total, told)| total.add(told));
        true
    }

    fn tell(&self, layout: &Layout, view: &SegmentView, page: u32) -> Option<Vec<Total>> {
        let (segment, rows) = (&view.segment, view.segment.page_rows(page));
        let hidden = visibility(rows.clone(), &[&view.dead, segment.tombstones()]);
        let told = |(measure, column): &Placed| {
            // A row that is not seen is counted in the statistics, and may be what they have their bounds from.
            let whole = matches!(hidden, Visible::All);
            match (measure, column) {
                (Measure::Rows, _) => Some(Total::Count(hidden.count(rows.len()))),
                (_, Some((place, data_type))) if whole => {
                    let zone = segment.page_zone(layout, *place, page);
                    let is_sound = segment.has_type_of(layout, *place);
                    is_sound.then(|| of_zone(measure, zone, data_type, || segment.page_sum(layout, *place, page)))?
                }
                _ => None,
            }
        };
        match hidden {
            Visible::None => Some(Vec::new()),
            _ => self.measures.iter().map(told).collect(),
        }
    }

    /// The schema of the told part.
    pub(crate) fn schema(&self) -> SchemaRef {
        let field = |(number, (measure, column)): (usize, &Placed)| {
            let of = column.as_ref().map_or(&DataType::Null, |(_, data_type)| data_type);
            Field::new(number.to_string(), measure.data_type(of), true)
        };
        Arc::new(Schema::new(self.measures.iter().enumerate().map(field).collect::<Vec<_>>()))
    }

    /// What has been added up, as one row of that schema.
    pub(crate) fn arrays(&self) -> Result<Vec<ArrayRef>> {
        let schema = self.schema();
        self.totals.iter().zip(schema.fields()).map(|(total, field)| total.array(field.data_type())).collect()
    }
}

/// What the measure of a page is by its statistics, if these are exact.
fn of_zone(measure: &Measure, zone: Zone, data_type: &DataType, sum: impl FnOnce() -> Option<i128>) -> Option<Total> {
    let has_values = zone.nulls < zone.rows;
    let extreme = |side: Ordering, bound: Option<Datum>| {
        // Zero is a bound that does not say which of the two zeros there is; some values cannot be given at all.
        let exact = |value: &Datum| exact_bound(value) && scalar(value, data_type).is_some();
        match has_values {
            true => bound.filter(exact).map(|value| Total::Extreme(side, Some(value))),
            false => Some(Total::Extreme(side, None)),
        }
    };
    match measure {
        Measure::Rows => Some(Total::Count(u64::from(zone.rows))),
        Measure::Values(_) => Some(Total::Count(u64::from(zone.rows - zone.nulls))),
        Measure::Sum(_) if !has_values => Some(Total::Sum(None)),
        Measure::Sum(_) => sum().map(|sum| Total::Sum(Some(sum))),
        Measure::Least(_) => extreme(Ordering::Less, zone.min),
        Measure::Greatest(_) => extreme(Ordering::Greater, zone.max),
    }
}
