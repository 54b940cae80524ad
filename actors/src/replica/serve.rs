//! The replicas' door to other nodes: requests of gateways and peers, answered over the transport.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use serde_bytes::ByteBuf;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Epoch, Error, ErrorCode, NodeId, PartitionId, Planted, Result, Version, wire};
use shoal_storage::{BucketRows, Digest, Rows, SplitPoint, Write};

use super::directory::ReplicaDirectory;
use super::handle::ReplicaHandle;
use super::message::{
    BucketsAnswer, DigestAnswer, PartOfWrite, PrepareCall, PulledAnswer, ReplicaAnswer, ReplicaCall, ReplicaMessage,
    ReplicaReport, ReserveCall, WriteCall, Written,
};
use super::{heads, lend, repair};
use crate::batch;
use crate::node::context::NodeContext;
use crate::placement::splits;
use crate::transport::{Handler, Route, StreamSender};

/// How long a request waits for a replica that the catalog has placed here just now.
const PLACE_PATIENCE: Duration = Duration::from_secs(2);

/// Replicas of a node that flush or merge their segments at once because somebody asked: each takes a thread.
const MAINTAINED_AT_ONCE: usize = 2;

/// Answers for all replicas of a node.
pub(crate) struct ReplicaService {
    context: Arc<NodeContext>,
    directory: Arc<ReplicaDirectory>,
}

impl ReplicaService {
    pub(crate) fn new(context: Arc<NodeContext>, directory: Arc<ReplicaDirectory>) -> Self {
        Self { context, directory }
    }

    async fn answer(&self, from: NodeId, call: ReplicaCall) -> Result<ReplicaAnswer> {
        match call {
            ReplicaCall::Write(call) => self.write(call).await,
            ReplicaCall::Token { partition, token } => {
                let handle = self.replica(partition).await?;
                let counts = handle.report().await?.counts;
                Ok(ReplicaAnswer::Token { record: handle.store()?.token(&token), counts })
            }
            ReplicaCall::Prepare(PrepareCall { partition, epoch, token, ballot }) => {
                let handle = self.replica(partition).await?;
                self.reach(partition, epoch).await?;
                // Before the promise: a later life must not forget it.
                self.context.clock.keep(ballot.time()).await?;
                Ok(match handle.prepare(epoch, token, ballot).await? {
                    Ok(promised) => ReplicaAnswer::Promised(promised),
                    Err(in_the_way) => ReplicaAnswer::Refused(in_the_way),
                })
            }
            ReplicaCall::Reserve(ReserveCall { partition, epoch, token, reserved }) => {
                let handle = self.replica(partition).await?;
                self.reach(partition, epoch).await?;
                self.context.clock.keep(reserved.ballot.time()).await?;
                Ok(ReplicaAnswer::Written(handle.reserve(epoch, token, reserved).await?))
            }
            ReplicaCall::Recent { partition, log_id, after } => {
                Ok(ReplicaAnswer::Recent(self.replica(partition).await?.recent(log_id, after).await?))
            }
            ReplicaCall::Heads => Ok(heads::shared_with(&self.context, &self.directory, from).await),
            ReplicaCall::Cursor { partition, of } => {
                let handle = self.replica(partition).await?;
                Ok(ReplicaAnswer::Cursor(handle.ask(|answer| ReplicaMessage::Cursor { of, answer }).await?))
            }
            ReplicaCall::Pull { partition, cursor, bytes_max } => {
                let handle = self.replica(partition).await?;
                let running = handle.running()?;
                let store = running.store.clone();
                let pulled = self
                    .context
                    .env
                    .blocking(move || store.pull(&cursor, usize::try_from(bytes_max).unwrap_or(usize::MAX)))
                    .await?
                    .inspect_err(|error| running.blame(error))?;
                Ok(ReplicaAnswer::Pulled(PulledAnswer {
                    batches: pulled
                        .batches
                        .iter()
                        .map(|rows| batch::encode(rows).map(ByteBuf::from))
                        .collect::<Result<_>>()?,
                    tokens: pulled.tokens,
                    next: pulled.next,
                }))
            }
            ReplicaCall::Status { by_content } => Ok(ReplicaAnswer::Status(self.status(by_content).await)),
            ReplicaCall::Serving { partitions } => {
                let serves = async |id: PartitionId| {
                    let report = self.directory.get(id).ok()?.report().await.ok()?;
                    report.serves.then_some((id, report.epoch))
                };
                let serving = join_all(partitions.into_iter().map(serves)).await;
                Ok(ReplicaAnswer::Serving(serving.into_iter().flatten().collect()))
            }
            ReplicaCall::SplitPoint { partition } => {
                let handle = self.replica(partition).await?;
                let catalog = self.context.agreement.catalog().borrow().clone();
                let place = catalog.partitions.get(&partition).ok_or_else(|| super::absent(partition))?;
                let rows = handle.store()?.status().own_rows;
                let at = match splits::split_point(&self.context, &catalog, place, &handle).await? {
                    SplitPoint::At(key) => Ok(key),
                    SplitPoint::Refused(why) => Err(why.to_string()),
                };
                Ok(ReplicaAnswer::SplitPoint { at, rows })
            }
            ReplicaCall::Segments => {
                let all = self.directory.all();
                let segments =
                    all.iter().filter_map(|handle| Some((handle.partition, handle.store().ok()?.segments())));
                Ok(ReplicaAnswer::Segments(segments.collect()))
            }
            ReplicaCall::Wall => Ok(ReplicaAnswer::Wall(self.context.env.wall_micros())),
            ReplicaCall::Load => {
                let (disk, dir) = (self.context.env.disk(), self.context.config.data_dir.clone());
                let free = self.context.env.blocking(move || disk.free_bytes(&dir)).await??;
                let handles = self.directory.all();
                let bytes = handles.iter().filter_map(|handle| {
                    let store = handle.store().ok()?;
                    Some((handle.partition, store.status().own_bytes))
                });
                let room = free.saturating_sub(self.context.config.disk_reserve_bytes);
                Ok(ReplicaAnswer::Load { room, bytes: bytes.collect() })
            }
            ReplicaCall::Asked => {
                let now = self.context.env.monotonic();
                let asked = self.directory.all().into_iter().map(|handle| (handle.partition, handle.asked.bytes(now)));
                Ok(ReplicaAnswer::Asked(asked.filter(|(_, bytes)| *bytes > 0).collect()))
            }
            ReplicaCall::Maintain { partitions, task } => {
                let mut failures = Vec::new();
                for partitions in partitions.chunks(MAINTAINED_AT_ONCE) {
                    let one = async |id: PartitionId| self.replica(id).await?.maintain(task).await;
                    let done = join_all(partitions.iter().map(|id| one(*id))).await;
                    let failed = partitions.iter().zip(done).filter_map(|(id, done)| Some((*id, done.err()?)));
                    failures.extend(failed);
                }
                Ok(ReplicaAnswer::Maintained(failures))
            }
            ReplicaCall::Digest { partition } => {
                let handle = self.replica(partition).await?;
                let moment = repair::digest(&self.context, &handle).await?;
                Ok(ReplicaAnswer::Digest(DigestAnswer { moment, caught_up: handle.lag() == Some(0) }))
            }
            ReplicaCall::Buckets { partition, buckets, after, bytes_max } => {
                let running = self.replica(partition).await?.running()?;
                let store = running.store.clone();
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
                let read = move || store.rows_of_buckets(&buckets, &after, bytes_max);
                let BucketRows { batch, next } =
                    self.context.env.blocking(read).await?.inspect_err(|error| running.blame(error))?;
                let batch = batch.map(|batch| batch::encode(&batch).map(ByteBuf::from)).transpose()?;
                Ok(ReplicaAnswer::Buckets(BucketsAnswer { batch, next: next.map(ByteBuf::from) }))
            }
            ReplicaCall::Fence { partition, epoch, until } => {
                let handle = self.replica(partition).await?;
                let (log_id, position) = handle.ask(|answer| ReplicaMessage::Fence { epoch, until, answer }).await??;
                Ok(ReplicaAnswer::Fenced(log_id, position))
            }
            ReplicaCall::Holds { partition, epoch, logs } => {
                let handle = self.replica(partition).await?;
                let holds = handle.ask(|answer| ReplicaMessage::Holds { epoch, logs, answer }).await??;
                if holds {
                    let store = handle.store()?;
                    self.context.env.blocking(move || store.flush()).await??;
                }
                Ok(ReplicaAnswer::Holds(holds))
            }
            ReplicaCall::Lineage { partition } => {
                Ok(ReplicaAnswer::Lineage(self.replica(partition).await?.store()?.past_logs()))
            }
            ReplicaCall::Repair { partition, patience_ms } => {
                let handle = self.replica(partition).await?;
                let patience = Duration::from_millis(patience_ms);
                let repaired = self.context.env.timeout(patience, repair::repair(&self.context, &handle)).await;
                Ok(ReplicaAnswer::Repaired(repaired.map_err(|_| {
                    Error::new(ErrorCode::Timeout, format!("the replica of {partition} was not repaired in time"))
                })??))
            }
        }
    }

    async fn write(&self, call: WriteCall) -> Result<ReplicaAnswer> {
        let handle = self.replica(call.partition).await?;
        self.reach(call.partition, call.epoch).await?;
        match self.context.clock.accept(call.version.time()).await {
            Err(_) if self.context.config.has(Planted::AnyClockTrusted) => {}
            accepted => accepted?,
        }
        let rows = batch::decode(&call.rows)?;
        let rows = match (call.part, call.deletes) {
            (Some(PartOfWrite { ordinals, fingerprint }), deletes) => {
                Rows::Part { deletes, rows, ordinals, fingerprint }
            }
            (None, true) => Rows::Delete(rows),
            (None, false) => Rows::Put(rows),
        };
        let bytes = call.rows.len() as u64;
        let mut write = Write { version: call.version, token: call.token, rows };
        if self.context.config.has(Planted::OrderByArrival) {
            write.version = Version::new(self.context.clock.tick().await?, self.context.node, 0);
        }
        if self.context.config.has(Planted::AcknowledgeBeforeCommit) {
            let (version, rows) = (call.version, write.rows.len() as u64);
            self.context.env.spawn("planted write", async move {
                let _ = handle.write(call.epoch, bytes, write).await;
            });
            return Ok(ReplicaAnswer::Written(Written { version, duplicate: false, counts: true, rows }));
        }
        Ok(ReplicaAnswer::Written(handle.write(call.epoch, bytes, write).await?))
    }

    async fn replica(&self, partition: PartitionId) -> Result<Arc<ReplicaHandle>> {
        if self.directory.get(partition).is_err()
            && self.context.agreement.catalog().borrow().ancestors.contains_key(&partition)
        {
            return Err(Error::new(ErrorCode::Moved, format!("{partition} has been split")));
        }
        if let Some(how_far) = self.directory.get(partition).ok().and_then(|handle| handle.fetching()) {
            // It may take long, and who waits keeps rows in hand.
            let message = format!("the replica of {partition} is {how_far}");
            return Err(Error::new(ErrorCode::PartitionUnavailable, message));
        }
        self.directory.wait(&self.context.env, partition, PLACE_PATIENCE).await
    }

    /// Waits until this node's catalog knows the epoch that a gateway knows already.
    async fn reach(&self, partition: PartitionId, epoch: Epoch) -> Result<()> {
        let mut catalog = self.context.agreement.catalog();
        let known = async {
            let reached = |catalog: &Arc<shoal_catalog::Catalog>| {
                catalog.partitions.get(&partition).is_none_or(|partition| partition.epoch >= epoch)
            };
            let _ = catalog.wait_for(reached).await;
        };
        self.context
            .env
            .timeout(PLACE_PATIENCE, known)
            .await
            .map_err(|_| Error::new(ErrorCode::Moved, format!("{partition} is not known at {epoch} here yet")))
    }

    async fn status(&self, by_content: bool) -> Vec<ReplicaReport> {
        let mut reports = Vec::new();
        for handle in self.directory.all() {
            reports.push(self.report(&handle, by_content).await);
        }
        reports
    }

    async fn report(&self, handle: &Arc<ReplicaHandle>, by_content: bool) -> ReplicaReport {
        let core = handle.report().await.ok();
        let running = handle.running().ok();
        let digest = match running.clone() {
            Some(running) => {
                let digest = self.context.env.blocking(move || {
                    let store = &running.store;
                    let digest = if by_content { store.content_digest() } else { store.digest() };
                    digest.inspect_err(|error| running.blame(error))
                });
                digest.await.ok().and_then(Result::ok)
            }
            None => None,
        };
        let status = running.map(|running| running.store.status());
        let problem = handle.fetching().or_else(|| Some(handle.problem()?.to_string()));
        let damage = status.as_ref().and_then(|status| status.problems.first());
        ReplicaReport {
            partition: handle.partition,
            epoch: core.as_ref().map_or_else(Epoch::default, |core| core.epoch),
            serves: core.as_ref().is_some_and(|core| core.serves),
            lag: handle.lag(),
            log_id: status.as_ref().map(|status| status.log_id),
            position: status.as_ref().map(|status| status.position),
            rows: status.as_ref().map(|status| status.rows),
            bytes: status.as_ref().map(|status| status.disk_bytes),
            segments: status.as_ref().map(|status| status.segments as u64),
            segments_overdue: status.as_ref().map(|status| status.segments_overdue as u64),
            digest: digest.as_ref().map(text),
            restarts: handle.restarts(),
            problem: problem
                .or_else(|| handle.replaying())
                .or_else(|| damage.map(|problem| problem.to_string()))
                .or_else(|| core.and_then(|core| core.problem).map(str::to_owned)),
        }
    }
}

/// A digest for people and for comparison: the sum in hexadecimal, winning rows, tombstones.
fn text(digest: &Digest) -> String {
    format!("{:032x}-{}-{}", digest.sum, digest.rows, digest.tombstones)
}

impl Handler for ReplicaService {
    fn call(&self, from: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        let service = Self { context: self.context.clone(), directory: self.directory.clone() };
        Box::pin(async move {
            let call: ReplicaCall = wire::decode(&message)?;
            Ok(wire::encode(&service.answer(from, call).await?)?.into())
        })
    }

    fn open(&self, from: NodeId, header: Bytes, out: StreamSender) -> BoxFuture<'static, ()> {
        let (context, directory) = (self.context.clone(), self.directory.clone());
        Box::pin(async move { lend::lend(&context, &directory, from, &header, out).await })
    }
}

/// Asks a replica on any node.
pub(crate) async fn call(
    context: &NodeContext,
    to: NodeId,
    call: &ReplicaCall,
    timeout: Duration,
) -> Result<ReplicaAnswer> {
    call_encoded(context, to, wire::encode(call)?.into(), timeout).await
}

/// The same with a request that is encoded already, for one that goes to several.
pub(crate) async fn call_encoded(
    context: &NodeContext,
    to: NodeId,
    call: Bytes,
    timeout: Duration,
) -> Result<ReplicaAnswer> {
    let answer = context.transport.call(to, Route::Replica, call, timeout).await?;
    Ok(wire::decode(&answer)?)
}

/// The error of a peer that answers something else than it was asked.
pub(crate) fn unexpected() -> Error {
    Error::internal("a replica answered another question than it was asked")
}
