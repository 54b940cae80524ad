//! What tests of whole nodes share.

use std::net::{SocketAddr, TcpListener, UdpSocket};

/// An address whose port is free for both streams and datagrams.
pub fn free_address() -> SocketAddr {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}
