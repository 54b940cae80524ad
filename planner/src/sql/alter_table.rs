//! `ALTER TABLE`: parsed here, and made into changes of a catalog's table.

use arrow::datatypes::DataType;
use shoal_catalog::{AlteredTable, Catalog, Table, TtlChange};
use shoal_kernel::limits::COLUMNS_PER_TABLE_MAX;
use shoal_kernel::{ChangeRefused, Column, ColumnId, Error, ErrorCode, Result, SchemaChange, TableSchema, suggest};
use sqlparser::ast::{
    self, AlterColumnOperation, AlterTableOperation, ColumnDef, ColumnOption, Ident, RenameTableNameKind, Spanned,
};
use sqlparser::tokenizer::Span;

use super::options::Settings;
use super::text::at;
use super::{TableName, normalised, table_name, types};
use crate::unknown::unknown_table;

/// What the statement asks for, with names as they stand in the text.
#[derive(Debug)]
pub(crate) struct Alteration {
    table: TableName,
    if_exists: bool,
    wishes: Vec<Wish>,
}

#[derive(Debug)]
enum Wish {
    Add { name: Ident, data_type: DataType, if_not_exists: bool },
    Drop { name: Ident, if_exists: bool },
    Rename { from: Ident, to: Ident },
    Widen { name: Ident, data_type: DataType, span: Span },
    Set(Settings),
}

/// Takes the statement apart.
pub(super) fn parse(statement: ast::AlterTable) -> Result<Alteration> {
    let table = table_name(&statement.name)?;
    if statement.only || statement.location.is_some() || statement.on_cluster.is_some() {
        return Err(refused("ONLY, LOCATION and ON CLUSTER do not exist", table.span));
    }
    let mut wishes = Vec::new();
    for operation in statement.operations {
        read(operation, &mut wishes)?;
    }
    Ok(Alteration { table, if_exists: statement.if_exists, wishes })
}

fn read(operation: AlterTableOperation, wishes: &mut Vec<Wish>) -> Result<()> {
    let span = operation.span();
    match operation {
        AlterTableOperation::AddColumn { if_not_exists, column_def, column_position, .. } => {
            if column_position.is_some() {
                return Err(refused("a new column stands behind the others", column_def.name.span));
            }
            let data_type = new_column(&column_def)?;
            wishes.push(Wish::Add { name: column_def.name, data_type, if_not_exists });
        }
        AlterTableOperation::DropColumn { column_names, if_exists, drop_behavior, .. } => {
            if drop_behavior == Some(ast::DropBehavior::Cascade) {
                return Err(refused("nothing hangs on a column, so DROP COLUMN has no CASCADE", span));
            }
            wishes.extend(column_names.into_iter().map(|name| Wish::Drop { name, if_exists }));
        }
        AlterTableOperation::RenameColumn { old_column_name: from, new_column_name: to } => {
            wishes.push(Wish::Rename { from, to });
        }
        AlterTableOperation::AlterColumn { column_name: name, op } => match op {
            AlterColumnOperation::SetDataType { data_type, using: None, .. } => {
                let data_type = types::arrow_type(&data_type).map_err(|error| at(error, name.span))?;
                let span = name.span;
                wishes.push(Wish::Widen { name, data_type, span });
            }
            AlterColumnOperation::SetDataType { using: Some(using), .. } => {
                return Err(refused("a column changes its type without USING", using.span()));
            }
            other => return Err(refused(&format!("ALTER COLUMN does not do '{other}'"), name.span)),
        },
        AlterTableOperation::SetOptionsParens { options } => {
            wishes.push(Wish::Set(Settings::parse_changes(&options)?));
        }
        AlterTableOperation::RenameTable { table_name } => {
            let (RenameTableNameKind::As(name) | RenameTableNameKind::To(name)) = table_name;
            return Err(refused("tables keep their names", name.span()));
        }
        other => return Err(refused(&format!("ALTER TABLE does not do '{other}'"), span)),
    }
    Ok(())
}

/// The type of a column to be added.
fn new_column(definition: &ColumnDef) -> Result<DataType> {
    for option in &definition.options {
        match &option.option {
            ColumnOption::Null => {}
            ColumnOption::NotNull => {
                let message = format!("the new column '{}' is NULL in the rows that are there", definition.name);
                let error = Error::new(ErrorCode::InvalidStatement, message).with_help("leave NOT NULL out");
                return Err(at(error, definition.name.span));
            }
            other => {
                let message = format!("'{other}' of a new column is not supported");
                return Err(at(Error::new(ErrorCode::Unsupported, message), definition.name.span));
            }
        }
    }
    types::arrow_type(&definition.data_type).map_err(|error| at(error, definition.name.span))
}

fn refused(message: &str, span: Span) -> Error {
    let help = "ALTER TABLE adds, drops and renames columns, gives them a wider type, sets write_level, read_level, ttl, schemaless, \
                partition_size_hint, partition_bytes_max and partition_rows_max, and splits partitions";
    at(Error::new(ErrorCode::Unsupported, message).with_help(help), span)
}

impl Alteration {
    /// The changes of the catalog's table; `None` if there is nothing to change.
    ///
    /// # Errors
    /// A name means nothing, or a change is refused; the error has its place.
    pub(crate) fn resolve(&self, catalog: &Catalog) -> Result<Option<AlteredTable>> {
        let Some(table) = catalog.table(&self.table.name) else {
            return match self.if_exists {
                true => Ok(None),
                false => Err(at(unknown_table(catalog, &self.table.name), self.table.span)),
            };
        };
        let mut altered = AlteredTable::of(table.id);
        // Each wish is about what those before it have left.
        let mut schema = table.schema.clone();
        for wish in &self.wishes {
            let Some((change, span)) = wish.change(table, &schema)? else {
                if let Wish::Set(settings) = wish {
                    altered.write_level = settings.write_level.or(altered.write_level);
                    altered.read_level = settings.read_level.or(altered.read_level);
                    altered.ttl = settings.ttl_change(&table.schema)?.or(altered.ttl);
                    if settings.schemaless.is_some() {
                        altered.schemaless = Some(settings.is_schemaless(&table.schema)?);
                    }
                    altered.partition_size_hint = settings.window_width(table)?.or(altered.partition_size_hint);
                    altered.partition_bytes_max = settings.partition_bytes_max.or(altered.partition_bytes_max);
                    altered.partition_rows_max = settings.partition_rows_max.or(altered.partition_rows_max);
                    let ttl = match altered.ttl {
                        Some(TtlChange::Keep(ttl)) => Some(ttl),
                        Some(TtlChange::Forever) => None,
                        None => table.options.ttl,
                    };
                    let width = altered.partition_size_hint.or(table.options.partition_size_hint);
                    settings.check_windows_kept(ttl, width, &table.partitioning)?;
                }
                continue;
            };
            schema = schema.changed(&change).map_err(|refused| {
                let ChangeRefused::Invalid(why) = refused else {
                    return Error::internal("a change was made for another version of the schema");
                };
                at(Error::new(ErrorCode::InvalidStatement, why), span)
            })?;
            altered.changes.push(change);
        }
        if schema == table.schema {
            // A column that gets its own name, say.
            altered.changes.clear();
        }
        let keeps_ttl = altered.ttl.is_none_or(|change| match change {
            TtlChange::Keep(ttl) => table.options.ttl == Some(ttl),
            TtlChange::Forever => table.options.ttl.is_none(),
        });
        let keeps_level = altered.write_level.is_none_or(|level| level == table.options.write_level)
            && altered.read_level.is_none_or(|level| level == table.options.read_level);
        let keeps_kind = altered.schemaless.is_none_or(|schemaless| schemaless == table.options.schemaless);
        let keeps_width =
            altered.partition_size_hint.is_none() || altered.partition_size_hint == table.options.partition_size_hint;
        let limits = table.options.split;
        let keeps_limits = altered.partition_bytes_max.is_none_or(|bytes| bytes == limits.partition_bytes_max)
            && altered.partition_rows_max.is_none_or(|rows| rows == limits.partition_rows_max);
        let keeps_settings = keeps_level && keeps_ttl && keeps_kind && keeps_width && keeps_limits;
        let is_idle = altered.changes.is_empty() && keeps_settings;
        Ok((!is_idle).then_some(altered))
    }
}

impl Wish {
    fn change(&self, table: &Table, schema: &TableSchema) -> Result<Option<(SchemaChange, Span)>> {
        let find = |ident: &Ident| find(table, schema, ident);
        Ok(match self {
            Self::Add { name, if_not_exists, .. } if *if_not_exists && schema.column(&normalised(name)).is_some() => {
                None
            }
            Self::Add { name, data_type, .. } => {
                if schema.columns.len() >= COLUMNS_PER_TABLE_MAX {
                    let message = format!("a table has at most {COLUMNS_PER_TABLE_MAX} columns");
                    return Err(at(Error::new(ErrorCode::LimitExceeded, message), name.span));
                }
                let column = Column {
                    id: schema.next_column,
                    name: normalised(name),
                    data_type: data_type.clone(),
                    nullable: true,
                };
                Some((SchemaChange::Add(column), name.span))
            }
            Self::Drop { name, if_exists } if *if_exists && schema.column(&normalised(name)).is_none() => None,
            Self::Drop { name, .. } => Some((SchemaChange::Drop(find(name)?.id), name.span)),
            Self::Rename { from, to } => {
                Some((SchemaChange::Rename { column: find(from)?.id, to: normalised(to) }, to.span))
            }
            Self::Widen { name, data_type, span } => {
                let column = find(name)?;
                if column.data_type == *data_type {
                    return Ok(None);
                }
                let (column, into): (ColumnId, ColumnId) = (column.id, schema.next_column);
                Some((SchemaChange::Widen { column, into, data_type: data_type.clone() }, *span))
            }
            Self::Set(_) => None,
        })
    }
}

fn find<'a>(table: &Table, schema: &'a TableSchema, ident: &Ident) -> Result<&'a Column> {
    let name = normalised(ident);
    schema.column(&name).ok_or_else(|| {
        let message = format!("there is no column '{name}' in '{}'", table.name);
        let error = at(Error::new(ErrorCode::UnknownColumn, message), ident.span);
        match suggest::closest(&name, schema.columns.iter().map(|column| column.name.as_str())) {
            Some(near) => error.with_help(format!("did you mean '{near}'?")),
            None => error,
        }
    })
}
