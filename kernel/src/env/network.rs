//! Streams for frames between nodes, datagrams for SWIM.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// An owned stream.
pub type BoxStream = Box<dyn ByteStream>;
/// An owned listener.
pub type BoxListener = Box<dyn Listener>;
/// An owned datagram socket.
pub type BoxDatagram = Box<dyn Datagram>;

/// A node's network.
#[async_trait]
pub trait Network: Send + Sync {
    /// Listens for streams.
    async fn listen(&self, address: SocketAddr) -> io::Result<BoxListener>;

    /// Opens a stream, with Nagle's algorithm off.
    async fn connect(&self, address: SocketAddr) -> io::Result<BoxStream>;

    /// Opens a datagram socket.
    async fn datagram(&self, address: SocketAddr) -> io::Result<BoxDatagram>;
}

/// A listening socket.
#[async_trait]
pub trait Listener: Send {
    /// The next stream, with Nagle's algorithm off, and where it comes from.
    async fn accept(&mut self) -> io::Result<(BoxStream, SocketAddr)>;

    /// Where it listens; tells the port when port 0 was asked for.
    fn local_address(&self) -> io::Result<SocketAddr>;
}

/// A datagram socket. Datagrams may be lost, doubled and reordered.
#[async_trait]
pub trait Datagram: Send + Sync {
    /// Sends one datagram.
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()>;

    /// Receives one datagram; a longer one than the buffer is cut.
    async fn receive_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;
}
