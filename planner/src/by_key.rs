//! Reads of a few rows by key, which need no plan: plain columns of one table, where constants bound every column of the key, in one
//! partition. DataFusion would plan the same scan, with fragments and tasks around it, which costs many times the read.
//!
//! Whatever is not recognised here, or is wrong, is planned; the tests compare both on the same rows.

mod change;

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use shoal_catalog::{Catalog, Table};
use shoal_kernel::{Column, ColumnId, ColumnPredicate, CompareOp, Cutoff, Datum, Error, ReadLevel, Result, ScanSpec};
use sqlparser::ast::{
    self, BinaryOperator, Expr, GroupByExpr, LimitClause, OrderByKind, SelectFlavor, SelectItem, SetExpr, TableFactor,
};

use crate::literals::constant;
use crate::prune::prune;
use crate::sql::{normalised, plain_query, table_name};
use crate::table::words;

pub use self::change::KeyChange;
pub(crate) use self::change::change;

/// Rows at most that are read so.
const ROWS_MAX: u64 = 1_000;

/// A read of a few rows by key.
#[derive(Debug, Clone)]
pub struct KeyRead {
    /// The rows. Its first columns are those of the answer, and all its conditions are judged exactly.
    pub scan: ScanSpec,
    /// Columns of the answer.
    pub schema: SchemaRef,
    /// The level at which it is read, if the request names none.
    pub read_level: ReadLevel,
    /// By which of the scan's columns the answer is sorted.
    order: Vec<(usize, SortOptions)>,
    limit: Option<u64>,
}

impl KeyRead {
    /// The answer, made of what the scan has found; nothing if that is nothing.
    ///
    /// # Errors
    /// These are not the rows of the scan.
    pub fn answer(&self, found: &[RecordBatch]) -> Result<Option<RecordBatch>> {
        let Some(first) = found.iter().find(|batch| batch.num_rows() > 0) else { return Ok(None) };
        let strange =
            |error: arrow::error::ArrowError| Error::internal(format!("a read by key found strange rows: {error}"));
        let mut rows = concat_batches(&first.schema(), found).map_err(strange)?;
        if !self.order.is_empty() && rows.num_rows() > 1 {
            let by = |(place, options): &(usize, SortOptions)| {
                let values: ArrayRef = Arc::clone(rows.columns().get(*place)?);
                Some(SortColumn { values, options: Some(*options) })
            };
            let by: Option<Vec<_>> = self.order.iter().map(by).collect();
            let by = by.ok_or_else(|| Error::internal("a read by key found too few columns"))?;
            let order: UInt32Array = lexsort_to_indices(&by, None).map_err(strange)?;
            rows = take_record_batch(&rows, &order).map_err(strange)?;
        }
        let count = rows.num_rows().min(self.limit.map_or(usize::MAX, |limit| limit as usize));
        let columns = rows.columns().iter().take(self.schema.fields().len()).map(|column| column.slice(0, count));
        let answer = RecordBatch::try_new(Arc::clone(&self.schema), columns.collect()).map_err(strange)?;
        Ok((count > 0).then_some(answer))
    }
}

/// What a statement does by key, for people, if it does.
pub(crate) fn describe(statement: &ast::Statement, catalog: &Catalog) -> Option<String> {
    let (what, read) = match statement {
        ast::Statement::Query(_) => ("KeyRead", read(statement, catalog)?),
        _ => {
            let change = change(statement, catalog)?;
            (if change.deletes { "KeyDelete" } else { "KeyUpdate" }, change.read)
        }
    };
    let KeyRead { scan, limit, .. } = read;
    let Table { name, schema, .. } = catalog.tables.get(&scan.table)?;
    let column = |id: &ColumnId| schema.columns.iter().find(|column| column.id == *id);
    let columns: Vec<&Column> = scan.columns.iter().map(column).collect::<Option<_>>()?;
    let words = words(schema, &columns, &scan.predicates, limit);
    Some(format!("{what}: {name}, partition={}{words}", scan.partition))
}

/// The read that a statement asks for, if it is one.
pub(crate) fn read(statement: &ast::Statement, catalog: &Catalog) -> Option<KeyRead> {
    let ast::Statement::Query(query) = statement else { return None };
    let (body, order_by, limit) = plain_query(query)?;
    let SetExpr::Select(select) = body else { return None };
    let (projection, factor, condition) = plain_select(select)?;
    let name = plain_table(factor)?;
    let table = catalog.table(&table_name(name).ok()?.name)?;
    let of = Of { table };
    let selected = of.selected(projection)?;
    let predicates = of.few(condition)?;
    let limit = match limit {
        Some(limit) => Some(limit_of(limit)?),
        None => None,
    };
    let is_renamed = selected.iter().any(|(column, name)| column.name != *name);
    let mut columns: Vec<&Column> = selected.iter().map(|(column, _)| *column).collect();
    let mut order = Vec::new();
    if let Some(order_by) = order_by {
        // A name in ORDER BY may be one that the projection gives.
        if is_renamed || order_by.interpolate.is_some() {
            return None;
        }
        let OrderByKind::Expressions(by) = &order_by.kind else { return None };
        for by in by {
            let column = of.key_column(&by.expr)?;
            if by.with_fill.is_some() || by.options.nulls_first.is_some() {
                return None;
            }
            let place = columns.iter().position(|other| other.id == column.id).unwrap_or_else(|| {
                columns.push(column);
                columns.len() - 1
            });
            let descending = by.options.asc == Some(false);
            order.push((place, SortOptions { descending, nulls_first: descending }));
        }
    }
    let scan = of.scan(catalog, &columns, predicates)?;
    let scan = ScanSpec { limit: limit.filter(|_| order.is_empty()), ..scan };
    Some(KeyRead { scan, schema: of.answers(&selected)?, read_level: table.options.read_level, order, limit })
}

/// What is selected, from where, and on which condition, if there is nothing else in it.
fn plain_select(select: &ast::Select) -> Option<(&[SelectItem], &TableFactor, &Expr)> {
    let ast::Select {
        select_token: _,
        optimizer_hints,
        distinct,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection,
        exclude,
        into,
        from,
        lateral_views,
        prewhere,
        selection,
        connect_by,
        group_by,
        cluster_by,
        distribute_by,
        sort_by,
        having,
        named_window,
        qualify,
        window_before_qualify: _,
        value_table_mode,
        flavor,
    } = select;
    let is_grouped = !matches!(group_by, GroupByExpr::Expressions(by, how) if by.is_empty() && how.is_empty());
    let is_plain = optimizer_hints.is_empty()
        && distinct.is_none()
        && select_modifiers.is_none()
        && top.is_none()
        && exclude.is_none()
        && into.is_none()
        && lateral_views.is_empty()
        && prewhere.is_none()
        && connect_by.is_empty()
        && !is_grouped
        && cluster_by.is_empty()
        && distribute_by.is_empty()
        && sort_by.is_empty()
        && having.is_none()
        && named_window.is_empty()
        && qualify.is_none()
        && value_table_mode.is_none()
        && *flavor == SelectFlavor::Standard;
    let [from] = from.as_slice() else { return None };
    let (true, true, Some(condition)) = (is_plain, from.joins.is_empty(), selection) else { return None };
    Some((projection, &from.relation, condition))
}

/// A table by its name and nothing else.
fn plain_table(factor: &TableFactor) -> Option<&ast::ObjectName> {
    let TableFactor::Table {
        name,
        alias: None,
        args: None,
        with_hints,
        version: None,
        with_ordinality: false,
        partitions,
        json_path: None,
        sample: None,
        index_hints,
    } = factor
    else {
        return None;
    };
    (with_hints.is_empty() && partitions.is_empty() && index_hints.is_empty()).then_some(name)
}

fn limit_of(limit: &LimitClause) -> Option<u64> {
    let LimitClause::LimitOffset { limit: Some(limit), offset: None, limit_by } = limit else { return None };
    match constant(limit)? {
        ScalarValue::Int64(Some(limit)) if limit_by.is_empty() => u64::try_from(limit).ok(),
        _ => None,
    }
}

struct Of<'a> {
    table: &'a Table,
}

impl<'a> Of<'a> {
    fn column(&self, expr: &Expr) -> Option<&'a Column> {
        match expr {
            Expr::Identifier(name) => self.table.schema.column(&normalised(name)),
            Expr::CompoundIdentifier(names) => match names.as_slice() {
                [table, name] if normalised(table) == self.table.name => self.table.schema.column(&normalised(name)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The scan of rows that meet the conditions, if they are all in one partition.
    fn scan(&self, catalog: &Catalog, columns: &[&Column], mut predicates: Vec<ColumnPredicate>) -> Option<ScanSpec> {
        let table = self.table;
        predicates.extend(table.cutoff.map(Cutoff::predicate));
        let partitions = prune(catalog, table, &predicates);
        let [partition] = partitions.as_slice() else { return None };
        let ids = columns.iter().map(|column| column.id).collect();
        Some(ScanSpec { predicates, ..ScanSpec::of(table.id, partition.id, table.schema.version, ids) })
    }

    /// The columns of the answer.
    fn answers(&self, selected: &[(&Column, String)]) -> Option<SchemaRef> {
        let whole = self.table.schema.arrow();
        let fields = selected
            .iter()
            .map(|(column, name)| Some(whole.field_with_name(&column.name).ok()?.clone().with_name(name.clone())));
        Some(Arc::new(Schema::new_with_metadata(fields.collect::<Option<Vec<_>>>()?, whole.metadata().clone())))
    }

    /// The conditions, if they say by key which rows are meant, and those are few.
    fn few(&self, condition: &Expr) -> Option<Vec<ColumnPredicate>> {
        let mut predicates = Vec::new();
        self.conditions(condition, &mut predicates)?;
        (self.rows_at_most(&predicates)? <= ROWS_MAX).then_some(predicates)
    }

    fn key_column(&self, expr: &Expr) -> Option<&'a Column> {
        let column = self.column(expr)?;
        let mut key = self.table.schema.key_indices().into_iter();
        key.any(|place| self.table.schema.columns[place].id == column.id).then_some(column)
    }

    /// The columns of the answer, with their names.
    fn selected(&self, projection: &[SelectItem]) -> Option<Vec<(&'a Column, String)>> {
        let mut selected: Vec<(&Column, String)> = Vec::new();
        for item in projection {
            match item {
                SelectItem::Wildcard(options) if *options == ast::WildcardAdditionalOptions::default() => {
                    selected.extend(self.table.schema.columns.iter().map(|column| (column, column.name.clone())));
                }
                SelectItem::UnnamedExpr(expr) => {
                    let column = self.column(expr)?;
                    selected.push((column, column.name.clone()));
                }
                SelectItem::ExprWithAlias { expr, alias } => selected.push((self.column(expr)?, normalised(alias))),
                _ => return None,
            }
        }
        // To have something twice is refused, or is a matter of names.
        let twice = |place: usize, (column, name): &(&Column, String)| {
            selected[..place].iter().any(|(other, other_name)| other.id == column.id || other_name == name)
        };
        let has_each_once = !selected.iter().enumerate().any(|(place, item)| twice(place, item));
        (has_each_once && !selected.is_empty()).then_some(selected)
    }

    /// The conditions that are joined by AND, all of them on columns of the key.
    fn conditions(&self, expr: &Expr, out: &mut Vec<ColumnPredicate>) -> Option<()> {
        match expr {
            Expr::Nested(inner) => self.conditions(inner, out),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                self.conditions(left, out)?;
                self.conditions(right, out)
            }
            Expr::BinaryOp { left, op, right } => {
                let op = compare_op(op)?;
                out.push(match self.key_column(left) {
                    Some(column) => compare(column, op, right)?,
                    None => compare(self.key_column(right)?, swapped(op), left)?,
                });
                Some(())
            }
            Expr::Between { expr, negated: false, low, high } => {
                let column = self.key_column(expr)?;
                out.push(compare(column, CompareOp::GtEq, low)?);
                out.push(compare(column, CompareOp::LtEq, high)?);
                Some(())
            }
            _ => None,
        }
    }

    /// How many rows may meet the conditions at most; nothing if nobody knows, or if many more have to be looked at to find them: only
    /// behind the last column of the key may there be more than one value.
    fn rows_at_most(&self, predicates: &[ColumnPredicate]) -> Option<u64> {
        let key = self.table.schema.key_indices();
        let values = |place: usize| {
            let column = &self.table.schema.columns[place];
            values_at_most(predicates.iter().filter(|predicate| predicate.column() == column.id))
        };
        let (last, first) = key.split_last()?;
        let is_one = first.iter().all(|place| values(*place) == Some(1));
        values(*last).filter(|_| is_one)
    }
}

/// How many whole numbers meet these conditions, or one if a single value is asked for; nothing if there is no end to it.
fn values_at_most<'a>(predicates: impl Iterator<Item = &'a ColumnPredicate>) -> Option<u64> {
    let (mut low, mut high) = (None::<i128>, None::<i128>);
    for predicate in predicates {
        let ColumnPredicate::Compare { op, value, .. } = predicate else { return None };
        if *op == CompareOp::Eq {
            return Some(1);
        }
        let value = match value {
            Datum::Int(value) => i128::from(*value),
            Datum::UInt(value) => i128::from(*value),
            _ => return None,
        };
        match op {
            CompareOp::Gt | CompareOp::GtEq => low = Some(low.map_or(value, |low| low.max(value))),
            CompareOp::Lt | CompareOp::LtEq => high = Some(high.map_or(value, |high| high.min(value))),
            CompareOp::Eq | CompareOp::NotEq => return None,
        }
    }
    u64::try_from((high? - low? + 1).max(0)).ok()
}

/// A condition on a column, if the constant is of its type: a comparison of different types follows rules of its own.
fn compare(column: &Column, op: CompareOp, value: &Expr) -> Option<ColumnPredicate> {
    let value = match (constant(value)?, &column.data_type) {
        (ScalarValue::Int64(Some(value)), data_type) => whole(value, data_type)?,
        (ScalarValue::Utf8(Some(text)), DataType::Utf8) => Datum::Text(text),
        _ => return None,
    };
    let predicate = ColumnPredicate::Compare { column: column.id, op, value };
    predicate.is_exact_on(&column.data_type).then_some(predicate)
}

fn whole(value: i64, data_type: &DataType) -> Option<Datum> {
    Some(match data_type {
        DataType::Int8 => Datum::Int(i8::try_from(value).ok()?.into()),
        DataType::Int16 => Datum::Int(i16::try_from(value).ok()?.into()),
        DataType::Int32 => Datum::Int(i32::try_from(value).ok()?.into()),
        DataType::Int64 => Datum::Int(value),
        DataType::UInt8 => Datum::UInt(u8::try_from(value).ok()?.into()),
        DataType::UInt16 => Datum::UInt(u16::try_from(value).ok()?.into()),
        DataType::UInt32 => Datum::UInt(u32::try_from(value).ok()?.into()),
        DataType::UInt64 => Datum::UInt(u64::try_from(value).ok()?),
        _ => return None,
    })
}

fn compare_op(op: &BinaryOperator) -> Option<CompareOp> {
    Some(match op {
        BinaryOperator::Eq => CompareOp::Eq,
        BinaryOperator::Lt => CompareOp::Lt,
        BinaryOperator::LtEq => CompareOp::LtEq,
        BinaryOperator::Gt => CompareOp::Gt,
        BinaryOperator::GtEq => CompareOp::GtEq,
        _ => return None,
    })
}

fn swapped(op: CompareOp) -> CompareOp {
    match op {
        CompareOp::Lt => CompareOp::Gt,
        CompareOp::LtEq => CompareOp::GtEq,
        CompareOp::Gt => CompareOp::Lt,
        CompareOp::GtEq => CompareOp::LtEq,
        CompareOp::Eq | CompareOp::NotEq => op,
    }
}
