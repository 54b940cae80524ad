//! SHOW and DESCRIBE: the catalog as rows.

use arrow::temporal_conversions::timestamp_us_to_datetime;
use shoal_catalog::{Catalog, PartitionBounds, Partitioning, ReplicaState, Table, WindowUnit};
use shoal_kernel::ttl::show_duration;
use shoal_kernel::{Cutoff, Result};

use crate::constant::text_query;
use crate::error::error_from_datafusion;
use crate::graph::FragmentGraph;
use crate::sql::{TableName, at};
use crate::unknown::unknown_table;

/// `SHOW TABLES`.
pub(crate) fn tables(catalog: &Catalog) -> Result<FragmentGraph> {
    let mut tables: Vec<&Table> = catalog.tables.values().collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    let column = |value: fn(&Table) -> String| tables.iter().map(|table| Some(value(table))).collect();
    let columns = vec![
        column(|table| table.name.clone()),
        column(|table| kind(table).to_owned()),
        column(partitioning),
        column(|table| table.partitions.len().to_string()),
        column(|table| table.options.replication_factor.to_string()),
        column(|table| table.options.write_level.to_string()),
        column(|table| table.options.read_level.to_string()),
        column(|table| table.options.fsync.to_string()),
        tables.iter().map(|table| ttl(table)).collect(),
        tables.iter().map(|table| table.cutoff.and_then(kept_from)).collect(),
    ];
    let names = [
        "table_name",
        "kind",
        "partitioned_by",
        "partitions",
        "replication_factor",
        "write_level",
        "read_level",
        "fsync",
        "ttl",
        "kept_from",
    ];
    text_query(&names, columns).map_err(error_from_datafusion)
}

/// `DESCRIBE`.
pub(crate) fn columns(catalog: &Catalog, name: &TableName) -> Result<FragmentGraph> {
    let table = find(catalog, name)?;
    let keys = table.schema.key_indices();
    let fields = || table.schema.columns.iter().enumerate();
    let columns = vec![
        fields().map(|(_, column)| Some(column.name.clone())).collect(),
        fields().map(|(_, column)| Some(column.data_type.to_string())).collect(),
        fields().map(|(_, column)| Some(if column.nullable { "YES" } else { "NO" }.to_owned())).collect(),
        fields().map(|(place, _)| keys.iter().position(|key| *key == place).map(|at| (at + 1).to_string())).collect(),
    ];
    text_query(&["column_name", "data_type", "is_nullable", "key_position"], columns).map_err(error_from_datafusion)
}

/// `SHOW PARTITIONS`.
pub(crate) fn partitions(catalog: &Catalog, name: &TableName) -> Result<FragmentGraph> {
    let table = find(catalog, name)?;
    let all = || catalog.partitions_of(table);
    let columns = vec![
        all().map(|partition| Some(partition.id.to_string())).collect(),
        all()
            .map(|partition| {
                Some(match &partition.bounds {
                    PartitionBounds::Range(range) => format!("{range:?}"),
                    PartitionBounds::Bucket(bucket) => format!("bucket {bucket}"),
                })
            })
            .collect(),
        all().map(|partition| Some(partition.epoch.to_string())).collect(),
        all()
            .map(|partition| {
                let nodes = partition.replicas.iter().map(|replica| match replica.state {
                    ReplicaState::Voting => replica.node.to_string(),
                    ReplicaState::Joining => format!("{} (joining)", replica.node),
                    ReplicaState::Leaving => format!("{} (leaving)", replica.node),
                });
                Some(nodes.collect::<Vec<_>>().join(", "))
            })
            .collect(),
    ];
    text_query(&["partition", "bounds", "epoch", "replicas"], columns).map_err(error_from_datafusion)
}

fn find<'a>(catalog: &'a Catalog, name: &TableName) -> Result<&'a Table> {
    catalog.table(&name.name).ok_or_else(|| at(unknown_table(catalog, &name.name), name.span))
}

fn partitioning(table: &Table) -> String {
    let names: Vec<_> = table
        .partitioning
        .columns()
        .iter()
        .filter_map(|id| table.schema.index_of(*id))
        .map(|place| table.schema.columns[place].name.as_str())
        .collect();
    let kind = match table.partitioning {
        Partitioning::Range { .. } => "RANGE",
        Partitioning::Hash { .. } => "HASH",
        Partitioning::Value { .. } => "VALUE",
    };
    let width = table.options.partition_size_hint.map_or_else(String::new, |width| {
        let unit = table.window_column().and_then(|column| WindowUnit::of(&column.data_type));
        let width = match unit {
            Some(WindowUnit::Microsecond) => show_duration(width),
            Some(WindowUnit::Day) => format!("{width}d"),
            Some(WindowUnit::Number) | None => width.to_string(),
        };
        format!(" in windows of {width}")
    });
    format!("{kind}({}){width}", names.join(", "))
}

fn kind(table: &Table) -> &'static str {
    match (table.schema.is_upsert(), table.options.schemaless) {
        (true, _) => "upsert",
        (false, false) => "event",
        (false, true) => "event, schemaless",
    }
}

/// How long rows are kept, and by the time in which column.
fn ttl(table: &Table) -> Option<String> {
    let ttl = table.options.ttl?;
    let name = table.schema.index_of(ttl.column).map_or("?", |place| table.schema.columns[place].name.as_str());
    Some(format!("{ttl} ({name})"))
}

/// The first time that has not been dropped.
fn kept_from(cutoff: Cutoff) -> Option<String> {
    timestamp_us_to_datetime(cutoff.micros).map(|time| format!("{time:?}"))
}
