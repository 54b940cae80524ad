//! The columns that rows are made for.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use shoal_catalog::Table;
use shoal_kernel::schema::{DEDUP_COLUMN, TS_COLUMN};

/// One of them.
#[derive(Debug, Clone)]
pub struct TargetColumn {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether a row may leave it out or give null.
    pub nullable: bool,
    /// The node fills it in where it is left out, although rows always have it in the end.
    pub filled: bool,
    /// Text takes whatever there is, and fields of objects that hold null are passed over: of schemaless tables.
    pub takes_all: bool,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Target {
    columns: Arc<Vec<TargetColumn>>,
    places: Arc<BTreeMap<String, usize>>,
}

impl Target {
    /// The columns of a table. Event tables get what `_ts` and `_dedup` lack from the node.
    pub fn of_table(table: &Table) -> Self {
        let columns = table.schema.columns.iter().map(|column| TargetColumn {
            name: column.name.clone(),
            data_type: column.data_type.clone(),
            nullable: column.nullable,
            filled: !table.schema.is_upsert() && matches!(column.name.as_str(), TS_COLUMN | DEDUP_COLUMN),
            takes_all: false,
        });
        Self::of_columns(columns.collect())
    }

    /// The columns of a schemaless table, and others behind them.
    pub fn taking_all(table: &Table, others: impl Iterator<Item = TargetColumn>) -> Self {
        let columns = Self::of_table(table).columns().to_vec();
        let columns =
            columns.into_iter().map(|column| TargetColumn { takes_all: !column.filled && column.nullable, ..column });
        Self::of_columns(columns.chain(others).collect())
    }

    /// The columns of a table's schema. A node fills in what an event table lacks.
    pub fn of_schema(schema: &Schema) -> Self {
        let columns = schema.fields().iter().map(|field| TargetColumn {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
            nullable: field.is_nullable(),
            filled: matches!(field.name().as_str(), TS_COLUMN | DEDUP_COLUMN),
            takes_all: false,
        });
        Self::of_columns(columns.collect())
    }

    /// These columns, in this order.
    pub fn of_columns(columns: Vec<TargetColumn>) -> Self {
        let places = columns.iter().enumerate().map(|(place, column)| (column.name.clone(), place)).collect();
        Self { columns: Arc::new(columns), places: Arc::new(places) }
    }

    /// In the table's order.
    pub fn columns(&self) -> &[TargetColumn] {
        &self.columns
    }

    /// The place of a column. Names of unquoted columns are lower case, so a name that differs in case alone is meant too.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).or_else(|| self.places.get(&name.to_lowercase())).copied()
    }

    /// What to say about a name that no column has.
    pub fn unknown(&self, name: &str) -> String {
        let help = shoal_kernel::suggest::help(name, self.columns.iter().map(|column| column.name.as_str()));
        format!("the table has no column '{name}'; {help}")
    }

    /// The Arrow schema of these columns; those the node fills in may be null on the way there.
    pub fn schema(&self) -> SchemaRef {
        let field = |column: &TargetColumn| {
            Field::new(&column.name, column.data_type.clone(), column.nullable || column.filled)
        };
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }
}
