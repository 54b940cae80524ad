//! How a refused command looks to whoever asked for it.

use shoal_kernel::{Error, ErrorCode, suggest};

use crate::command::CatalogError;
use crate::state::Catalog;

impl From<CatalogError> for Error {
    fn from(error: CatalogError) -> Self {
        let code = match &error {
            CatalogError::TableExists(_) => ErrorCode::TableExists,
            CatalogError::UnknownTable(_) | CatalogError::TableGone(_) => ErrorCode::UnknownTable,
            CatalogError::StaleSchema(_) => ErrorCode::SchemaChanged,
            CatalogError::UnknownNode(_) | CatalogError::UnknownPartition(_) => ErrorCode::NotFound,
            CatalogError::StaleEpoch { .. } | CatalogError::Unsettled(_) | CatalogError::SplitElsewhere(_) => {
                ErrorCode::Moved
            }
            CatalogError::NodeNumberTaken(..) | CatalogError::Founded | CatalogError::Refused(_) => {
                ErrorCode::InvalidRequest
            }
            CatalogError::Invalid(_) => ErrorCode::InvalidStatement,
        };
        let plain = Self::new(code, error.to_string());
        match error {
            CatalogError::TableExists(_) => plain.with_help("use CREATE TABLE IF NOT EXISTS, or another name"),
            CatalogError::StaleSchema(_) => plain.with_help("send it again"),
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
        match suggest::closest(name, names) {
            Some(near) => error.with_help(format!("did you mean '{near}'?")),
            None => error,
        }
    }
}
