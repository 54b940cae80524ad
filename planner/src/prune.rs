//! Which partitions of a table can hold rows that a query wants.

use shoal_catalog::{Catalog, Partition, PartitionBounds, Partitioning, Table};
use shoal_kernel::key::partition_hash;
use shoal_kernel::{ColumnId, ColumnPredicate, CompareOp, Datum, KeyRange};

/// Keys looked up one by one in a hash-partitioned table; with more of them every partition is read.
const PRUNE_KEYS_MAX: usize = 1024;

/// The partitions that may hold a row that meets all predicates, in the table's order. Never leaves out one that does.
pub(crate) fn prune<'a>(catalog: &'a Catalog, table: &'a Table, predicates: &[ColumnPredicate]) -> Vec<&'a Partition> {
    let all = catalog.partitions_of(table);
    match &table.partitioning {
        Partitioning::Range { columns } | Partitioning::Value { columns } => {
            let Some(first) = columns.first() else { return all.collect() };
            let wanted: Vec<Vec<KeyRange>> =
                predicates.iter().filter(|predicate| predicate.column() == *first).filter_map(ranges).collect();
            all.filter(|partition| match &partition.bounds {
                PartitionBounds::Range(bounds) => {
                    wanted.iter().all(|ranges| ranges.iter().any(|range| range.overlaps(bounds)))
                }
                PartitionBounds::Bucket(_) => true,
            })
            .collect()
        }
        Partitioning::Hash { columns, buckets } => match keys(columns, predicates) {
            Some(keys) => {
                let modulus = u64::from((*buckets).max(1));
                let wanted: Vec<u64> = keys.iter().map(|key| partition_hash(key) % modulus).collect();
                all.filter(|partition| match &partition.bounds {
                    PartitionBounds::Bucket(bucket) => wanted.contains(&u64::from(*bucket)),
                    PartitionBounds::Range(_) => true,
                })
                .collect()
            }
            None => all.collect(),
        },
    }
}

/// The encoded keys whose first column can meet the predicate; `None` if it says nothing about order.
fn ranges(predicate: &ColumnPredicate) -> Option<Vec<KeyRange>> {
    let from = |start: Vec<u8>| KeyRange { start, end: None };
    let to = |end: Option<Vec<u8>>| KeyRange { start: Datum::Null.encode(), end };
    Some(match predicate {
        ColumnPredicate::Compare { op, value, .. } => {
            let encoded = value.encode();
            vec![match op {
                CompareOp::Eq => prefix(encoded),
                CompareOp::Lt => to(Some(encoded)),
                CompareOp::LtEq => to(after_prefix(encoded)),
                CompareOp::Gt => from(after_prefix(encoded)?),
                CompareOp::GtEq => from(encoded),
                CompareOp::NotEq => return None,
            }]
        }
        ColumnPredicate::In { values, .. } => values.iter().map(|value| prefix(value.encode())).collect(),
        ColumnPredicate::IsNull { .. } => vec![prefix(Datum::Null.encode())],
        ColumnPredicate::IsNotNull { .. } | ColumnPredicate::Like { .. } => {
            vec![from(after_prefix(Datum::Null.encode())?)]
        }
    })
}

/// Every key that starts with these bytes.
fn prefix(start: Vec<u8>) -> KeyRange {
    KeyRange { end: after_prefix(start.clone()), start }
}

/// The first key above all that start with these bytes.
fn after_prefix(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    while let Some(last) = bytes.pop() {
        if let Some(next) = last.checked_add(1) {
            bytes.push(next);
            return Some(bytes);
        }
    }
    None
}

/// The encoded partition keys that can meet the predicates, if equalities fix every column.
fn keys(columns: &[ColumnId], predicates: &[ColumnPredicate]) -> Option<Vec<Vec<u8>>> {
    let mut keys: Vec<Vec<u8>> = vec![Vec::new()];
    for column in columns {
        let values =
            predicates.iter().filter(|predicate| predicate.column() == *column).find_map(
                |predicate| match predicate {
                    ColumnPredicate::Compare { op: CompareOp::Eq, value, .. } => Some(std::slice::from_ref(value)),
                    ColumnPredicate::In { values, .. } => Some(values.as_slice()),
                    _ => None,
                },
            )?;
        if keys.len().saturating_mul(values.len()) > PRUNE_KEYS_MAX {
            return None;
        }
        keys = keys
            .iter()
            .flat_map(|key| {
                values.iter().map(|value| {
                    let mut key = key.clone();
                    value.encode_into(&mut key);
                    key
                })
            })
            .collect();
    }
    Some(keys)
}
