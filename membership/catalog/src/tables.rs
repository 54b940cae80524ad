//! Making, changing and dropping tables.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_kernel::durability::FSYNC_INTERVAL_MS_MAX;
use shoal_kernel::limits::{COLUMNS_PER_TABLE_MAX, KEY_BYTES_MAX, PARTITIONS_PER_TABLE_MAX};
use shoal_kernel::schema::{DEDUP_COLUMN, TOMBSTONE_COLUMN, TS_COLUMN, VERSION_COLUMN};
use shoal_kernel::{ChangeRefused, ColumnId, Epoch, KeyRange, PartitionId, TableId, TableKind, TableSchema};

use crate::command::{AlteredTable, CatalogError, Effect, NewTable};
use crate::places::Load;
use crate::state::{Catalog, Partition, PartitionBounds, Partitioning, SplitLimits, Table};
use crate::ttl::check_ttl;
use crate::windows::check_windows;

const FSYNC_INTERVAL_MAX: Duration = Duration::from_millis(FSYNC_INTERVAL_MS_MAX as u64);

/// Replicas of one partition.
pub const REPLICATION_FACTOR_MAX: u32 = 9;

/// Bytes of the name of a table or column.
pub const NAME_BYTES_MAX: usize = 255;

/// The least that `partition_bytes_max` may be: a partition costs a directory, a log and two actors on each of its nodes.
const PARTITION_BYTES_MAX_MIN: u64 = 1 << 20;
/// The least that `partition_rows_max` may be.
const PARTITION_ROWS_MAX_MIN: u64 = 100;

impl Catalog {
    pub(crate) fn create_table(&mut self, new: NewTable) -> Result<Vec<Effect>, CatalogError> {
        if self.table(&new.name).is_some() {
            return if new.if_not_exists { Ok(Vec::new()) } else { Err(CatalogError::TableExists(new.name)) };
        }
        let bounds = check(&new)?;
        let factor = new.options.replication_factor;
        if self.active_nodes().next().is_none() {
            return Err(invalid("no active node could hold the table"));
        }

        // From here on nothing fails: the state changes whole or not at all.
        let table = TableId(self.draw_id());
        let mut effects = vec![Effect::Table(table)];
        let partitions = self.place_partitions(table, bounds, factor, &mut effects)?;
        let NewTable { name, schema, partitioning, options, .. } = new;
        self.tables.insert(table, Table { id: table, name, schema, partitioning, options, cutoff: None, partitions });
        Ok(effects)
    }

    pub(crate) fn drop_table(&mut self, name: String, if_exists: bool) -> Result<Vec<Effect>, CatalogError> {
        let Some(id) = self.table(&name).map(|table| table.id) else {
            return if if_exists { Ok(Vec::new()) } else { Err(CatalogError::UnknownTable(name)) };
        };
        let mut effects = vec![Effect::Table(id)];
        if let Some(table) = self.tables.remove(&id) {
            table.partitions.into_iter().for_each(|id| self.drop_partition(id, &mut effects));
        }
        Ok(effects)
    }

    /// Makes partitions and places their replicas. Fails only before anything has changed.
    pub(crate) fn place_partitions(
        &mut self,
        table: TableId,
        bounds: Vec<PartitionBounds>,
        replication_factor: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<PartitionId>, CatalogError> {
        let factor = usize::try_from(replication_factor).unwrap_or(usize::MAX);
        let empty = Load::default();
        let mut places = self.keep_places(&empty);
        if places.is_empty() {
            return Err(invalid("no active node could hold the table"));
        }
        let mut partitions = Vec::with_capacity(bounds.len());
        for bounds in bounds {
            let id = PartitionId(self.draw_id());
            let replicas = places.take(factor);
            let partition = Partition {
                id,
                table,
                bounds,
                epoch: Epoch(1),
                replicas,
                previous_voters: Vec::new(),
                previous_needed: 0,
                settled: true,
                parent: None,
                root: id,
                purged: Default::default(),
                changed: 0,
            };
            partition.replicas.iter().for_each(|replica| self.held.add(replica.node));
            self.partitions.insert(id, partition);
            partitions.push(id);
            effects.push(Effect::Partition(id));
        }
        Ok(partitions)
    }

    /// Takes a partition out of the map, but not out of its table's list.
    pub(crate) fn drop_partition(&mut self, id: PartitionId, effects: &mut Vec<Effect>) {
        if let Some(partition) = self.partitions.remove(&id) {
            partition.replicas.iter().for_each(|replica| self.held.remove(replica.node));
            self.forget_ancestors(partition.parent);
        }
        effects.push(Effect::Partition(id));
    }

    pub(crate) fn alter_table(&mut self, altered: AlteredTable) -> Result<Vec<Effect>, CatalogError> {
        let AlteredTable { table: id, changes, write_level, read_level, ttl, schemaless, partition_size_hint, .. } =
            altered;
        let table = self.tables.get_mut(&id).ok_or(CatalogError::TableGone(id))?;
        let mut schema = table.schema.clone();
        for change in &changes {
            schema = schema.changed(change).map_err(|refused| match refused {
                ChangeRefused::Stale => CatalogError::StaleSchema(table.name.clone()),
                ChangeRefused::Invalid(why) => CatalogError::Invalid(why),
            })?;
        }
        for column in &schema.columns {
            check_name("column", &column.name)?;
        }
        // Rows are spread by the values of these, whatever the table's kind.
        let spreads_by = |id: &ColumnId| schema.index_of(*id).is_some();
        if !table.partitioning.columns().iter().all(spreads_by) {
            return Err(invalid("a column of the partition key cannot be dropped or given another type"));
        }
        let mut options = table.options.clone();
        options.write_level = write_level.unwrap_or(options.write_level);
        options.read_level = read_level.unwrap_or(options.read_level);
        if let Some(change) = ttl {
            options.ttl = table.changed_ttl(change)?;
        }
        options.schemaless = schemaless.unwrap_or(options.schemaless);
        check_schemaless(&schema, options.schemaless)?;
        if let Some(width) = partition_size_hint {
            if options.partition_size_hint.is_none() {
                let why = "was made with partitions over all keys; they cannot be cut into windows";
                return Err(invalid(format!("'{}' {why}", table.name)));
            }
            options.partition_size_hint = Some(width);
            check_windows(width, &table.partitioning, &schema)?;
        }
        let SplitLimits { partition_bytes_max, partition_rows_max } = &mut options.split;
        *partition_bytes_max = altered.partition_bytes_max.unwrap_or(*partition_bytes_max);
        *partition_rows_max = altered.partition_rows_max.unwrap_or(*partition_rows_max);
        check_split_limits(&options.split)?;
        if schema == table.schema && options == table.options {
            return Ok(Vec::new());
        }
        if schema != table.schema {
            schema.version = table.schema.version + 1;
        }
        (table.schema, table.options) = (schema, options);
        Ok(vec![Effect::Table(id)])
    }

    pub(crate) fn rename_table(&mut self, id: TableId, to: String) -> Result<Vec<Effect>, CatalogError> {
        check_name("table", &to)?;
        let named = self.table(&to).map(|table| table.id);
        let table = self.tables.get_mut(&id).ok_or(CatalogError::TableGone(id))?;
        match named {
            Some(named) if named == id => return Ok(Vec::new()),
            Some(_) => return Err(CatalogError::TableExists(to)),
            None => table.name = to,
        }
        Ok(vec![Effect::Table(id)])
    }

    pub(crate) fn draw_id(&mut self) -> u64 {
        // Zero is kept free: it reads as "none" in logs and on the wire.
        let id = self.next_id.max(1);
        self.next_id = id + 1;
        id
    }
}

/// Checks a definition whole and gives the bounds of its partitions, in order.
fn check(new: &NewTable) -> Result<Vec<PartitionBounds>, CatalogError> {
    check_name("table", &new.name)?;
    check_schema(&new.schema)?;
    check_partition_key(&new.schema, new.partitioning.columns())?;
    if !(1..=REPLICATION_FACTOR_MAX).contains(&new.options.replication_factor) {
        return Err(invalid(format!(
            "replication_factor is {}, it must be from 1 to {REPLICATION_FACTOR_MAX}",
            new.options.replication_factor
        )));
    }
    if new.options.fsync.interval().is_some_and(|pause| pause.is_zero() || pause > FSYNC_INTERVAL_MAX) {
        return Err(invalid(format!("fsync_interval_ms must be from 1 to {FSYNC_INTERVAL_MS_MAX}")));
    }
    check_schemaless(&new.schema, new.options.schemaless)?;
    check_split_limits(&new.options.split)?;
    if let Some(ttl) = &new.options.ttl {
        check_ttl(&new.schema, ttl)?;
    }
    if let Some(width) = new.options.partition_size_hint {
        check_windows(width, &new.partitioning, &new.schema)?;
        return match new.split_points.is_empty() {
            true => Ok(Vec::new()),
            false => Err(invalid("a table has split points or a partition_size_hint, not both")),
        };
    }
    match &new.partitioning {
        Partitioning::Range { .. } => ranges(&new.split_points),
        Partitioning::Value { .. } if new.split_points.is_empty() => Ok(Vec::new()),
        Partitioning::Value { .. } => Err(invalid("split points are for range partitioning only")),
        Partitioning::Hash { buckets, .. } => {
            if !new.split_points.is_empty() {
                return Err(invalid("split points are for range partitioning only"));
            }
            check_partition_count(u64::from(*buckets))?;
            Ok((0..*buckets).map(PartitionBounds::Bucket).collect())
        }
    }
}

fn check_schema(schema: &TableSchema) -> Result<(), CatalogError> {
    if schema.columns.is_empty() {
        return Err(invalid("a table needs at least one column"));
    }
    if schema.columns.len() > COLUMNS_PER_TABLE_MAX {
        return Err(invalid(format!(
            "{} columns are more than the {COLUMNS_PER_TABLE_MAX} a table may have",
            schema.columns.len()
        )));
    }
    let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for column in &schema.columns {
        check_name("column", &column.name)?;
        if [VERSION_COLUMN, TOMBSTONE_COLUMN].contains(&column.name.as_str()) {
            return Err(invalid(format!("the column name '{}' is reserved", column.name)));
        }
        if !names.insert(&column.name) {
            return Err(invalid(format!("column '{}' is named twice", column.name)));
        }
        if !ids.insert(column.id) {
            return Err(invalid(format!("two columns have the number {}", column.id.0)));
        }
    }
    match &schema.kind {
        TableKind::Upsert { primary_key } => {
            check_key("the primary key", schema, primary_key)?;
            let nullable =
                primary_key.iter().filter_map(|id| schema.index_of(*id)).find(|at| schema.columns[*at].nullable);
            if let Some(at) = nullable {
                return Err(invalid(format!(
                    "column '{}' is part of the primary key and must be NOT NULL",
                    schema.columns[at].name
                )));
            }
        }
        TableKind::Event => {
            if let Some(missing) = [TS_COLUMN, DEDUP_COLUMN].iter().find(|name| schema.column(name).is_none()) {
                return Err(invalid(format!("an event table needs the column '{missing}'")));
            }
        }
    }
    Ok(())
}

fn check_schemaless(schema: &TableSchema, schemaless: bool) -> Result<(), CatalogError> {
    match schemaless && schema.is_upsert() {
        true => Err(invalid("only tables of events, those without a primary key, can be schemaless")),
        false => Ok(()),
    }
}

fn check_split_limits(limits: &SplitLimits) -> Result<(), CatalogError> {
    let SplitLimits { partition_bytes_max: bytes, partition_rows_max: rows } = *limits;
    if bytes < PARTITION_BYTES_MAX_MIN {
        return Err(invalid(format!("partition_bytes_max must be at least {PARTITION_BYTES_MAX_MIN}, not {bytes}")));
    }
    match rows < PARTITION_ROWS_MAX_MIN {
        true => Err(invalid(format!("partition_rows_max must be at least {PARTITION_ROWS_MAX_MIN}, not {rows}"))),
        false => Ok(()),
    }
}

fn check_partition_key(schema: &TableSchema, columns: &[ColumnId]) -> Result<(), CatalogError> {
    check_key("the partition key", schema, columns)?;
    // Two versions of one row must meet in one partition. Event rows never change, so any of their columns will do.
    if let TableKind::Upsert { primary_key } = &schema.kind
        && let Some(outside) = columns.iter().find(|id| !primary_key.contains(id))
    {
        let name = schema.index_of(*outside).map_or("?", |at| schema.columns[at].name.as_str());
        return Err(invalid(format!("PARTITION BY column '{name}' is not part of the primary key")));
    }
    Ok(())
}

fn check_key(what: &str, schema: &TableSchema, columns: &[ColumnId]) -> Result<(), CatalogError> {
    if columns.is_empty() {
        return Err(invalid(format!("{what} needs at least one column")));
    }
    let mut seen = BTreeSet::new();
    for id in columns {
        let Some(at) = schema.index_of(*id) else {
            return Err(invalid(format!("{what} names a column that the table does not have")));
        };
        if !seen.insert(id) {
            return Err(invalid(format!("{what} names column '{}' twice", schema.columns[at].name)));
        }
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<(), CatalogError> {
    if name.is_empty() {
        return Err(invalid(format!("a {what} needs a name")));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(invalid(format!(
            "the name of a {what} may have {NAME_BYTES_MAX} bytes, this one has {}",
            name.len()
        )));
    }
    if name.chars().any(char::is_control) {
        return Err(invalid(format!("the name of a {what} must not hold control characters")));
    }
    Ok(())
}

pub(crate) fn check_partition_count(count: u64) -> Result<(), CatalogError> {
    if (1..=u64::from(PARTITIONS_PER_TABLE_MAX)).contains(&count) {
        return Ok(());
    }
    Err(invalid(format!("a table has from 1 to {PARTITIONS_PER_TABLE_MAX} partitions, not {count}")))
}

/// Ranges between split points: ascending, without repetition, the first open below and the last open above.
fn ranges(split_points: &[Vec<u8>]) -> Result<Vec<PartitionBounds>, CatalogError> {
    check_partition_count(split_points.len() as u64 + 1)?;
    if split_points.windows(2).any(|pair| pair[0] >= pair[1]) || split_points.first().is_some_and(Vec::is_empty) {
        return Err(invalid("split points must be ascending and different"));
    }
    if split_points.iter().any(|point| point.len() > KEY_BYTES_MAX) {
        return Err(invalid(format!("a split point may have {KEY_BYTES_MAX} bytes")));
    }
    let starts = std::iter::once(Vec::new()).chain(split_points.iter().cloned());
    let ends = split_points.iter().cloned().map(Some).chain(std::iter::once(None));
    Ok(starts.zip(ends).map(|(start, end)| PartitionBounds::Range(KeyRange { start, end })).collect())
}

pub(crate) fn invalid(why: impl Into<String>) -> CatalogError {
    CatalogError::Invalid(why.into())
}
