//! Rows for a table that follows them: it is made and changed as they need, by agreement, before the first one is written.

use std::sync::Arc;

use actix_web::web::{Bytes, BytesMut, Data};
use shoal_actors::service::Evolution;
use shoal_catalog::Table;
use shoal_kernel::{Error, ErrorCode};

use super::Doors;
use super::ingest::Room;
use super::problem::Failure;
use crate::ingest::Decoded;
use crate::ingest::infer::{Body, Step, step};

/// How often a body is looked at anew because somebody else changed the table meanwhile.
const LOOKS_MAX: u32 = 10;

/// Rows, and the definition of the table that they were made for.
pub(super) type Fitted = (Arc<Table>, Decoded);

/// Reads a body into rows for a table, and has the table made or changed until it takes them. `None` if there is no row, and no
/// table either.
pub(super) async fn fit(
    doors: &Data<Doors>,
    name: &str,
    mut table: Option<Arc<Table>>,
    body: Body,
    room: Room,
) -> Result<Option<Result<Fitted, Decoded>>, Failure> {
    // The body has its room for as long as it is looked at, whether or not anybody waits for that.
    let body = Arc::new((body, room));
    for _ in 0..LOOKS_MAX {
        let (looked_at, at, name_of) = (body.clone(), table.clone(), name.to_owned());
        // All of the body is read, perhaps more than once: long work, and this thread serves others too.
        let next = actix_web::web::block(move || step(&looked_at.0, &name_of, at.as_ref())).await;
        let next = next.map_err(|_| Error::internal("looking through the body was interrupted"))??;
        let change = match (next, table.take()) {
            (Step::Write(table, decoded), _) => return Ok(Some(Ok((table, decoded)))),
            (Step::Refuse(decoded), _) => return Ok(Some(Err(decoded))),
            (Step::Nothing, _) | (Step::Alter(_), None) => return Ok(None),
            (Step::Create(new), _) => {
                metrics::counter!("shoal_ingest_tables_created_total").increment(1);
                Evolution::Create(Box::new(new))
            }
            (Step::Alter(changes), Some(table)) => {
                metrics::counter!("shoal_ingest_columns_changed_total").increment(changes.len() as u64);
                Evolution::Alter { table, changes }
            }
        };
        let evolved = doors.backend.evolve(change).await?;
        if !evolved.options.schemaless {
            // Somebody else has made it, or has told it to keep its columns.
            let message = format!("table '{name}' keeps the columns that it has, and these rows do not fit them");
            let help = "ALTER TABLE … SET (schemaless = true) lets rows change them";
            return Err(Error::new(ErrorCode::InvalidRows, message).with_help(help).into());
        }
        table = Some(evolved);
    }
    let message =
        format!("the columns of '{name}' were changed {LOOKS_MAX} times by others while these rows were looked at");
    Err(Error::new(ErrorCode::SchemaChanged, message).with_help("send them again; nothing was written").into())
}

/// A body that is kept whole.
pub(super) fn whole(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return only;
    }
    let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.freeze()
}
