//! One piece on its way to the replicas of its partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use shoal_catalog::{Partition, Table};
use shoal_kernel::level::seal_quorum;
use shoal_kernel::{Applied, Error, ErrorCode, Hlc, NodeId, PartitionId, Result, Version, WriteLevel};
use shoal_storage::TokenRecord;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::route::Piece;
use super::{PERMIT_BYTES, not_enough};
use crate::batch;
use crate::node::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall, WriteCall, Written};
use crate::replica::serve;

/// How long one replica may take for one answer; a write is idempotent, so it is asked again until the deadline.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before a replica that does not count yet, or whose map is newer, is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How a piece was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) version: Version,
    pub(super) duplicate: bool,
}

/// What holds for all pieces of a request.
pub(super) struct Delivery {
    pub(super) context: Arc<NodeContext>,
    pub(super) table: Arc<Table>,
    pub(super) level: WriteLevel,
    /// The deadline, on the monotonic clock.
    pub(super) until: Duration,
    pub(super) token: Option<String>,
}

/// What one round over the replicas came to.
enum Round {
    Done(Outcome),
    /// The replica set has moved on, or some of it is not ready: try again.
    Again(Error),
    Failed(Error),
}

impl Delivery {
    pub(super) async fn run(self, piece: Piece, version: Version, inflight: Arc<Semaphore>) -> Result<Outcome> {
        let rows = batch::encode(&piece.rows)?;
        let permits = u32::try_from(rows.len().div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
        let room = inflight.try_acquire_many_owned(permits).map_err(|_| {
            Error::new(ErrorCode::Overloaded, "this node has too many rows under way (INFLIGHT_BYTES_MAX)")
                .with_retry_after_ms(200)
        })?;
        // Shared by the sends that go on after the answer; given back when the last of them ends.
        let room = Arc::new(room);

        let known = match &self.token {
            Some(token) => self.known_version(piece.partition, token).await?,
            None => None,
        };
        let duplicate = known.is_some();
        let version = known.unwrap_or(version);
        let mut call = WriteCall {
            partition: piece.partition,
            epoch: Default::default(),
            version,
            token: self.token.clone(),
            rows,
        };
        let mut touched = duplicate;
        loop {
            let partition = self.partition(piece.partition)?;
            call.epoch = partition.epoch;
            let again = match self.round(&partition, &call, &room, &mut touched).await {
                Round::Done(outcome) => return Ok(Outcome { duplicate: outcome.duplicate || duplicate, ..outcome }),
                Round::Failed(error) => return Err(settle(error, touched)),
                Round::Again(error) => error,
            };
            if self.context.env.monotonic() + RETRY_PAUSE >= self.until {
                return Err(settle(again, touched));
            }
            self.context.env.sleep(RETRY_PAUSE).await;
        }
    }

    /// The partition as this node knows it now. A split would send the rows elsewhere; partitions are fixed at CREATE.
    fn partition(&self, id: PartitionId) -> Result<Partition> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        catalog.partitions.get(&id).cloned().ok_or_else(|| {
            Error::new(ErrorCode::UnknownTable, format!("table '{}' has been dropped", self.table.name))
        })
    }

    /// Sends to every replica and counts, until the level is reached or cannot be reached in this round.
    async fn round(
        &self,
        partition: &Partition,
        call: &WriteCall,
        room: &Arc<OwnedSemaphorePermit>,
        touched: &mut bool,
    ) -> Round {
        let voters: Vec<NodeId> = partition.voters().collect();
        let mut needed = self.level.needed(voters.len());
        if self.context.config.planted.acknowledge_early {
            needed = needed.min(1);
        }
        let mut answers = self.send(partition, call, room);
        let (mut acknowledged, mut waiting) = (0, voters.len());
        let mut best: Option<Outcome> = None;
        let (mut again, mut last): (Option<Error>, Option<Error>) = (None, None);
        while let Some((node, answer)) = answers.recv().await {
            if !voters.contains(&node) {
                continue;
            }
            waiting -= 1;
            match answer {
                Ok(written) if written.counts => {
                    *touched = true;
                    acknowledged += 1;
                    let lower = best.is_none_or(|best| written.version < best.version);
                    if lower {
                        best = Some(Outcome { version: written.version, duplicate: written.duplicate });
                    }
                }
                Ok(_) => {
                    *touched = true;
                    again = Some(not_counting(node, partition.id));
                }
                Err(error) if error.code() == ErrorCode::TokenConflict => return Round::Failed(error),
                Err(error) => {
                    *touched |= error.applied() == Applied::Unknown;
                    let passing = matches!(
                        error.code(),
                        ErrorCode::Moved | ErrorCode::PartitionUnavailable | ErrorCode::NodeLost | ErrorCode::NotReady
                    );
                    if passing {
                        again = Some(error.clone());
                    }
                    last = Some(error);
                }
            }
            if acknowledged >= needed {
                return match best {
                    Some(outcome) => Round::Done(outcome),
                    None => Round::Failed(Error::internal("a level that needs no replica")),
                };
            }
            if acknowledged + waiting < needed {
                break;
            }
        }
        let short = not_enough(acknowledged, needed, voters.len(), self.level, last.as_ref().or(again.as_ref()));
        match again {
            // Overload and a full disk do not pass by asking again at once; a missing replica may come back.
            Some(_) => Round::Again(short),
            None => Round::Failed(match last {
                Some(error) if acknowledged == 0 && voters.len() == 1 => error,
                _ => short,
            }),
        }
    }

    /// Every replica is sent the rows by a task of its own, which goes on when the level is reached before it.
    fn send(
        &self,
        partition: &Partition,
        call: &WriteCall,
        room: &Arc<OwnedSemaphorePermit>,
    ) -> mpsc::Receiver<(NodeId, Result<Written>)> {
        let (answer, answers) = mpsc::channel(partition.replicas.len().max(1));
        let shared = Arc::new(ReplicaCall::Write(call.clone()));
        for replica in &partition.replicas {
            let (context, shared, answer, room) =
                (self.context.clone(), shared.clone(), answer.clone(), room.clone());
            let node = replica.node;
            let left = self.until.saturating_sub(self.context.env.monotonic());
            self.context.env.spawn("replica write", async move {
                let written = match serve::call(&context, node, &shared, CALL_TIMEOUT.min(left)).await {
                    Ok(ReplicaAnswer::Written(written)) => Ok(written),
                    Ok(_) => Err(serve::unexpected()),
                    Err(error) => Err(error),
                };
                drop(room);
                let _ = answer.send((node, written)).await;
            });
        }
        answers
    }

    /// The time that rows of this token were given before, wherever they went.
    pub(super) async fn known_time(&self) -> Result<Option<Hlc>> {
        let Some(token) = &self.token else { return Ok(None) };
        let mut known: Option<Hlc> = None;
        for partition in &self.table.partitions {
            if let Some(version) = self.known_version(*partition, token).await? {
                let time = Hlc::from_micros(version.time().micros());
                known = Some(known.map_or(time, |known| known.min(time)));
            }
        }
        Ok(known)
    }

    /// The version that a token already has, if any replica knows it. Asks enough of them that a write acknowledged at
    /// quorum cannot be missed.
    async fn known_version(&self, partition: PartitionId, token: &str) -> Result<Option<Version>> {
        let map = self.partition(partition)?;
        let voters: Vec<NodeId> = map.voters().collect();
        let call = ReplicaCall::Token { partition, token: token.to_owned() };
        let mut asked: FuturesUnordered<_> = voters
            .iter()
            .map(|voter| {
                let call = &call;
                async move { (*voter, serve::call(&self.context, *voter, call, CALL_TIMEOUT).await) }
            })
            .collect();
        let (mut answered, mut known): (usize, BTreeMap<NodeId, TokenRecord>) = (0, BTreeMap::new());
        let needed = seal_quorum(voters.len());
        let mut last = None;
        while let Some((voter, answer)) = asked.next().await {
            match answer {
                Ok(ReplicaAnswer::Token { record, counts }) => {
                    answered += usize::from(counts);
                    if let Some(record) = record {
                        known.insert(voter, record);
                    }
                }
                Ok(_) => last = Some(serve::unexpected()),
                Err(error) => last = Some(error),
            }
            if answered >= needed {
                break;
            }
        }
        let lowest = known.values().map(|record| record.version).min();
        if answered < needed && lowest.is_none() {
            let why = last.map(|error| format!("; last answer: {error}")).unwrap_or_default();
            return Err(Error::new(
                ErrorCode::NotEnoughReplicas,
                format!("{answered} of {} replicas can say whether this idempotency key was used, {needed} must{why}", voters.len()),
            )
            // An earlier request with this key may have had an effect; this one had none.
            .with_applied(Applied::Unknown));
        }
        Ok(lowest)
    }
}

/// What is known about effects when a write has failed for good.
fn settle(error: Error, touched: bool) -> Error {
    error.with_applied(if touched { Applied::Unknown } else { Applied::False })
}

fn not_counting(node: NodeId, partition: PartitionId) -> Error {
    Error::new(ErrorCode::PartitionUnavailable, format!("the replica of {partition} on {node} does not count yet"))
}
