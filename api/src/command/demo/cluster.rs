//! Three nodes in one process. Each has a runtime of its own, so that killing one drops everything it was doing at whatever
//! point it was, as a crash would.

#![allow(clippy::disallowed_methods, reason = "the demo binds sockets and waits in the real world")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_actors::Node;
use shoal_actors::service::NodeConfig;
use shoal_kernel::env::real;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::backend::NodeBackend;
use crate::client::Client;
use crate::command::Exit;
use crate::objects::RealObjectStores;
use crate::server::{Server, ServerOptions};

/// How many nodes there are.
pub(super) const NODES: usize = 3;

/// Node 1's door if it is free; the others stand ten apart.
const HTTP_PORT: u16 = 9175;

/// How long nodes may take to find each other.
const READY_WITHIN: Duration = Duration::from_secs(60);

pub(super) struct Cluster {
    members: Vec<Member>,
    /// Removed with everything in it when the demo ends.
    directory: TempDir,
}

struct Member {
    number: usize,
    config: NodeConfig,
    running: Option<Running>,
}

struct Running {
    node: Node,
    server: Server,
    runtime: Runtime,
}

impl Cluster {
    pub(super) fn start() -> Result<Self, Exit> {
        let directory = TempDir::with_prefix("shoal-demo-").map_err(Exit::failed)?;
        let mut members = Vec::new();
        let mut first = None;
        for number in 1..=NODES {
            let http = http_address(number).map_err(Exit::failed)?;
            let address = cluster_address().map_err(Exit::failed)?;
            let mut config = NodeConfig::new(directory.path().join(format!("node{number}")), address, http);
            // A demo must not refuse to run on a laptop that is nearly full.
            config.disk_reserve_bytes = 16 << 20;
            config.object_stores = Some(Arc::new(RealObjectStores));
            config.join = first.into_iter().collect();
            first.get_or_insert(address);
            let mut member = Member { number, config, running: None };
            member.start()?;
            members.push(member);
        }
        let cluster = Self { members, directory };
        cluster.wait(|cluster| {
            (1..=NODES).all(|number| {
                let client = cluster.client(number);
                client.ready().is_ok()
                    && client
                        .cluster()
                        .is_ok_and(|seen| seen["nodes"].as_array().is_some_and(|nodes| nodes.len() == NODES))
            })
        })?;
        Ok(cluster)
    }

    fn wait(&self, until: impl Fn(&Self) -> bool) -> Result<(), Exit> {
        let start = Instant::now();
        while !until(self) {
            if start.elapsed() > READY_WITHIN {
                return Err(Exit::failed(format!("the nodes did not find each other within {READY_WITHIN:?}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// What removes the directory when the process has to end at once.
    pub(super) fn cleanup(&self) -> impl FnOnce() + Send + 'static + use<> {
        let directory = self.directory.path().to_owned();
        // Nothing can be done about a directory that cannot be removed, and nobody is left to tell.
        move || drop(std::fs::remove_dir_all(directory))
    }

    /// Puts a bundled file where an import can read it.
    pub(super) fn write_file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Exit> {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).map_err(Exit::failed)?;
        Ok(path)
    }

    fn member(&self, number: usize) -> &Member {
        &self.members[number - 1]
    }

    pub(super) fn url(&self, number: usize) -> String {
        format!("http://{}", self.member(number).config.http_address)
    }

    pub(super) fn client(&self, number: usize) -> Client {
        Client::new(&self.url(number))
    }

    pub(super) fn clients(&self) -> Vec<Client> {
        (1..=NODES).map(|number| self.client(number)).collect()
    }

    /// A node that runs; the first if none does.
    pub(super) fn any_client(&self) -> Client {
        let running = self.members.iter().find(|member| member.running.is_some());
        self.client(running.map_or(1, |member| member.number))
    }

    /// Crashes a node.
    pub(super) fn kill(&mut self, number: usize) -> Result<String, String> {
        let running = self.members[number - 1].running.take();
        running.ok_or_else(|| format!("node {number} does not run"))?.kill();
        Ok(format!("node {number} is gone; \\start {number} brings it back"))
    }

    /// Starts a crashed node from its directory.
    pub(super) fn restart(&mut self, number: usize) -> Result<String, String> {
        if self.member(number).running.is_some() {
            return Err(format!("node {number} runs already"));
        }
        let member = &mut self.members[number - 1];
        // It joins through the others, also the first, which founded the cluster.
        member.start().map_err(|exit| exit.message)?;
        Ok(format!("node {number} is back and catches up; \\cluster shows its lag"))
    }

    pub(super) fn stop(self) -> Result<(), Exit> {
        for member in self.members {
            if let Some(running) = member.running {
                running.stop();
            }
        }
        Ok(())
    }
}

impl Member {
    fn start(&mut self) -> Result<(), Exit> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .thread_name(format!("demo-node-{}", self.number))
            .build()
            .map_err(Exit::failed)?;
        let listener = TcpListener::bind(self.config.http_address)
            .map_err(|error| Exit::failed(format!("{}: {error}", self.config.http_address)))?;
        let config = self.config.clone();
        let (node, server) = runtime.block_on(async {
            let env = real::env(&real::RealOptions {
                blocking_threads: 2,
                compute_threads: 2,
                ..real::RealOptions::default()
            })
            .map_err(Exit::failed)?;
            let node = Node::start(env, config).await?;
            let backend = Arc::new(NodeBackend::new(node.clone(), runtime.handle().clone()));
            let mut options = ServerOptions::new(self.config.http_address);
            options.workers = 2;
            let server = Server::start(backend, listener, &options).map_err(Exit::failed)?;
            Ok::<_, Exit>((node, server))
        })?;
        self.running = Some(Running { node, server, runtime });
        Ok(())
    }
}

impl Running {
    /// No farewell: connections are cut and every task is dropped where it stands.
    fn kill(self) {
        let Self { node, server, runtime } = self;
        {
            let _last_handle = node;
            runtime.block_on(server.abort());
        }
        runtime.shutdown_timeout(Duration::from_secs(2));
    }

    fn stop(self) {
        self.runtime.block_on(async {
            self.server.stop().await;
            self.node.shutdown().await;
        });
        self.runtime.shutdown_timeout(Duration::from_secs(2));
    }
}

fn http_address(number: usize) -> std::io::Result<SocketAddr> {
    let offset = u16::try_from(10 * (number - 1)).unwrap_or_default();
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT + offset));
    match TcpListener::bind(usual) {
        Ok(listener) => listener.local_addr(),
        Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr(),
    }
}

/// A port that is free for streams and for datagrams.
fn cluster_address() -> std::io::Result<SocketAddr> {
    let mut last = None;
    for _ in 0..100 {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        match UdpSocket::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("no free port")))
}
