//! What a table's columns take of a body, and what would have to change.
//!
//! A column that was widened has older forms, and rows may still be written in them. Values go into the *oldest* form that takes
//! all of a body's: forms only come, so the same body finds the same form however often it is sent, and stays the same rows.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use shoal_catalog::{NAME_BYTES_MAX, Table};
use shoal_kernel::limits::COLUMNS_PER_TABLE_MAX;
use shoal_kernel::schema::{TOMBSTONE_COLUMN, VERSION_COLUMN};
use shoal_kernel::widen::widens;
use shoal_kernel::{Column, ColumnId, Error, ErrorCode, Result, SchemaChange, TableSchema};

use super::shape::Shape;
use crate::format::type_name;
use crate::ingest::{RowErrorCode, Target, TargetColumn};

/// Why a name cannot be a column's.
pub(super) type BadName = (RowErrorCode, String);

/// A form in which a column's values are stored.
pub(super) struct Form {
    id: ColumnId,
    pub(super) data_type: DataType,
    /// It has taken every value so far.
    pub(super) takes: bool,
}

/// A column of the table, or one that it does not have yet.
pub(super) struct Seen {
    pub(super) name: String,
    /// Oldest first; none of a new column.
    pub(super) forms: Vec<Form>,
    pub(super) shape: Shape,
    /// It cannot change: rows are told apart by it, or the table's maker wants it so.
    pub(super) is_fixed: bool,
}

pub(super) struct Columns {
    all: Vec<Seen>,
    places: BTreeMap<String, usize>,
    /// Columns of text take numbers too; those of a columnar body only what is not nested.
    columnar: bool,
}

impl Columns {
    pub(super) fn of(schema: &TableSchema, columnar: bool) -> Self {
        let keys = schema.key_indices();
        let seen = |(place, column): (usize, &Column)| {
            let older = schema.retired.iter().filter(|old| old.into == Some(column.id));
            let forms = older.map(|old| (old.id, &old.data_type)).chain([(column.id, &column.data_type)]);
            Seen {
                name: column.name.clone(),
                forms: forms.map(|(id, data_type)| Form { id, data_type: data_type.clone(), takes: true }).collect(),
                shape: Shape::Nothing,
                is_fixed: keys.contains(&place) || !column.nullable,
            }
        };
        let all: Vec<Seen> = schema.columns.iter().enumerate().map(seen).collect();
        let places = all.iter().enumerate().map(|(place, seen)| (seen.name.clone(), place)).collect();
        Self { all, places, columnar }
    }

    /// The place of the column that a name means; of a new one if none does.
    pub(super) fn place(&mut self, name: &str) -> std::result::Result<usize, BadName> {
        if let Some(place) = self.places.get(name).or_else(|| self.places.get(&name.to_lowercase())) {
            return Ok(*place);
        }
        self.check_new(name)?;
        let place = self.all.len();
        self.places.insert(name.to_owned(), place);
        self.all.push(Seen { name: name.to_owned(), forms: Vec::new(), shape: Shape::Nothing, is_fixed: false });
        Ok(place)
    }

    /// The column at a place.
    pub(super) fn seen(&mut self, place: usize) -> &mut Seen {
        &mut self.all[place]
    }

    fn check_new(&self, name: &str) -> std::result::Result<(), BadName> {
        let refused = |message: String| Err((RowErrorCode::UnknownColumn, message));
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let bytes = name.len();
            return refused(format!(
                "a column's name has 1 to {NAME_BYTES_MAX} bytes and no control characters, this one has {bytes} bytes"
            ));
        }
        if [VERSION_COLUMN, TOMBSTONE_COLUMN].contains(&name.to_lowercase().as_str()) {
            return refused(format!("the column name '{name}' is reserved"));
        }
        if self.all.len() >= COLUMNS_PER_TABLE_MAX {
            return refused(format!("'{name}' would be one column more than the {COLUMNS_PER_TABLE_MAX} of a table"));
        }
        Ok(())
    }

    /// The changes after which every value has a form that takes it. Columns without a value yet are not made.
    ///
    /// # Errors
    /// A column cannot be given such a type.
    pub(super) fn changes(&self, schema: &TableSchema) -> Result<Vec<SchemaChange>> {
        let ColumnId(mut next) = schema.next_column;
        let mut number = || {
            next += 1;
            ColumnId(next - 1)
        };
        let mut changes = Vec::new();
        for seen in &self.all {
            let Some(data_type) = seen.shape.data_type() else { continue };
            let Some(current) = seen.forms.last() else {
                let column = Column { id: number(), name: seen.name.clone(), data_type, nullable: true };
                changes.push(SchemaChange::Add(column));
                continue;
            };
            if seen.is_fixed || seen.forms.iter().any(|form| form.takes) {
                continue;
            }
            let joined = Shape::of_type(&current.data_type).join(seen.shape.clone()).data_type();
            let wider = joined.filter(|joined| widens(&current.data_type, joined)).unwrap_or(DataType::Utf8);
            // Text of a columnar body is not made out of what it has nested.
            let is_lost = self.columnar && seen.shape.is_nested() && wider == DataType::Utf8;
            if is_lost || !widens(&current.data_type, &wider) {
                let (name, from) = (&seen.name, type_name(&current.data_type));
                let message = format!("column '{name}' is {from} and takes no {}", type_name(&data_type));
                return Err(Error::new(ErrorCode::InvalidRows, message)
                    .with_help("send the values in another type, or under another name"));
            }
            changes.push(SchemaChange::Widen { column: current.id, into: number(), data_type: wider });
        }
        Ok(changes)
    }

    /// The table as these rows are written: each column in the form that takes them.
    pub(super) fn written_as(&self, table: &Table) -> Table {
        let mut table = table.clone();
        for (column, seen) in table.schema.columns.iter_mut().zip(&self.all) {
            let form = seen.forms.iter().find(|form| form.takes && seen.shape != Shape::Nothing);
            if let Some(form) = form.filter(|_| !seen.is_fixed) {
                (column.id, column.data_type) = (form.id, form.data_type.clone());
            }
        }
        table
    }

    /// What rows are read into: the table's columns, and those that hold nothing but nulls, which no table has.
    pub(super) fn target(&self, table: &Table) -> Target {
        let nulls = self.all.iter().skip(table.schema.columns.len()).map(|seen| TargetColumn {
            name: seen.name.clone(),
            data_type: DataType::Null,
            nullable: true,
            filled: false,
            takes_all: false,
        });
        Target::taking_all(table, nulls)
    }

    /// The columns of a table that is made for these rows: those of every table of events come last.
    pub(super) fn new_schema(&self, schema: &TableSchema) -> Result<TableSchema> {
        let mut columns: Vec<Column> = self
            .changes(schema)?
            .into_iter()
            .filter_map(|change| match change {
                SchemaChange::Add(column) => Some(column),
                _ => None,
            })
            .collect();
        columns.extend(schema.columns.iter().cloned());
        for (place, column) in (0..).zip(&mut columns) {
            column.id = ColumnId(place);
        }
        Ok(TableSchema::new(columns, schema.kind.clone()))
    }
}

/// A table that has not been made yet, as far as rows are concerned.
pub(super) fn blank(name: &str) -> Table {
    let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
    let column = |id, name: &str, data_type| Column { id: ColumnId(id), name: name.into(), data_type, nullable: false };
    let columns = vec![
        column(0, shoal_kernel::schema::TS_COLUMN, time),
        column(1, shoal_kernel::schema::DEDUP_COLUMN, DataType::Utf8),
    ];
    Table {
        id: shoal_kernel::TableId(0),
        name: name.to_owned(),
        schema: TableSchema::new(columns, shoal_kernel::TableKind::Event),
        partitioning: shoal_catalog::Partitioning::Range { columns: vec![ColumnId(0)] },
        options: shoal_catalog::TableOptions { schemaless: true, ..shoal_catalog::TableOptions::default() },
        cutoff: None,
        partitions: Vec::new(),
    }
}
