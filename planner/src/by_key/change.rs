//! DELETE and UPDATE of a few rows by key: what they find is a read by key, and what an UPDATE sets are constants.

use arrow::array::RecordBatch;
use datafusion::common::ScalarValue;
use shoal_catalog::{Catalog, Table};
use shoal_kernel::{Column, Error, ErrorCode, Result, ScanSpec};
use sqlparser::ast::{self, AssignmentTarget, FromTable};

use super::{KeyRead, Of, plain_table};
use crate::literals::constant;
use crate::sql::{normalised, table_name};

/// Bytes that are set by key at most, in all rows together.
const BYTES_MAX: usize = 1 << 20;

/// A DELETE or UPDATE of a few rows by key.
#[derive(Debug, Clone)]
pub struct KeyChange {
    /// The table's name.
    pub table: String,
    /// Finds the rows as they are, or the keys of those that are to go.
    pub read: KeyRead,
    /// The rows are to go.
    pub deletes: bool,
    /// By its place in the table, what a column is to be, in the column's type.
    set: Vec<(usize, ScalarValue)>,
}

impl KeyChange {
    /// The rows as they are to be, or the keys of those that are to go, made of what the scan has found; nothing if that is
    /// nothing.
    ///
    /// # Errors
    /// These are not the rows of the scan; [`ErrorCode::LimitExceeded`]: what is set would be more than such a change is for.
    pub fn rows(&self, found: &[RecordBatch]) -> Result<Option<RecordBatch>> {
        let Some(rows) = self.read.answer(found)? else { return Ok(None) };
        let set: usize = self.set.iter().map(|(_, value)| value.size()).sum();
        if set.saturating_mul(rows.num_rows()) > BYTES_MAX {
            let message = format!("a change by key sets more than {BYTES_MAX} bytes");
            return Err(Error::new(ErrorCode::LimitExceeded, message));
        }
        let mut columns = rows.columns().to_vec();
        for (place, value) in &self.set {
            let strange = |error| Error::internal(format!("a value cannot be repeated: {error}"));
            let column =
                columns.get_mut(*place).ok_or_else(|| Error::internal("a change by key found too few columns"))?;
            *column = value.to_array_of_size(rows.num_rows()).map_err(strange)?;
        }
        let changed = RecordBatch::try_new(rows.schema(), columns);
        changed.map(Some).map_err(|error| Error::internal(format!("a change by key made strange rows: {error}")))
    }
}

/// The change that a statement asks for, if it is one.
pub(crate) fn change(statement: &ast::Statement, catalog: &Catalog) -> Option<KeyChange> {
    match statement {
        ast::Statement::Delete(delete) => deletes(delete, catalog),
        ast::Statement::Update(update) => updates(update, catalog),
        _ => None,
    }
}

fn deletes(delete: &ast::Delete, catalog: &Catalog) -> Option<KeyChange> {
    let ast::Delete {
        delete_token: _,
        optimizer_hints,
        tables,
        from: FromTable::WithFromKeyword(from),
        using: None,
        selection: Some(condition),
        returning: None,
        output: None,
        order_by,
        limit: None,
    } = delete
    else {
        return None;
    };
    let ([from], true) = (from.as_slice(), optimizer_hints.is_empty() && tables.is_empty() && order_by.is_empty())
    else {
        return None;
    };
    let of = Of { table: target(from, catalog)? };
    let columns = of.table.schema.key_indices().into_iter().map(|place| of.table.schema.columns.get(place));
    of.changed(catalog, columns.collect::<Option<Vec<_>>>()?, condition, true, Vec::new())
}

fn updates(update: &ast::Update, catalog: &Catalog) -> Option<KeyChange> {
    let ast::Update {
        update_token: _,
        optimizer_hints,
        table,
        assignments,
        from: None,
        selection: Some(condition),
        returning: None,
        output: None,
        or: None,
        order_by,
        limit: None,
    } = update
    else {
        return None;
    };
    if !optimizer_hints.is_empty() || !order_by.is_empty() {
        return None;
    }
    let of = Of { table: target(table, catalog)? };
    let set = of.assigned(assignments)?;
    of.changed(catalog, of.table.schema.columns.iter().collect(), condition, false, set)
}

/// The table that is changed: one with a primary key, by its name and nothing else.
fn target<'a>(from: &ast::TableWithJoins, catalog: &'a Catalog) -> Option<&'a Table> {
    let name = plain_table(&from.relation).filter(|_| from.joins.is_empty())?;
    catalog.table(&table_name(name).ok()?.name).filter(|table| table.schema.is_upsert())
}

impl Of<'_> {
    fn changed(
        &self,
        catalog: &Catalog,
        columns: Vec<&Column>,
        condition: &ast::Expr,
        deletes: bool,
        set: Vec<(usize, ScalarValue)>,
    ) -> Option<KeyChange> {
        let scan = self.scan(catalog, &columns, self.few(condition)?)?;
        let selected: Vec<_> = columns.into_iter().map(|column| (column, column.name.clone())).collect();
        // What is written back must have all columns that there are by then.
        let scan = ScanSpec { schema_exact: !deletes, ..scan };
        let (schema, read_level) = (self.answers(&selected)?, self.table.options.read_level);
        let read = KeyRead { scan, schema, read_level, order: Vec::new(), limit: None };
        Some(KeyChange { table: self.table.name.clone(), read, deletes, set })
    }

    /// The constants that columns beside the key are set to. What is wrong with them is told when they are planned.
    fn assigned(&self, assignments: &[ast::Assignment]) -> Option<Vec<(usize, ScalarValue)>> {
        let schema = &self.table.schema;
        let key = schema.key_indices();
        let mut set: Vec<(usize, ScalarValue)> = Vec::new();
        for assignment in assignments {
            let AssignmentTarget::ColumnName(name) = &assignment.target else { return None };
            let [name] = name.0.as_slice() else { return None };
            let name = normalised(name.as_ident()?);
            let place = schema.columns.iter().position(|column| column.name == name)?;
            let column = schema.columns.get(place)?;
            let value = constant(&assignment.value)?.cast_to(&column.data_type).ok()?;
            let is_wrong = key.contains(&place)
                || set.iter().any(|(other, _)| *other == place)
                || (value.is_null() && !column.nullable);
            if is_wrong {
                return None;
            }
            set.push((place, value));
        }
        Some(set)
    }
}
