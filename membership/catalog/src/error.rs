//! How a refused command looks to whoever asked for it.

use shoal_kernel::{Error, ErrorCode};

use crate::command::CatalogError;
use crate::state::Catalog;

impl From<CatalogError> for Error {
    fn from(error: CatalogError) -> Self {
        let code = match &error {
            CatalogError::TableExists(_) => ErrorCode::TableExists,
            CatalogError::UnknownTable(_) => ErrorCode::UnknownTable,
            CatalogError::UnknownNode(_) | CatalogError::UnknownPartition(_) => ErrorCode::NotFound,
            CatalogError::StaleEpoch { .. } => ErrorCode::Moved,
            CatalogError::NodeNumberTaken(..) | CatalogError::Founded => ErrorCode::InvalidRequest,
            CatalogError::Invalid(_) => ErrorCode::InvalidStatement,
        };
        let plain = Self::new(code, error.to_string());
        match error {
            CatalogError::TableExists(_) => plain.with_help("use CREATE TABLE IF NOT EXISTS, or another name"),
            _ => plain,
        }
    }
}

impl Catalog {
    /// The error of a refused command, with a remedy where this catalog knows one.
    pub fn explain(&self, error: CatalogError) -> Error {
        match error {
            CatalogError::UnknownTable(name) => self.unknown_table(&name),
            other => other.into(),
        }
    }

    /// The error for a table that does not exist; suggests the name that comes closest.
    pub fn unknown_table(&self, name: &str) -> Error {
        let error = Error::from(CatalogError::UnknownTable(name.to_owned()));
        let names = self.tables.values().map(|table| table.name.as_str());
        match closest(name, names) {
            Some(near) => error.with_help(format!("did you mean '{near}'?")),
            None => error,
        }
    }
}

/// The candidate with the smallest edit distance, if that is small for its length; of equals the first by name.
fn closest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    // Two edits in a short word make another word; in a long one they are a slip.
    let most = (name.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (edit_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one text into the other (optimal string alignment;
/// Damerau 1964, Wagner and Fischer 1974).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let width = b.len() + 1;
    let (mut before, mut last): (Vec<usize>, Vec<usize>) = (vec![0; width], (0..width).collect());
    for i in 1..=a.len() {
        let mut row = vec![i; width];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let tables = ["flights", "airports", "weather"];
        let near = |name| closest(name, tables.into_iter());
        assert_eq!(near("flihgts"), Some("flights"));
        assert_eq!(near("Flight"), Some("flights"));
        assert_eq!(near("wether"), Some("weather"));
        assert_eq!(near("orders"), None);
        assert_eq!(near("x"), None);
    }

    #[test]
    fn distances_are_those_of_the_book() {
        for (a, b, distance) in [("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 1), ("same", "same", 0)] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
            assert_eq!(edit_distance(b, a), distance, "{b} {a}");
        }
    }
}
