//! What a table's rows look like. The storage engine and the planner both read it; neither owns it.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

/// Name of the hidden column that holds a row's version on its way between replicas (FixedSizeBinary(16), big endian).
pub const VERSION_COLUMN: &str = "_version";
/// Name of the hidden column that is true for a tombstone on its way between replicas (Boolean).
pub const TOMBSTONE_COLUMN: &str = "_tombstone";
/// Event tables: when it happened (Timestamp in µs, UTC). Part of the row's identity.
pub const TS_COLUMN: &str = "_ts";
/// Event tables: the resend detector (Utf8). Part of the row's identity.
pub const DEDUP_COLUMN: &str = "_dedup";

/// A column, for ever: dropping a column and adding another of the same name gives a new id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ColumnId(pub u32);

/// A field of rows on their way between nodes.
pub fn numbered_field(name: &str, data_type: &DataType, nullable: bool, id: ColumnId) -> Field {
    let number = std::iter::once((COLUMN_ID_KEY.to_owned(), id.0.to_string())).collect();
    Field::new(name, data_type.clone(), nullable).with_metadata(number)
}

/// Which column a field of rows on their way between nodes is; `None` if it does not say.
pub fn column_of(field: &Field) -> Option<ColumnId> {
    field.metadata().get(COLUMN_ID_KEY)?.parse().ok().map(ColumnId)
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its identity in segments and in the catalog.
    pub id: ColumnId,
    /// Its name, as SQL resolves it.
    pub name: String,
    /// Its Arrow type. Timestamps are in microseconds; strings are Utf8 (never views or dictionaries).
    pub data_type: DataType,
    /// Whether it may hold NULL.
    pub nullable: bool,
}

/// How rows of a table are told apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// One row per primary key, the newest version wins. Columns in key order.
    Upsert {
        /// The key's columns, most significant first; none of them nullable.
        primary_key: Vec<ColumnId>,
    },
    /// Append only. The columns `_ts` and `_dedup` stand in the schema; equal (`_ts`, `_dedup`) with equal content is one row.
    Event,
}

/// The schema of a table. Column order is the order of `SELECT *`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Columns, in order.
    pub columns: Vec<Column>,
    /// How rows are told apart.
    pub kind: TableKind,
    /// Counts up with every change of the schema.
    pub version: u32,
    /// Columns that no statement can name any more, by when they were retired. [`Self::stored_retired`] says which of them rows
    /// have values of.
    pub retired: Vec<RetiredColumn>,
    /// No column has ever had this number or a greater one.
    pub next_column: ColumnId,
}

/// A column that was dropped or widened. The values that it had stay as they were written: a row's content never changes with
/// the schema, and with it what identifies the row of an event table. In a table with a primary key what was dropped is not
/// stored; its forms, if it had several, are listed for a time, because rows that are sent again may still bring one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredColumn {
    /// Its identity.
    pub id: ColumnId,
    /// Its type.
    pub data_type: DataType,
    /// The first form of the column: all forms of one column have the same.
    pub root: ColumnId,
    /// The column that has taken its place and shows its values, converted; `None` if it was dropped.
    pub into: Option<ColumnId>,
}

/// The key under which a field of rows on their way between nodes says which column it is.
pub const COLUMN_ID_KEY: &str = "shoal.column";

impl TableSchema {
    /// The schema of a new table.
    pub fn new(columns: Vec<Column>, kind: TableKind) -> Self {
        let next_column = ColumnId(columns.iter().map(|column| column.id.0.saturating_add(1)).max().unwrap_or(0));
        Self { columns, kind, version: 1, retired: Vec::new(), next_column }
    }

    /// The Arrow schema of the visible columns, each field with the number of its column: names may change while rows are on
    /// their way.
    pub fn numbered(&self) -> SchemaRef {
        let field = |column: &Column| numbered_field(&column.name, &column.data_type, column.nullable, column.id);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// The first form that a column had.
    pub fn root(&self, id: ColumnId) -> ColumnId {
        let older = self.retired.iter().find(|retired| retired.id == id || retired.into == Some(id));
        older.map_or(id, |retired| retired.root)
    }

    /// The forms that a column had before this one, oldest first, whether or not it was dropped in the end. A value is stored in the
    /// first of all its column's forms that holds it exactly.
    pub fn forms_before(&self, id: ColumnId) -> impl Iterator<Item = &RetiredColumn> {
        let root = self.root(id);
        self.retired.iter().filter(move |retired| retired.root == root && retired.id < id)
    }

    /// Retired columns that rows have values of: those that another one shows, and of an event table all.
    pub fn stored_retired(&self) -> impl Iterator<Item = &RetiredColumn> {
        self.retired.iter().filter(|retired| retired.into.is_some() || !self.is_upsert())
    }

    /// The older forms of a column, latest first.
    pub fn older(&self, id: ColumnId) -> impl Iterator<Item = &RetiredColumn> {
        self.retired.iter().rev().filter(move |retired| retired.into == Some(id))
    }

    /// The Arrow schema of the visible columns.
    pub fn arrow(&self) -> SchemaRef {
        let field = |column: &Column| Field::new(&column.name, column.data_type.clone(), column.nullable);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// The place of a column in the schema.
    pub fn index_of(&self, id: ColumnId) -> Option<usize> {
        self.columns.iter().position(|column| column.id == id)
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Places of the columns that identify a row, in key order: the primary key, or (`_ts`, `_dedup`) for an event table.
    pub fn key_indices(&self) -> Vec<usize> {
        match &self.kind {
            TableKind::Upsert { primary_key } => primary_key.iter().filter_map(|id| self.index_of(*id)).collect(),
            TableKind::Event => [TS_COLUMN, DEDUP_COLUMN]
                .iter()
                .filter_map(|name| self.columns.iter().position(|column| column.name == *name))
                .collect(),
        }
    }

    /// Whether the newest version of a key replaces the older ones.
    pub fn is_upsert(&self) -> bool {
        matches!(self.kind, TableKind::Upsert { .. })
    }
}
