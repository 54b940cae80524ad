//! What is agreed upon.

use std::collections::BTreeMap;

use super::Evidence;
use crate::cluster::{Altering, Column, TableChange};
use crate::world::HostId;

pub(super) fn catalog_is_linearisable(evidence: &Evidence) -> Vec<String> {
    let mut found: Vec<String> = evidence.ledger.catalog(|states| states.differing().cloned().collect());
    for change in &evidence.facts.tables {
        found.extend(table_change(evidence, change));
    }
    for change in &evidence.facts.notes_changed {
        let wanted: &[Column] = match change.altering {
            Altering::Adds => &[Column::Whole, Column::Wide],
            Altering::Widens => &[Column::Wide],
            Altering::Drops => &[Column::Missing],
        };
        let (from, to) = (change.from_catalog, change.to_catalog);
        if !evidence.ledger.catalog(|states| states.notes_were(wanted, from, to)) {
            let (id, altering) = (change.id, change.altering);
            found.push(format!(
                "operation {id} is done ({altering:?} the column of notes), and no catalog of versions {from} to {to} shows it"
            ));
        }
    }
    found
}

/// Each table is made once, and dropped once if at all, under a name of its own.
fn table_change(evidence: &Evidence, change: &TableChange) -> Option<String> {
    let (came, went) = evidence.ledger.catalog(|states| states.life(&change.name));
    let effect = if change.created { came } else { went };
    let (from, to) = (change.from_catalog, change.to_catalog);
    let wrong = match (change.done, effect) {
        (Some(true), Some(at)) => (at <= from || at > to).then(|| format!("has its effect at version {at}")),
        (Some(true), None) => Some("has no effect".to_owned()),
        (Some(false), Some(at)) => Some(format!("was refused, and has its effect at version {at}")),
        (None, Some(at)) => (at <= from).then(|| format!("has its effect at version {at}, before it was sent")),
        (Some(false) | None, None) => None,
    }?;
    let statement = if change.created { "CREATE" } else { "DROP" };
    Some(format!("{statement} TABLE {}, from version {from} to {to}, {wrong}", change.name))
}

pub(super) fn catalog_agrees(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let versions: BTreeMap<u64, Vec<u16>> = evidence.views.iter().fold(BTreeMap::new(), |mut versions, view| {
        versions.entry(view.status.catalog_version).or_insert_with(Vec::new).push(view.node);
        versions
    });
    if versions.len() > 1 {
        found.push(format!("catalog versions differ, by node: {versions:?}"));
    }
    let mut known: BTreeMap<&str, Option<bool>> = BTreeMap::new();
    for change in &evidence.facts.tables {
        // A later change whose outcome nobody knows leaves both possible; a refused one changes nothing.
        match change.done {
            Some(true) => known.insert(&change.name, Some(change.created)),
            Some(false) => known
                .get(change.name.as_str())
                .copied()
                .is_none()
                .then(|| known.insert(&change.name, Some(false)))
                .flatten(),
            None => known.insert(&change.name, None),
        };
    }
    for view in &evidence.views {
        for (name, wanted) in &known {
            let Some(there) = view.tables.get(*name) else { continue };
            if wanted.is_some_and(|wanted| wanted != *there) {
                found.push(format!("table {name} on {}: known {there}, wanted {wanted:?}", HostId(view.node)));
            }
        }
    }
    found
}

pub(super) fn one_owner_set_per_epoch(evidence: &Evidence) -> Vec<String> {
    let in_conflict: Vec<String> = evidence.ledger.catalog(|states| states.in_conflict().cloned().collect());
    in_conflict.into_iter().chain(evidence.ledger.late()).collect()
}

pub(super) fn created_tables_are_seen(evidence: &Evidence) -> Vec<String> {
    evidence.facts.unseen.clone()
}
