//! From the root task to the client: rows wait for the client, and none leaves after its attempt was given up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::{Stream, StreamExt};
use shoal_kernel::{Error, ErrorCode, FragmentKey, Planted, Result};
use tokio::sync::{mpsc, watch};

use super::state::Sent;
use crate::query::edge::codec::with_schema;
use crate::query::edge::output::{BATCH_BYTES_TARGET, cut};
use crate::query::edge::remote::START_WAIT;
use crate::query::locked;
use crate::query::node::QueryNode;
use crate::service::QueryEvent;

/// Rows of one batch for the client.
const CLIENT_ROWS_MAX: usize = 8_192;

/// How long the first batch waits for the next one, or the end, once all tasks have started.
const HOLD_BACK: Duration = Duration::from_millis(10);

/// Decides between "a row has left" and "the attempt is given up", once.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<GateState>);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum GateState {
    #[default]
    Fresh,
    Passed,
    /// Everything has passed.
    Whole,
    Sealed(Sent),
}

impl GateState {
    fn sent(self) -> Sent {
        match self {
            Self::Fresh => Sent::Nothing,
            Self::Passed => Sent::Some,
            Self::Whole => Sent::All,
            Self::Sealed(sent) => sent,
        }
    }
}

impl Gate {
    /// Whether a row may leave; if so, one has.
    fn pass(&self) -> bool {
        self.advance(GateState::Passed)
    }

    /// Whether the answer may end here; if so, all of it has left.
    fn finish(&self) -> bool {
        self.advance(GateState::Whole)
    }

    fn advance(&self, to: GateState) -> bool {
        let mut state = locked(&self.0);
        let open = !matches!(*state, GateState::Sealed(_));
        if open {
            *state = to;
        }
        open
    }

    /// Lets no further row out. Returns how much has left.
    pub(super) fn seal(&self) -> Sent {
        let mut state = locked(&self.0);
        let sent = state.sent();
        *state = GateState::Sealed(sent);
        sent
    }

    /// Lets no row out if none has left yet; says whether that is so.
    pub(super) fn seal_if_fresh(&self) -> bool {
        let mut state = locked(&self.0);
        let fresh = *state == GateState::Fresh;
        if fresh {
            *state = GateState::Sealed(Sent::Nothing);
        }
        fresh
    }
}

/// The way of one attempt's rows to the client.
pub(super) struct Delivery {
    pub(super) node: Arc<QueryNode>,
    pub(super) root: FragmentKey,
    pub(super) schema: SchemaRef,
    pub(super) gate: Arc<Gate>,
    /// Turns true once the attempt's tasks have started on all nodes.
    pub(super) started: watch::Receiver<bool>,
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
        let mut twice = self.node.limits.planted == Some(Planted::MergedTwice) && self.root.attempt > 0;
        let first = answer.next().await.transpose()?;
        let second = match first {
            Some(_) => self.hold_back(&mut answer).await?,
            None => {
                self.all_started().await;
                None
            }
        };
        let mut read_ahead = first.into_iter().chain(second);
        while let Some(batch) = match read_ahead.next() {
            Some(batch) => Some(batch),
            None => answer.next().await.transpose()?,
        } {
            let mut batch = with_schema(batch, &self.schema)?;
            if std::mem::take(&mut twice) {
                batch = arrow::compute::concat_batches(&self.schema, [&batch, &batch])
                    .map_err(|error| Error::internal(error.to_string()))?;
            }
            self.send(batch).await?;
        }
        if !self.gate.finish() {
            return Err(given_up());
        }
        Ok(())
    }

    /// Waits with the first batch until the answer cannot easily fail any more, for from then on it cannot be made again: all tasks have
    /// started, and the next batch is there, or the end, or does not come soon. Gives that next batch. Most answers are one batch,
    /// and so fail before any of it has left, or not at all.
    async fn hold_back(
        &self,
        answer: &mut (impl Stream<Item = Result<RecordBatch>> + Unpin),
    ) -> Result<Option<RecordBatch>> {
        let soon = async {
            self.all_started().await;
            self.node.env.sleep(HOLD_BACK).await;
        };
        tokio::select! {
            biased;
            next = answer.next() => {
                let next = next.transpose()?;
                self.all_started().await;
                Ok(next)
            }
            () = soon => Ok(None),
        }
    }

    /// A node that has not started its tasks yet may refuse to, and what it has read for them it cannot tell yet. The query actor ends
    /// this wait when it gives the attempt up.
    async fn all_started(&self) {
        let mut started = self.started.clone();
        let _ = started.wait_for(|started| *started).await;
    }

    async fn send(&self, batch: RecordBatch) -> Result<()> {
        let lost = self.node.limits.planted == Some(Planted::BatchLost);
        for piece in cut(batch, BATCH_BYTES_TARGET, CLIENT_ROWS_MAX) {
            let rows = piece.num_rows() as u64;
            if lost && rows > 20 {
                continue;
            }
            if let Some(client) = &self.client {
                let gone = |_| Error::new(ErrorCode::Cancelled, "the client has gone");
                let room = client.reserve().await.map_err(gone)?;
                if !self.gate.pass() {
                    return Err(given_up());
                }
                room.send(QueryEvent::Batch(piece));
            }
            self.rows.fetch_add(rows, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn given_up() -> Error {
    Error::new(ErrorCode::Cancelled, "the attempt was given up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_leaves_a_sealed_gate() {
        let gate = Gate::default();
        assert_eq!(gate.seal(), Sent::Nothing);
        assert!(!gate.pass() && !gate.finish());
        assert_eq!(gate.seal(), Sent::Nothing, "a refused row has not left");

        let gate = Gate::default();
        assert!(gate.pass() && gate.pass());
        assert!(!gate.seal_if_fresh());
        assert!(gate.pass());
        assert_eq!(gate.seal(), Sent::Some);
        assert!(!gate.finish());
        assert_eq!(gate.seal(), Sent::Some);
    }

    #[test]
    fn a_whole_answer_stays_whole() {
        let gate = Gate::default();
        assert!(gate.pass() && gate.finish());
        assert_eq!((gate.seal(), gate.seal()), (Sent::All, Sent::All));

        let gate = Gate::default();
        assert!(gate.seal_if_fresh() && !gate.pass());
    }
}
