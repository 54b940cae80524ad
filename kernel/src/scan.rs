//! What a reader wants of one partition: the one message that the planner writes and the storage engine understands.

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
