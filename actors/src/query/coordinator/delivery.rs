//! From the root task to the client: rows wait for the client, and none leaves after its attempt was given up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use shoal_kernel::{Error, ErrorCode, FragmentKey, Planted, Result};
use tokio::sync::mpsc;

use crate::query::edge::codec::with_schema;
use crate::query::edge::output::{BATCH_BYTES_TARGET, cut};
use crate::query::edge::remote::START_WAIT;
use crate::query::locked;
use crate::query::node::QueryNode;
use crate::service::QueryEvent;

/// Rows of one batch for the client.
const CLIENT_ROWS_MAX: usize = 8_192;

/// Decides between "a row has left" and "the attempt is given up", once.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<GateState>);

#[derive(Debug, Default, PartialEq, Eq)]
enum GateState {
    #[default]
    Fresh,
    Passed,
    Sealed {
        rows_left: bool,
    },
}

impl Gate {
    /// Whether a row may leave; if so, one has.
    fn pass(&self) -> bool {
        let mut state = locked(&self.0);
        match *state {
            GateState::Sealed { .. } => false,
            _ => {
                *state = GateState::Passed;
                true
            }
        }
    }

    /// Lets no further row out. Returns whether any has left.
    pub(super) fn seal(&self) -> bool {
        let mut state = locked(&self.0);
        let rows_left = match *state {
            GateState::Fresh => false,
            GateState::Passed => true,
            GateState::Sealed { rows_left } => rows_left,
        };
        *state = GateState::Sealed { rows_left };
        rows_left
    }
}

/// The way of one attempt's rows to the client.
pub(super) struct Delivery {
    pub(super) node: Arc<QueryNode>,
    pub(super) root: FragmentKey,
    pub(super) schema: SchemaRef,
    pub(super) gate: Arc<Gate>,
    pub(super) rows: Arc<AtomicU64>,
    /// `None`: the rows are counted and dropped.
    pub(super) client: Option<mpsc::Sender<QueryEvent>>,
}

impl Delivery {
    /// Hands over the whole answer.
    ///
    /// # Errors
    /// The root task failed, the client has gone, or the attempt was given up.
    pub(super) async fn run(self) -> Result<()> {
        let output = self.node.edges.find(&self.node.env, self.root, START_WAIT).await?;
        let mut answer = output.claim(0)?;
        // Kept by the table for as long as the attempt lasts.
        drop(output);
        let lost = self.node.limits.planted == Some(Planted::BatchLost);
        let mut twice = self.node.limits.planted == Some(Planted::MergedTwice) && self.root.attempt > 0;
        while let Some(batch) = answer.next().await {
            let mut batch = with_schema(batch?, &self.schema)?;
            if std::mem::take(&mut twice) {
                batch = arrow::compute::concat_batches(&self.schema, [&batch, &batch])
                    .map_err(|error| Error::internal(error.to_string()))?;
            }
            for piece in cut(batch, BATCH_BYTES_TARGET, CLIENT_ROWS_MAX) {
                let rows = piece.num_rows() as u64;
                if lost && rows > 20 {
                    continue;
                }
                if let Some(client) = &self.client {
                    let gone = |_| Error::new(ErrorCode::Cancelled, "the client has gone");
                    let room = client.reserve().await.map_err(gone)?;
                    if !self.gate.pass() {
                        return Err(Error::new(ErrorCode::Cancelled, "the attempt was given up"));
                    }
                    room.send(QueryEvent::Batch(piece));
                }
                self.rows.fetch_add(rows, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_leaves_a_sealed_gate() {
        let gate = Gate::default();
        assert!(!gate.seal());
        assert!(!gate.pass());
        assert!(!gate.seal(), "a refused row has not left");

        let gate = Gate::default();
        assert!(gate.pass() && gate.pass());
        assert!(gate.seal());
        assert!(gate.seal());
    }
}
