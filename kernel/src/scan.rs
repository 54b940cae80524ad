//! What a reader wants of one partition: the one message that the planner writes and the storage engine understands.

use std::fmt;
use std::sync::Arc;

use arrow_schema::DataType;
use serde::{Deserialize, Serialize};

use crate::ids::{PartitionId, TableId};
use crate::key::Datum;
use crate::schema::ColumnId;

/// A scan of one partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanSpec {
    /// The table.
    pub table: TableId,
    /// The partition.
    pub partition: PartitionId,
    /// Version of the table's schema that the columns were named by.
    pub schema_version: u32,
    /// Whether a newer version must be an error: whoever writes rows back as a whole would take from them the columns that it
    /// does not know.
    pub schema_exact: bool,
    /// Columns wanted, in this order. Empty: only the number of rows matters (batches without columns).
    pub columns: Vec<ColumnId>,
    /// All of these hold for every row that the reader cares about. The engine must leave out every row that breaks one which
    /// is judged exactly ([`ColumnPredicate::is_exact_on`]): the reader does not look again. Of the others it may return rows
    /// that break them, so the reader filters again.
    pub predicates: Vec<ColumnPredicate>,
    /// More rows than this are not needed. Only set where no filter stands above the scan.
    pub limit: Option<u64>,
    /// Only this share of the rows. The slices of one snapshot have no row in common and are together the whole.
    pub slice: Slice,
    /// Whether a last column, [`ADDRESS_COLUMN`], says where each row lies: a [`FetchSpec`] on the same snapshot finds it
    /// again there.
    pub addresses: bool,
    /// Text columns that are wanted as dictionaries (`Dictionary(UInt32, Utf8)`): cheap where they are stored so.
    pub coded: Vec<ColumnId>,
    /// Which of the rows that satisfy the predicates matter; all of them if `None`. The engine may leave out the others, and
    /// need not. Only set where the reader judges no condition itself, and without a limit.
    pub ends: Option<KeyEnds>,
    /// What the rows are read for, if statistics may stand for some of them. Only set where the reader judges no condition
    /// itself, and without a limit or addresses.
    pub summary: Option<Summary>,
    /// The order of which the reader keeps the first rows. The engine reads best what may hold these, and may leave out rows
    /// that come behind where the reader stands ([`FrontierSource`]). Only set without a limit.
    pub order: Option<ScanOrder>,
}

impl ScanSpec {
    /// All rows of a partition, in these columns.
    pub const fn of(table: TableId, partition: PartitionId, schema_version: u32, columns: Vec<ColumnId>) -> Self {
        Self {
            table,
            partition,
            schema_version,
            schema_exact: false,
            columns,
            predicates: Vec::new(),
            limit: None,
            slice: Slice::WHOLE,
            addresses: false,
            coded: Vec::new(),
            ends: None,
            summary: None,
            order: None,
        }
    }
}

/// The first column of an order of rows, and how it sorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanOrder {
    /// The column.
    pub column: ColumnId,
    /// Greatest values first.
    pub descending: bool,
    /// Rows without a value come before all others, else behind them.
    pub nulls_first: bool,
    /// Other columns decide between rows with the same value; else it does not matter which of them comes first.
    pub ties: bool,
}

impl ScanOrder {
    /// Whether a scan knows the order of columns of that type. Of floats SQL has another one.
    pub fn is_on(data_type: &DataType) -> bool {
        data_type.is_integer() || matches!(data_type, DataType::Utf8 | DataType::Date32 | DataType::Timestamp(_, _))
    }
}

/// The last of the rows that the reader of an ordered scan keeps: what comes behind it is of no use any more.
#[derive(Debug, Clone, PartialEq)]
pub enum Frontier {
    /// It has that value.
    Value(Datum),
    /// It has none, and such rows come first.
    Null,
}

/// Where the reader of an ordered scan stands, whenever somebody asks; nothing before it has as many rows as it keeps.
#[derive(Clone)]
pub struct FrontierSource(Arc<dyn Fn() -> Option<Frontier> + Send + Sync>);

impl FrontierSource {
    /// Asks that function.
    pub fn new(ask: impl Fn() -> Option<Frontier> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// Where the reader stands now.
    pub fn get(&self) -> Option<Frontier> {
        (self.0)()
    }
}

impl fmt::Debug for FrontierSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrontierSource")
    }
}

/// Rows fall in two parts: those of which statistics tell the measures, and the rest, which has to be read. Scans of one
/// snapshot that differ in nothing but the part have no row in common and are together the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// What has to be told of rows.
    pub measures: Vec<Measure>,
    /// Which part is wanted.
    pub part: SummaryPart,
}

/// A part of the rows of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SummaryPart {
    /// The rows that statistics tell enough of: one row with a column for each measure, whatever columns are wanted.
    Told,
    /// The rows that they do not: as without a summary.
    Rest,
}

/// What a number of rows comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Measure {
    /// How many there are (Int64).
    Rows,
    /// How many of them have a value in the column (Int64).
    Values(ColumnId),
    /// The sum of an integer column modulo 2^64 (Int64; of unsigned ones UInt64); NULL without a value.
    Sum(ColumnId),
    /// The least value, in the column's type; NULL without a value.
    Least(ColumnId),
    /// The greatest one.
    Greatest(ColumnId),
}

impl Measure {
    /// The column that it is about.
    pub fn column(&self) -> Option<ColumnId> {
        match self {
            Self::Rows => None,
            Self::Values(column) | Self::Sum(column) | Self::Least(column) | Self::Greatest(column) => Some(*column),
        }
    }

    /// The type of the measure of a column of that type.
    pub fn data_type(&self, column: &DataType) -> DataType {
        match self {
            Self::Rows | Self::Values(_) => DataType::Int64,
            Self::Sum(_) if column.is_unsigned_integer() => DataType::UInt64,
            Self::Sum(_) => DataType::Int64,
            Self::Least(_) | Self::Greatest(_) => column.clone(),
        }
    }
}

/// Of the rows that agree in the first columns of the table's key, those at an end of the key's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEnds {
    /// In how many columns they agree. With none, all rows do.
    pub columns: u32,
    /// Whether the first one matters.
    pub first: bool,
    /// Whether the last one matters.
    pub last: bool,
}

/// Name of the column of row addresses (UInt64). They mean something within one snapshot only.
pub const ADDRESS_COLUMN: &str = "_address";

/// More columns of rows that a scan of the same snapshot found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FetchSpec {
    /// The table.
    pub table: TableId,
    /// The partition.
    pub partition: PartitionId,
    /// Version of the table's schema that the columns were named by.
    pub schema_version: u32,
    /// Columns wanted, in this order.
    pub columns: Vec<ColumnId>,
}

/// A share of a scan, so that several tasks may read one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Which one, below `of`.
    pub index: u32,
    /// How many there are, at least 1.
    pub of: u32,
}

impl Slice {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// All shares of a scan, of about equal size.
    pub fn all(of: u32) -> impl Iterator<Item = Self> {
        (0..of.max(1)).map(move |index| Self { index, of: of.max(1) })
    }
}

/// A condition on one column. A NULL in the column satisfies only [`ColumnPredicate::IsNull`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ColumnPredicate {
    /// `column op value`; the value has the column's own datum variant.
    Compare {
        /// The column.
        column: ColumnId,
        /// The comparison.
        op: CompareOp,
        /// The constant, never NULL.
        value: Datum,
    },
    /// `column IN (values)`; at least one, none NULL.
    In {
        /// The column.
        column: ColumnId,
        /// The constants.
        values: Vec<Datum>,
    },
    /// `column LIKE pattern`, for text: `%` stands for any characters, `_` for one, a backslash takes both their meaning.
    Like {
        /// The column.
        column: ColumnId,
        /// The pattern.
        pattern: String,
        /// `NOT LIKE`
        negated: bool,
        /// `ILIKE`
        ignore_case: bool,
    },
    /// `column IS NULL`.
    IsNull {
        /// The column.
        column: ColumnId,
    },
    /// `column IS NOT NULL`.
    IsNotNull {
        /// The column.
        column: ColumnId,
    },
}

/// Longer lists are for leaving out what statistics exclude, not for judging rows one by one.
const EXACT_VALUES_MAX: usize = 16;

impl ColumnPredicate {
    /// Whether a scan judges this condition row by row on a column of that type, exactly as SQL does. Floats are left to the
    /// reader: NaN and the two zeros have an order of their own there.
    pub fn is_exact_on(&self, data_type: &DataType) -> bool {
        let fits = |value: &Datum| match value {
            Datum::Bool(_) => *data_type == DataType::Boolean,
            Datum::Int(_) => {
                data_type.is_signed_integer() || matches!(data_type, DataType::Date32 | DataType::Timestamp(_, _))
            }
            Datum::UInt(_) => data_type.is_unsigned_integer(),
            Datum::Text(_) => *data_type == DataType::Utf8,
            Datum::Null | Datum::Float(_) | Datum::Decimal(_) | Datum::Bytes(_) => false,
        };
        match self {
            Self::Compare { value, .. } => fits(value),
            Self::In { values, .. } => values.len() <= EXACT_VALUES_MAX && values.iter().all(fits),
            Self::Like { .. } => *data_type == DataType::Utf8,
            Self::IsNull { .. } | Self::IsNotNull { .. } => true,
        }
    }

    /// The column it looks at.
    pub fn column(&self) -> ColumnId {
        match self {
            Self::Compare { column, .. }
            | Self::In { column, .. }
            | Self::Like { column, .. }
            | Self::IsNull { column }
            | Self::IsNotNull { column } => *column,
        }
    }
}

/// A comparison with a constant on its right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CompareOp {
    /// `=`
    Eq,
    /// `<>`
    NotEq,
    /// `<`
    Lt,
    /// `<=`
    LtEq,
    /// `>`
    Gt,
    /// `>=`
    GtEq,
}

impl CompareOp {
    /// What holds between two values exactly if this does not.
    pub const fn negated(self) -> Self {
        match self {
            Self::Eq => Self::NotEq,
            Self::NotEq => Self::Eq,
            Self::Lt => Self::GtEq,
            Self::LtEq => Self::Gt,
            Self::Gt => Self::LtEq,
            Self::GtEq => Self::Lt,
        }
    }
}
