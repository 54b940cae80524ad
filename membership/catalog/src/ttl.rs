//! How long tables keep their rows, and the cut-offs that follow from it.

use std::time::Duration;

use arrow_schema::{DataType, TimeUnit};
use shoal_kernel::schema::TS_COLUMN;
use shoal_kernel::ttl::{TTL_MICROS_MAX, TTL_MICROS_MIN};
use shoal_kernel::{Column, Cutoff, TableId, TableKind, TableSchema, Ttl};

use crate::command::{CatalogError, Command, Effect, TtlChange};
use crate::state::{Catalog, Table};
use crate::tables::invalid;

impl Table {
    /// The columns that may say how old a row is: an event's `_ts`, the timestamps of a primary key.
    pub fn time_columns(schema: &TableSchema) -> Vec<&Column> {
        let is_time = |column: &&Column| matches!(column.data_type, DataType::Timestamp(TimeUnit::Microsecond, _));
        let keys = schema.key_indices();
        let columns = keys.iter().map(|place| &schema.columns[*place]).filter(is_time);
        match schema.kind {
            TableKind::Upsert { .. } => columns.collect(),
            TableKind::Event => columns.filter(|column| column.name == TS_COLUMN).collect(),
        }
    }

    /// How long rows are kept after a change.
    pub(crate) fn changed_ttl(&self, change: TtlChange) -> Result<Option<Ttl>, CatalogError> {
        let TtlChange::Keep(ttl) = change else { return Ok(None) };
        check_ttl(&self.schema, &ttl)?;
        match self.cutoff.filter(|cutoff| cutoff.column != ttl.column) {
            Some(cutoff) => {
                let place = self.schema.index_of(cutoff.column);
                let name = place.map_or("?", |place| self.schema.columns[place].name.as_str());
                Err(invalid(format!("rows of '{}' have been dropped by the time in '{name}' already", self.name)))
            }
            None => Ok(Some(ttl)),
        }
    }
}

impl Catalog {
    pub(crate) fn expire(&mut self, id: TableId, cutoff: Cutoff) -> Result<Vec<Effect>, CatalogError> {
        let table = self.tables.get_mut(&id).ok_or(CatalogError::TableGone(id))?;
        if table.options.ttl.is_none_or(|ttl| ttl.column != cutoff.column) {
            return Ok(Vec::new());
        }
        let next = table.cutoff.map_or(cutoff, |known| known.later(cutoff));
        match table.cutoff.replace(next) == Some(next) {
            true => Ok(Vec::new()),
            false => Ok(vec![Effect::Table(id)]),
        }
    }

    /// The cut-offs that are due at a time which has certainly come, `skew` before what clocks say.
    pub fn wanted_cutoffs(&self, clocks_micros: u64, skew: Duration) -> Vec<Command> {
        let now = clocks_micros.saturating_sub(u64::try_from(skew.as_micros()).unwrap_or(u64::MAX));
        let due = |table: &Table| {
            let cutoff = table.options.ttl?.cutoff(now);
            let is_news = table.cutoff.is_none_or(|known| known.micros < cutoff.micros);
            is_news.then_some(Command::Expire { table: table.id, cutoff })
        };
        self.tables.values().filter_map(due).collect()
    }
}

pub(crate) fn check_ttl(schema: &TableSchema, ttl: &Ttl) -> Result<(), CatalogError> {
    if !(TTL_MICROS_MIN..=TTL_MICROS_MAX).contains(&ttl.micros) {
        return Err(invalid(format!("ttl must be from {TTL_MICROS_MIN} to {TTL_MICROS_MAX} microseconds")));
    }
    match Table::time_columns(schema).iter().any(|column| column.id == ttl.column) {
        true => Ok(()),
        false => Err(invalid("the column that ttl goes by must be a TIMESTAMP of the table's key")),
    }
}
