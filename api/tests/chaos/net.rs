//! A network of the test's own: one network namespace per node and one for a router between them, in which links are cut, each
//! direction by itself. Packets of a link that is cut go nowhere and nobody is told, neither of streams nor of datagrams.
//!
//! The test runs itself again inside of namespaces of its own for network, mounts and processes, as root or as anybody who may have
//! a user namespace. All that it makes there ends with it, however it ends.
//!
//! Nodes listen on loopback addresses only. So these are routed: each place has one of its own, and its loopback device no other but
//! 127.0.0.1.

use std::io::Write;
use std::process::{Command, Stdio};

/// Told to the test that runs inside.
const INSIDE: &str = "CHAOS_INSIDE";
/// Says that the test may do without links where there are no namespaces.
const WITHOUT_LINKS: &str = "CHAOS_WITHOUT_LINKS";
/// Ports of every node: each has an address of its own.
const HTTP_PORT: u16 = 9175;
const CLUSTER_PORT: u16 = 9176;
/// Has a namespace take loopback addresses for addresses like any other, but for 127.0.0.1.
const ROUTES_LOOPBACK: &str = "'ip link set lo up; ip address del 127.0.0.1/8 dev lo; ip address add 127.0.0.1/32 dev lo; \
                               echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; echo 1 > /proc/sys/net/ipv4/ip_forward'";
/// The place of the clients. Nodes have theirs from 1.
const CLIENTS: usize = 0;

/// Runs a test of this binary in namespaces of its own, or as it is if there are none and that is allowed.
pub fn inside(test: &str, run: impl FnOnce(bool)) {
    if std::env::var_os(INSIDE).is_some() {
        return run(true);
    }
    let ways = [&["-nmpf", "--mount-proc", "--kill-child"][..], &["-Urnmpf", "--mount-proc", "--kill-child"]];
    let works = |way: &&&[&str]| {
        let mut tried = Command::new("unshare");
        tried.args(**way).args(["ip", "link", "set", "lo", "up"]).stderr(Stdio::null());
        tried.status().is_ok_and(|status| status.success())
    };
    if let Some(way) = ways.iter().find(works) {
        let mut again = Command::new("unshare");
        again.args(*way).arg(std::env::current_exe().unwrap());
        again.args(["--exact", test, "--include-ignored", "--nocapture"]).env(INSIDE, "1");
        let status = again.status().unwrap();
        assert!(status.success(), "inside of its namespaces the test ended with {status}");
        return;
    }
    assert!(
        std::env::var(WITHOUT_LINKS).is_ok_and(|value| value == "1"),
        "no network namespaces can be had here (unshare of util-linux and ip of iproute2 are needed, and root or user namespaces), so \
         no link could be cut; {WITHOUT_LINKS}=1 runs the test without"
    );
    println!("WITHOUT LINKS: nothing is cut, for there are no network namespaces");
    run(false);
}

/// What connects the nodes, which are counted from 0.
pub enum Net {
    /// A router between namespaces.
    Routed,
    /// Loopback, where nothing can be cut: ports for clients and for nodes.
    Loopback(Vec<(String, String)>),
}

impl Net {
    pub fn new(routed: bool, nodes: usize) -> Self {
        if !routed {
            let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            return Self::Loopback((0..nodes).map(|_| (free(), free())).collect());
        }
        // Where ip keeps the names of namespaces, others' are not to be seen, nor ours by others.
        run("mount -t tmpfs chaos /run");
        run("ip netns add router");
        run(&format!("ip netns exec router sh -c {ROUTES_LOOPBACK}"));
        for place in CLIENTS..=nodes {
            let (link, own, router) = (name(place), host(place), format!("127.77.{place}.1"));
            let (mut there, mut peer) = (String::new(), String::new());
            if place != CLIENTS {
                run(&format!("ip netns add {link}"));
                (there, peer) = (format!("ip netns exec {link} "), format!("netns {link}"));
            }
            run(&format!("ip link add {link} netns router type veth peer name eth0 {peer}"));
            run(&format!("ip -n router address add {router}/30 dev {link}"));
            run(&format!("ip -n router link set {link} up"));
            run(&format!("{there}sh -c {ROUTES_LOOPBACK}"));
            run(&format!("{there}ip address add {own}/30 dev eth0"));
            run(&format!("{there}ip link set eth0 up"));
            run(&format!("{there}ip route add 127.77.0.0/16 via {router} src {own}"));
        }
        Self::Routed
    }

    /// Where a node serves clients.
    pub fn http(&self, node: usize) -> String {
        match self {
            Self::Routed => format!("{}:{HTTP_PORT}", host(node + 1)),
            Self::Loopback(ports) => ports[node].0.clone(),
        }
    }

    /// Where it serves nodes.
    pub fn cluster(&self, node: usize) -> String {
        match self {
            Self::Routed => format!("{}:{CLUSTER_PORT}", host(node + 1)),
            Self::Loopback(ports) => ports[node].1.clone(),
        }
    }

    /// What runs a command at a node's place.
    pub fn at(&self, node: usize) -> Vec<String> {
        match self {
            Self::Routed => ["ip", "netns", "exec", &name(node + 1)].map(String::from).to_vec(),
            Self::Loopback(_) => Vec::new(),
        }
    }

    /// Cuts the ways from some nodes to others, in this direction only.
    pub fn cut(&self, ways: &[Way]) {
        assert!(ways.iter().take(1).all(|way| way.is_open()), "{ways:?}");
        change("add", ways);
        assert!(!ways.iter().take(1).any(|way| way.is_open()), "{ways:?}");
    }

    /// Undoes that.
    pub fn mend(&self, ways: &[Way]) {
        change("delete", ways);
    }
}

/// A direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    from: usize,
    to: usize,
}

impl Way {
    pub fn between(from: usize, to: usize) -> Self {
        Self { from: from + 1, to: to + 1 }
    }

    pub fn to_clients(from: usize) -> Self {
        Self { from: from + 1, to: CLIENTS }
    }

    pub fn back(self) -> Self {
        Self { from: self.to, to: self.from }
    }

    /// Whether the router lets packets through.
    fn is_open(self) -> bool {
        let (from, to, link) = (host(self.from), host(self.to), name(self.from));
        let mut ip = Command::new("ip");
        ip.args(["-n", "router", "route", "get", &to, "from", &from, "iif", &link]);
        ip.output().unwrap().status.success()
    }
}

fn name(place: usize) -> String {
    format!("place{place}")
}

fn host(place: usize) -> String {
    format!("127.77.{place}.2")
}

/// All at once: a node that is cut off is cut off from everybody.
fn change(how: &str, ways: &[Way]) {
    let rules = ways.iter().map(|way| format!("rule {how} from {} to {} blackhole\n", host(way.from), host(way.to)));
    let rules: String = rules.collect();
    let mut ip = Command::new("ip").args(["-n", "router", "-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "{rules}");
}

fn run(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}
