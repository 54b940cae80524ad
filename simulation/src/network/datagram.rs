//! Datagrams: lost, doubled, overtaken.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use shoal_kernel::env::Datagram;
use xxhash_rust::xxh3::xxh3_64;

use super::deliver;
use crate::trace::Kind;
use crate::world::{HostId, Shared};

/// Datagrams that wait to be received; further ones are dropped, as an operating system does.
const QUEUE_MAX: usize = 1024;
/// The greatest datagram of IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;
/// How long a datagram is held back at most so that others overtake it.
const HELD_MICROS_MAX: u64 = 20_000;

#[derive(Default)]
pub(super) struct Socket {
    queue: VecDeque<(Bytes, SocketAddr)>,
    reader: Option<Waker>,
}

pub(super) struct SimDatagram {
    shared: Arc<Shared>,
    host: HostId,
    life: u64,
    address: SocketAddr,
}

impl SimDatagram {
    pub(super) fn new(shared: Arc<Shared>, host: HostId, life: u64, address: SocketAddr) -> Self {
        Self { shared, host, life, address }
    }
}

impl Drop for SimDatagram {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        // The address may belong to a later life by now.
        if core.lives(self.host, self.life) {
            core.network.sockets.remove(&self.address);
        }
    }
}

#[async_trait]
impl Datagram for SimDatagram {
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        if bytes.len() > DATAGRAM_BYTES_MAX {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let Some(peer) = HostId::of(to) else { return Err(io::ErrorKind::HostUnreachable.into()) };
        let mut core = self.shared.core();
        if !core.lives(self.host, self.life) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let now = core.now_micros;
        let Some(link) = core.network.links.get_mut(&(self.host, peer)) else { return Ok(()) };
        let faults = link.faults;
        // Every stream is drawn from for every datagram, so that one fault's rate does not shift another's choices.
        let lost = link.loss.chance(faults.loss_permille) || link.cuts > 0;
        let copies = if link.duplicates.chance(faults.duplicate_permille) { 2 } else { 1 };
        let held = link.reordering.chance(faults.reorder_permille);
        let arrivals: Vec<u64> = (0..copies)
            .map(|_| {
                let transit = link.transit_micros(now, bytes.len());
                now + transit + if held { link.reordering.below(HELD_MICROS_MAX) } else { 0 }
            })
            .collect();
        let (hash, after) = (xxh3_64(bytes), core.trace_lines());
        if lost {
            let (host, bytes) = (self.host, bytes.len());
            core.trace(Kind::Network, format_args!("{host} -> {peer} udp {bytes} B {hash:016x} lost @{after}"));
            return Ok(());
        }
        let payload = Bytes::copy_from_slice(bytes);
        for at in arrivals {
            let (shared, from, payload) = (self.shared.clone(), self.address, payload.clone());
            deliver(&mut core, peer, at, move || {
                let reader = {
                    let mut core = shared.core();
                    let host = HostId::of(from).unwrap_or(peer);
                    let bytes = payload.len();
                    core.trace(Kind::Network, format_args!("{host} -> {peer} udp {bytes} B {hash:016x} @{after}"));
                    let Some(socket) = core.network.sockets.get_mut(&to) else { return };
                    if socket.queue.len() < QUEUE_MAX {
                        socket.queue.push_back((payload, from));
                    }
                    socket.reader.take()
                };
                if let Some(reader) = reader {
                    reader.wake();
                }
            });
        }
        Ok(())
    }

    async fn receive_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|context| {
            let mut core = self.shared.core();
            if !core.lives(self.host, self.life) {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            let Some(socket) = core.network.sockets.get_mut(&self.address) else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            match socket.queue.pop_front() {
                Some((bytes, from)) => {
                    let len = bytes.len().min(buffer.len());
                    buffer[..len].copy_from_slice(&bytes[..len]);
                    Poll::Ready(Ok((len, from)))
                }
                None => {
                    socket.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}
