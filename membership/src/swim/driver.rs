//! The task that owns the socket and moves the core along.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoal_kernel::env::BoxDatagram;
use shoal_kernel::{Env, NodeId, Rare};
use tokio::sync::{mpsc, oneshot, watch};

use super::core::{Core, Effects};
use super::identity::store_generation;
use super::seal::{Broken, Seal};
use super::{Counters, MemberState, Members};

/// Longer than any datagram that a member sends.
const BUFFER_BYTES: usize = 2_048;

/// Pause after the socket failed to read, in milliseconds, so that a broken one does not take a core.
const FAILED_PAUSE_MS: u64 = 20;

/// How long datagrams may be read before timers that are late. Among them are the answers to what was asked before this process stood
/// still; whoever keeps sending does not keep this node from noticing that somebody has gone.
const READ_UP_MAX: Duration = Duration::from_millis(30);

/// How long to wait for the next of them: that the socket has something is learnt from the kernel first.
const UNREAD_WAIT: Duration = Duration::from_millis(1);

pub(super) enum Command {
    Announce(SocketAddr),
    Leave(oneshot::Sender<()>),
}

pub(super) struct Driver {
    pub(super) env: Env,
    pub(super) core: Core,
    pub(super) socket: BoxDatagram,
    pub(super) seal: Arc<Seal>,
    pub(super) data_dir: PathBuf,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) payload: watch::Receiver<Arc<[u8]>>,
    pub(super) members: watch::Sender<Arc<Members>>,
    pub(super) counters: Arc<Counters>,
}

enum Event {
    Command(Command),
    Payload,
    Datagram(usize),
    SocketFailed,
    Timer,
    Abandoned,
}

impl Driver {
    pub(super) async fn run(mut self) {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let event = self.next(&mut buffer).await;
            let now = self.env.monotonic();
            match event {
                Event::Command(Command::Announce(address)) => {
                    let effects = self.core.announce(address, now);
                    self.perform(effects).await;
                }
                Event::Command(Command::Leave(done)) => {
                    let effects = self.core.leave(now);
                    self.perform(effects).await;
                    let _ = done.send(());
                    return;
                }
                Event::Payload => {
                    let payload = self.payload.borrow_and_update().clone();
                    self.core.publish(payload);
                    self.show();
                }
                Event::Datagram(length) => self.datagram(&buffer[..length], now).await,
                Event::SocketFailed => {
                    count(&self.counters.failed);
                    self.env.sleep(Duration::from_millis(FAILED_PAUSE_MS)).await;
                }
                Event::Timer => {
                    if self.core.has_overslept(now) {
                        self.env.reached(Rare::Overslept);
                        self.read_up(&mut buffer).await;
                    }
                    let effects = self.core.tick(self.env.monotonic());
                    self.counters.unwell.store(self.core.health().into(), Ordering::Relaxed);
                    self.perform(effects).await;
                }
                Event::Abandoned => return,
            }
        }
    }

    /// Reads what has come while this process stood still.
    async fn read_up(&mut self, buffer: &mut [u8]) {
        let until = self.env.monotonic() + READ_UP_MAX;
        while self.env.monotonic() < until {
            match self.env.timeout(UNREAD_WAIT, self.socket.receive_from(buffer)).await {
                Ok(Ok((length, _))) => self.datagram(&buffer[..length], self.env.monotonic()).await,
                // One that could not be read is one that was lost; others may wait behind it.
                Ok(Err(_)) => {
                    count(&self.counters.failed);
                    self.env.sleep(UNREAD_WAIT).await;
                }
                Err(_) => return,
            }
        }
    }

    async fn next(&mut self, buffer: &mut [u8]) -> Event {
        let wait = self.core.wake_at().map(|at| at.saturating_sub(self.env.monotonic()));
        let timer = self.env.sleep(wait.unwrap_or_default());
        // Timers come before datagrams, or a flood would keep this node from noticing that somebody has gone.
        tokio::select! {
            biased;
            command = self.commands.recv() => command.map_or(Event::Abandoned, Event::Command),
            changed = self.payload.changed() => if changed.is_ok() { Event::Payload } else { Event::Abandoned },
            () = timer, if wait.is_some() => Event::Timer,
            received = self.socket.receive_from(buffer) => match received {
                Ok((length, _)) => Event::Datagram(length),
                Err(error) => {
                    tracing::debug!(%error, "a datagram could not be read");
                    Event::SocketFailed
                }
            },
        }
    }

    async fn datagram(&mut self, bytes: &[u8], now: Duration) {
        let effects = match self.seal.open(bytes) {
            Ok(body) => self.core.receive(body, now),
            Err(Broken::Unauthentic) => return count(&self.counters.unauthentic),
            Err(Broken::Stranger) => return count(&self.counters.strangers),
        };
        count(if effects.malformed { &self.counters.malformed } else { &self.counters.received });
        self.perform(effects).await;
    }

    async fn perform(&mut self, effects: Effects) {
        if effects.generation.is_some() {
            self.env.reached(Rare::CameBack);
        }
        if let Some(generation) = effects.generation
            && let Err(error) = store_generation(&self.env, &self.data_dir, generation).await
        {
            // The next start takes one from the clock, which is ahead of this one as long as the clock is right.
            tracing::warn!(%error, "the new generation could not be stored");
        }
        for (to, body) in effects.sends {
            match self.socket.send_to(&self.seal.close(&body), to).await {
                Ok(()) => count(&self.counters.sent),
                Err(error) => {
                    tracing::debug!(%error, %to, "a datagram could not be sent");
                    count(&self.counters.failed);
                }
            }
        }
        // Showing costs a walk over all members; most datagrams say nothing new.
        if effects.changed {
            self.show();
        }
    }

    fn show(&self) {
        let members = self.core.members();
        self.members.send_if_modified(|shown| {
            let changed = **shown != members;
            if changed {
                self.env.trace(|| {
                    let states = members.iter().map(|(id, member)| format!("{id} {:?}", member.state));
                    format!("swim: {}", states.collect::<Vec<_>>().join(", "))
                });
                let suspected = |id: &NodeId| shown.get(id).is_some_and(|member| member.state == MemberState::Suspect);
                if members.iter().any(|(id, member)| member.state == MemberState::Alive && suspected(id)) {
                    self.env.reached(Rare::SuspicionLifted);
                }
                log_changes(shown, &members, self.core.me());
                *shown = Arc::new(members);
            }
            changed
        });
    }
}

fn log_changes(before: &Members, after: &Members, me: NodeId) {
    for (node, member) in after.iter().filter(|(node, _)| **node != me) {
        let address = member.address;
        match (before.get(node).map(|known| known.state), member.state) {
            (None, MemberState::Alive) => tracing::info!(%node, %address, "a node is here"),
            (Some(state), now) if state == now => {}
            (_, MemberState::Alive) => tracing::info!(%node, %address, "a node is alive again"),
            (_, MemberState::Suspect) => tracing::info!(%node, %address, "a node is suspected to be down"),
            (_, MemberState::Down) => tracing::warn!(%node, %address, "a node is down"),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
