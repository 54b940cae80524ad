//! Agreement on the version of a key's rows, before the first of them is sent: the proposer of
//! [`crate::replica::promises`].

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use shoal_catalog::{Partition, Partitioning};
use shoal_kernel::level::quorum;
use shoal_kernel::{Error, ErrorCode, NodeId, PartitionId, Planted, Rare, Result, Version, key, wire};

use super::deliver::{CALL_TIMEOUT, Delivery, is_passing};
use super::route::{self, Piece};
use super::{dropped, expired};
use crate::replica::message::{PrepareCall, Promised, ReplicaAnswer, ReplicaCall, ReserveCall};
use crate::replica::promises::Reserved;
use crate::replica::serve;

/// How long to wait, at most, before the next ballot: others may be at it too, and replicas may be changing their epoch.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Where a reservation is kept. Every attempt must find the same partition, or one that came of it by splits: those know what it
/// knew.
pub(super) enum Home {
    /// In this one, which is never split.
    Partition(PartitionId),
    /// In the one that holds this partition key.
    Key(Vec<u8>),
}

/// The version that a key's rows have, now and at every later attempt.
pub(super) struct Reservation {
    pub(super) version: Version,
    /// Nobody had tried before, so no row of this key has been sent anywhere.
    pub(super) fresh: bool,
}

impl Delivery {
    /// The version reserved for a client's key; this one, if none was.
    ///
    /// # Errors
    /// [`ErrorCode::TokenConflict`] if the key was used for rows with another fingerprint.
    pub(super) async fn reserve(
        &self,
        home: &Home,
        token: &str,
        own: Version,
        fingerprint: u128,
    ) -> Result<Reservation> {
        // No piece's token ends like this.
        let token = format!("{token}\u{1f}");
        loop {
            let partition = self.now_at(home)?;
            let ballot = Version::new(self.context.clock.tick().await?, self.context.node, 0);
            // More of them than of reservations: gateways or clients compete for keys.
            metrics::counter!("shoal_key_ballots_total").increment(1);
            let error = match self.propose(&partition, &token, Reserved { ballot, version: own, fingerprint }).await {
                Ok(reservation) => {
                    metrics::counter!("shoal_key_reservations_total").increment(1);
                    return Ok(reservation);
                }
                Err(error) => error,
            };
            let down = partition.voters().filter(|voter| self.context.liveness.is_down(*voter)).count();
            let voters = partition.voters().count();
            let may_pass = is_passing(error.code()) || error.code() == ErrorCode::NotEnoughReplicas;
            if !may_pass || voters - down < quorum(voters) || self.left() <= PAUSE_MAX {
                return Err(error);
            }
            let pause = self.context.env.random("reservation pause") % PAUSE_MAX.as_millis() as u64;
            self.context.env.sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Where the reservation of a key of events is kept, which go where their time says: it is not known yet. Windows come and go,
    /// but for what the oldest has become.
    pub(super) fn home(&self, token: &str) -> Result<Home> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let table = catalog.tables.get(&self.table.id).ok_or_else(|| dropped(&self.table))?;
        let roots = catalog.roots(table);
        let place = key::partition_hash(token.as_bytes()) % roots.len().max(1) as u64;
        let root = match table.has_windows() {
            true => roots.iter().min(),
            false => usize::try_from(place).ok().and_then(|place| roots.get(place)),
        };
        let root = *root.ok_or_else(|| Error::internal(format!("table '{}' has no partitions", table.name)))?;
        Ok(catalog.range_of(root).map_or(Home::Partition(root), |range| Home::Key(range.start.clone())))
    }

    /// Where the reservation of a key is kept whose first rows are these.
    pub(super) fn home_of(&self, first: &Piece) -> Result<Home> {
        match (&self.table.partitioning, first.parts.first()) {
            (Partitioning::Range { .. } | Partitioning::Value { .. }, _) => {
                Ok(Home::Key(route::least_key(&self.table, &first.rows)?))
            }
            (Partitioning::Hash { .. }, Some(part)) => Ok(Home::Partition(part.partition)),
            (_, None) => Err(Error::internal("a piece without rows")),
        }
    }

    /// The partition that a home is now.
    pub(super) fn now_at(&self, home: &Home) -> Result<Partition> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let table = catalog.tables.get(&self.table.id).ok_or_else(|| dropped(&self.table))?;
        let partition = match home {
            Home::Partition(id) => catalog.partitions.get(id),
            Home::Key(key) => catalog.partition_for(table, key),
        };
        partition.cloned().ok_or_else(expired)
    }

    /// Whether a key stands for other rows than these.
    pub(super) fn is_other(&self, known: u128, these: u128) -> bool {
        known != these && !self.context.config.has(Planted::MistakeOverlooked)
    }

    /// One ballot: a majority promises and says what it has accepted, then a majority accepts.
    async fn propose(&self, partition: &Partition, token: &str, own: Reserved) -> Result<Reservation> {
        let voters: Vec<NodeId> = partition.voters().collect();
        let prepare = ReplicaCall::Prepare(PrepareCall {
            partition: partition.id,
            epoch: partition.epoch,
            token: token.to_owned(),
            ballot: own.ballot,
        });
        let known = self.ask_majority(&voters, &prepare).await?.into_iter().flatten().max();
        if known.is_some_and(|known| self.is_other(known.fingerprint, own.fingerprint)) {
            return Err(conflict());
        }
        if known.is_some() {
            self.context.env.reached(Rare::ReservationAdopted);
        }
        let version = known.map_or(own.version, |known| known.version);
        let accept = ReplicaCall::Reserve(ReserveCall {
            partition: partition.id,
            epoch: partition.epoch,
            token: token.to_owned(),
            reserved: Reserved { version, ..own },
        });
        // Everybody, also who has not promised yet: one that promises quickly may be the one that cannot write.
        self.ask_majority(&voters, &accept).await?;
        Ok(Reservation { version, fresh: known.is_none() })
    }

    /// Asks every voter; once a majority has agreed, and counts, gives what they said.
    async fn ask_majority(&self, voters: &[NodeId], call: &ReplicaCall) -> Result<Vec<Option<Reserved>>> {
        let message: Bytes = wire::encode(call)?.into();
        let timeout = CALL_TIMEOUT.min(self.left());
        let ask = async |node: NodeId| serve::call_encoded(&self.context, node, message.clone(), timeout).await;
        let mut answers: FuturesUnordered<_> = voters.iter().map(|node| ask(*node)).collect();
        let needed = quorum(voters.len());
        let (mut said, mut lasting, mut refused, mut last) = (Vec::new(), 0, false, None::<Error>);
        while said.len() + answers.len() >= needed {
            // Who has been refused waits for a slow one only briefly: a higher ballot does better.
            let patience = if refused { PAUSE_MAX } else { timeout };
            let Ok(Some(answer)) = self.context.env.timeout(patience, answers.next()).await else { break };
            match answer {
                Ok(ReplicaAnswer::Promised(Promised { counts: true, accepted })) => said.push(accepted),
                Ok(ReplicaAnswer::Written(written)) if written.counts => said.push(None),
                Ok(ReplicaAnswer::Promised(_) | ReplicaAnswer::Written(_)) => {}
                Ok(ReplicaAnswer::Refused(ballot)) => {
                    refused = true;
                    self.context.env.reached(Rare::ReservationRefused);
                    // The next ballot has to be above it. A clock too far ahead is not followed; others may agree.
                    if let Err(error) = self.context.clock.observe(ballot.time()) {
                        (lasting, last) = (lasting + 1, Some(error));
                    }
                }
                Ok(_) => last = Some(serve::unexpected()),
                Err(error) => {
                    // A full disk or an overload does not pass by itself.
                    lasting += usize::from(!is_passing(error.code()));
                    refused |= error.code() == ErrorCode::Moved;
                    last = Some(error);
                }
            }
            if said.len() >= needed {
                return Ok(said);
            }
        }
        let code = match &last {
            Some(error) if voters.len() - lasting < needed && !is_passing(error.code()) => error.code(),
            _ => ErrorCode::NotEnoughReplicas,
        };
        let why = last.map(|error| format!("; last answer: {error}")).unwrap_or_default();
        let (agreed, of) = (said.len(), voters.len());
        let message = format!(
            "{agreed} of {of} replicas could agree on the version of this idempotency key's rows, {needed} must{why}"
        );
        Err(Error::new(code, message))
    }
}

/// The key stands for other rows.
pub(super) fn conflict() -> Error {
    Error::new(ErrorCode::TokenConflict, "this idempotency key was used for other rows")
        .with_help("send other rows with a key of their own")
}
