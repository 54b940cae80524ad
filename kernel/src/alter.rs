//! Changes of a table's schema, one by one. Pure: who agrees on them, and who follows, is decided elsewhere.

use serde::{Deserialize, Serialize};

use crate::limits::{COLUMNS_PER_TABLE_MAX, DROPPED_FORMS_MAX, STORED_COLUMNS_PER_TABLE_MAX};
use crate::schema::{
    Column, ColumnId, DEDUP_COLUMN, RetiredColumn, TOMBSTONE_COLUMN, TS_COLUMN, TableSchema, VERSION_COLUMN,
};
use crate::widen::{widens, wider_types};
use arrow_schema::DataType;

/// One change. It names columns by number, so that it means the same when it is sent twice, or after somebody else's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaChange {
    /// A new column, behind the others. Its number is the table's next free one; it may hold NULL.
    Add(Column),
    /// A column goes. What an event table has stored of it stays part of what tells its rows apart.
    Drop(ColumnId),
    /// A column gets another name.
    Rename {
        /// Which one.
        column: ColumnId,
        /// Its new name.
        to: String,
    },
    /// A column gets a type that its values can be converted to ([`widens`]).
    Widen {
        /// Which one.
        column: ColumnId,
        /// The number of its new form: the table's next free one.
        into: ColumnId,
        /// Its new type.
        data_type: DataType,
    },
}

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeRefused {
    /// It was made for a version of the schema that has been left behind: look again, and make it anew.
    Stale,
    /// It makes no sense; says why.
    Invalid(String),
}

fn invalid<T>(why: impl Into<String>) -> Result<T, ChangeRefused> {
    Err(ChangeRefused::Invalid(why.into()))
}

impl TableSchema {
    /// The schema after a change, with its version as it is: whoever makes several changes at once counts them as one. A change
    /// that has been made already changes nothing.
    ///
    /// # Errors
    /// See [`ChangeRefused`].
    pub fn changed(&self, change: &SchemaChange) -> Result<Self, ChangeRefused> {
        let mut next = self.clone();
        match change {
            SchemaChange::Add(column) => {
                if self.columns.contains(column) {
                    return Ok(next);
                }
                self.check_name(&column.name)?;
                if !column.nullable {
                    return invalid(format!("the new column '{}' must be one that may be NULL", column.name));
                }
                next.check_room()?;
                next.take_number(column.id)?;
                next.columns.push(column.clone());
            }
            SchemaChange::Drop(id) => {
                let Some(place) = self.index_of(*id) else {
                    // It has gone, unless it has a wider form now.
                    let is_wider = self.retired.iter().any(|old| old.id == *id && old.into.is_some());
                    let is_gone = *id < self.next_column && !is_wider;
                    return if is_gone { Ok(next) } else { Err(ChangeRefused::Stale) };
                };
                self.check_not_key(place, "dropped")?;
                next.retire(place, None);
            }
            SchemaChange::Rename { column, to } => {
                let Some(place) = self.index_of(*column) else { return Err(ChangeRefused::Stale) };
                if self.columns[place].name == *to {
                    return Ok(next);
                }
                self.check_name(to)?;
                if !self.is_upsert() && self.key_indices().contains(&place) {
                    return invalid(format!("column '{}' of an event table keeps its name", self.columns[place].name));
                }
                next.columns[place].name.clone_from(to);
            }
            SchemaChange::Widen { column, into, data_type } => {
                if self.retired.iter().any(|old| old.id == *column && old.into == Some(*into)) {
                    return Ok(next);
                }
                let Some(place) = self.index_of(*column) else { return Err(ChangeRefused::Stale) };
                self.check_not_key(place, "given another type")?;
                let present = &self.columns[place];
                if !widens(&present.data_type, data_type) {
                    let wider = wider_types(&present.data_type).join(", ");
                    let (name, from) = (&present.name, &present.data_type);
                    return invalid(match wider.is_empty() {
                        true => format!("column '{name}' of type {from} cannot get another type"),
                        false => format!("column '{name}' of type {from} cannot become {data_type}, only {wider}"),
                    });
                }
                next.take_number(*into)?;
                let column = Column { id: *into, data_type: data_type.clone(), ..present.clone() };
                next.retire(place, Some(*into));
                next.columns.insert(place, column);
            }
        }
        match next.columns.len() + next.stored_retired().count() > STORED_COLUMNS_PER_TABLE_MAX {
            true => invalid(format!(
                "with those that were dropped or widened the table would store more than {STORED_COLUMNS_PER_TABLE_MAX} \
                 columns"
            )),
            false => Ok(next),
        }
    }

    /// Whether another column may have that name.
    fn check_name(&self, name: &str) -> Result<(), ChangeRefused> {
        if self.column(name).is_some() {
            return invalid(format!("there is a column '{name}' already"));
        }
        if [VERSION_COLUMN, TOMBSTONE_COLUMN].contains(&name)
            || !self.is_upsert() && [TS_COLUMN, DEDUP_COLUMN].contains(&name)
        {
            return invalid(format!("the column name '{name}' is reserved"));
        }
        Ok(())
    }

    fn check_room(&self) -> Result<(), ChangeRefused> {
        if self.columns.len() < COLUMNS_PER_TABLE_MAX {
            return Ok(());
        }
        invalid(format!("the table has {COLUMNS_PER_TABLE_MAX} columns, which is the most that it may have"))
    }

    fn check_not_key(&self, place: usize, what: &str) -> Result<(), ChangeRefused> {
        if !self.key_indices().contains(&place) {
            return Ok(());
        }
        invalid(format!("column '{}' is part of the table's key and cannot be {what}", self.columns[place].name))
    }

    fn take_number(&mut self, id: ColumnId) -> Result<(), ChangeRefused> {
        if id != self.next_column {
            return Err(ChangeRefused::Stale);
        }
        self.next_column = ColumnId(id.0 + 1);
        Ok(())
    }

    /// Takes a column out of sight.
    fn retire(&mut self, place: usize, into: Option<ColumnId>) {
        let root = self.root(self.columns[place].id);
        let column = self.columns.remove(place);
        self.retired.push(RetiredColumn { id: column.id, data_type: column.data_type, root, into });
        for older in self.retired.iter_mut().filter(|older| older.into == Some(column.id)) {
            older.into = into;
        }
        if self.is_upsert() {
            self.forget_dropped();
        }
    }

    /// Nothing of a row is told apart by what was dropped. Only forms that belong together are remembered: without them a resend of
    /// rows that were made for the schema of then would not be known.
    fn forget_dropped(&mut self) {
        let forms_of = |root: ColumnId| self.retired.iter().filter(|old| old.root == root).count();
        let is_kept = |old: &RetiredColumn| old.into.is_some() || forms_of(old.root) > 1;
        let mut kept: Vec<RetiredColumn> = self.retired.iter().filter(|old| is_kept(old)).cloned().collect();
        let dropped = kept.iter().filter(|old| old.into.is_none()).count();
        let mut surplus = dropped.saturating_sub(DROPPED_FORMS_MAX);
        kept.retain(|old| {
            let goes = old.into.is_none() && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
        self.retired = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::TableKind;

    fn column(id: u32, name: &str, data_type: DataType) -> Column {
        Column { id: ColumnId(id), name: name.into(), data_type, nullable: id > 0 }
    }

    fn upsert() -> TableSchema {
        let columns = vec![column(0, "id", DataType::Int64), column(1, "n", DataType::Int32)];
        TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(0)] })
    }

    fn event() -> TableSchema {
        let micros = DataType::Timestamp(arrow_schema::TimeUnit::Microsecond, None);
        let columns =
            vec![column(0, "_ts", micros), column(1, "n", DataType::Int32), column(2, "_dedup", DataType::Utf8)];
        TableSchema::new(columns, TableKind::Event)
    }

    fn widen(column: u32, into: u32, data_type: DataType) -> SchemaChange {
        SchemaChange::Widen { column: ColumnId(column), into: ColumnId(into), data_type }
    }

    #[test]
    fn every_change_may_be_made_twice() {
        let changes = [
            SchemaChange::Add(column(3, "extra", DataType::Utf8)),
            SchemaChange::Rename { column: ColumnId(3), to: "more".into() },
            widen(1, 4, DataType::Int64),
            widen(4, 5, DataType::Utf8),
            SchemaChange::Drop(ColumnId(3)),
        ];
        let mut schema = event();
        for change in &changes {
            let next = schema.changed(change).unwrap();
            assert_ne!(next, schema, "{change:?}");
            schema = next.changed(change).unwrap();
            assert_eq!(schema, next, "{change:?}");
        }
        assert_eq!(schema.columns.iter().map(|column| column.id.0).collect::<Vec<_>>(), [0, 5, 2]);
        let older: Vec<u32> = schema.older(ColumnId(5)).map(|old| old.id.0).collect();
        assert_eq!(older, [4, 1], "the latest first");
        assert_eq!(schema.root(ColumnId(5)), ColumnId(1));
        let dropped = schema.changed(&SchemaChange::Drop(ColumnId(5))).unwrap();
        assert_eq!(dropped.root(ColumnId(4)), ColumnId(1));
        assert!(dropped.retired.iter().all(|old| old.into.is_none()));
    }

    #[test]
    fn a_column_that_was_widened_meanwhile_is_not_taken_for_dropped() {
        for schema in [upsert(), event()] {
            let next = schema.next_column.0;
            let wider = schema.changed(&widen(1, next, DataType::Float64)).unwrap();
            assert_eq!(wider.changed(&SchemaChange::Drop(ColumnId(1))), Err(ChangeRefused::Stale));
            let dropped = wider.changed(&SchemaChange::Drop(ColumnId(next))).unwrap();
            assert_eq!(dropped.changed(&SchemaChange::Drop(ColumnId(1))), Ok(dropped));
        }
    }

    #[test]
    fn an_upsert_table_forgets_what_is_dropped() {
        let schema = upsert().changed(&widen(1, 2, DataType::Float64)).unwrap();
        assert_eq!(schema.stored_retired().count(), 1);
        let schema = schema.changed(&SchemaChange::Drop(ColumnId(2))).unwrap();
        assert_eq!(schema.stored_retired().count(), 0);
        // What rows may bring that are sent again.
        assert_eq!(schema.forms_before(ColumnId(2)).map(|old| old.id.0).collect::<Vec<_>>(), [1]);
        let again = schema.changed(&SchemaChange::Add(column(3, "n", DataType::Utf8))).unwrap();
        assert_eq!(again.root(ColumnId(3)), ColumnId(3), "another column, whatever its name");
        let dropped = again.changed(&SchemaChange::Drop(ColumnId(3))).unwrap();
        assert_eq!(dropped.retired, schema.retired, "it had one form only");
        let mut schema = schema;
        for round in 0..100 {
            let id = 4 + 2 * round;
            let add = SchemaChange::Add(column(id, "n", DataType::Int32));
            let next = TableSchema { next_column: ColumnId(id), ..schema };
            let changes = [add, widen(id, id + 1, DataType::Int64), SchemaChange::Drop(ColumnId(id + 1))];
            schema = changes.iter().fold(next, |schema, change| schema.changed(change).unwrap());
        }
        assert_eq!(schema.retired.len(), DROPPED_FORMS_MAX);
        assert_eq!(schema.retired.last().map(|old| old.id), Some(ColumnId(203)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let stale = [
            SchemaChange::Add(column(9, "extra", DataType::Utf8)),
            SchemaChange::Add(column(1, "extra", DataType::Utf8)),
            SchemaChange::Drop(ColumnId(9)),
            SchemaChange::Rename { column: ColumnId(9), to: "x".into() },
            widen(1, 1, DataType::Int64),
        ];
        for change in stale {
            assert_eq!(upsert().changed(&change), Err(ChangeRefused::Stale), "{change:?}");
        }
        let invalid = [
            (upsert(), SchemaChange::Add(column(2, "n", DataType::Utf8))),
            (upsert(), SchemaChange::Add(column(2, "_version", DataType::Utf8))),
            (upsert(), SchemaChange::Add(Column { nullable: false, ..column(2, "x", DataType::Utf8) })),
            (upsert(), SchemaChange::Drop(ColumnId(0))),
            (upsert(), widen(0, 2, DataType::Utf8)),
            (upsert(), widen(1, 2, DataType::Int16)),
            (event(), SchemaChange::Drop(ColumnId(2))),
            (event(), SchemaChange::Rename { column: ColumnId(0), to: "x".into() }),
        ];
        for (schema, change) in invalid {
            assert!(matches!(schema.changed(&change), Err(ChangeRefused::Invalid(_))), "{change:?}");
        }
    }
}
