//! Sockets of the operating system.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::env::{BoxDatagram, BoxListener, BoxStream, Datagram, Listener, Network};

pub(super) struct RealNetwork;

#[async_trait]
impl Network for RealNetwork {
    async fn listen(&self, address: SocketAddr) -> io::Result<BoxListener> {
        Ok(Box::new(RealListener(TcpListener::bind(address).await?)))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<BoxStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn datagram(&self, address: SocketAddr) -> io::Result<BoxDatagram> {
        Ok(Box::new(RealDatagram(UdpSocket::bind(address).await?)))
    }
}

struct RealListener(TcpListener);

#[async_trait]
impl Listener for RealListener {
    async fn accept(&mut self) -> io::Result<(BoxStream, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), from))
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct RealDatagram(UdpSocket);

#[async_trait]
impl Datagram for RealDatagram {
    async fn send_to(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        self.0.send_to(bytes, to).await.map(drop)
    }

    async fn receive_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.recv_from(buffer).await
    }
}
