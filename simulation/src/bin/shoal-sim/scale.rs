//! `scale`: membership and catalog alone, at sizes that whole nodes cannot be simulated at.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use shoal_simulation::scale::{
    CatalogReport, GossipReport, Meter, Weather, broken_bounds, catalog, catalog_table, gossip, gossip_table,
};

use crate::Outcome;

/// Nodes of the catalog, at least.
const CATALOG_NODES_MIN: usize = 1_000;

#[derive(Args)]
pub struct ScaleArguments {
    /// Numbers of nodes, each taken through all scenes. 5000 nodes take about 9 GiB and half an hour.
    #[arg(long, value_name = "N", default_values_t = [100, 1_000, 5_000], value_parser = nodes)]
    nodes: Vec<usize>,
    /// Partitions of the catalog, over as many nodes as the largest `--nodes`, and over 1000 at least; 0 leaves the catalog out.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    partitions: u64,
    /// Virtual seconds of quiet.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    quiet: u64,
    /// Datagrams of a thousand that get lost.
    #[arg(long, value_name = "PERMILLE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(..1_000))]
    loss: u64,
    /// Where all that is drawn comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the tables there, too, as Markdown.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Writes the figures and the bounds that do not hold, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// The form of `--report`.
#[derive(Serialize)]
struct Report<'a> {
    gossip: &'a [GossipReport],
    catalog: Option<&'a CatalogReport>,
    broken: &'a [String],
}

/// Below, nobody is left to ask others about a node; above, numbers do not fit into the addresses of the simulated network.
fn nodes(text: &str) -> Result<usize, String> {
    let nodes: usize = text.parse().map_err(|error| format!("{error}"))?;
    if (3..=100_000).contains(&nodes) { Ok(nodes) } else { Err("from 3 to 100000".to_owned()) }
}

/// Tells on the terminal how far it is.
struct Watch {
    start: Instant,
}

impl Meter for Watch {
    fn elapsed(&mut self) -> Duration {
        self.start.elapsed()
    }

    fn resident_bytes(&mut self) -> u64 {
        // The second number of the file counts pages.
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
        pages * PAGE_BYTES
    }

    fn scene(&mut self, nodes: usize, scene: &str, now: u64) {
        if io::stderr().is_terminal() {
            let (seconds, mib) = (self.start.elapsed().as_secs(), self.resident_bytes() >> 20);
            let _ =
                writeln!(io::stderr(), "{nodes} nodes, {scene}: {} virtual s, {seconds} s, {mib} MiB", now / 1_000_000);
        }
    }
}

/// Bytes of a page of memory, where there is `/proc`.
const PAGE_BYTES: u64 = 4_096;

pub fn run(arguments: &ScaleArguments) -> io::Result<Outcome> {
    let mut watch = Watch { start: Instant::now() };
    let weather = Weather { loss_permille: arguments.loss, ..Weather::default() };
    // The catalog comes first: what a large world has given back would hide how much memory it takes.
    let map = match arguments.partitions {
        0 => None,
        partitions => {
            let nodes = arguments.nodes.iter().copied().fold(CATALOG_NODES_MIN, usize::max);
            Some(catalog(nodes, partitions, arguments.seed, &mut watch).map_err(io::Error::other)?)
        }
    };
    let mut reports = Vec::new();
    for nodes in &arguments.nodes {
        let report = gossip(*nodes, arguments.quiet, arguments.seed, weather, &mut watch).map_err(io::Error::other)?;
        reports.push(report);
    }
    let tables = [(!reports.is_empty()).then(|| gossip_table(&reports)), map.as_ref().map(catalog_table)];
    let text = tables.into_iter().flatten().collect::<Vec<_>>().join("\n");
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if let Some(path) = &arguments.output {
        std::fs::write(path, &text)?;
    }
    let broken = broken_bounds(&reports, map.as_ref());
    if let Some(path) = &arguments.report {
        let report = Report { gossip: &reports, catalog: map.as_ref(), broken: &broken };
        serde_json::to_writer_pretty(std::fs::File::create(path)?, &report)?;
    }
    writeln!(out)?;
    for bound in &broken {
        writeln!(out, "broken: {bound}")?;
    }
    if broken.is_empty() {
        writeln!(out, "every bound holds")?;
    }
    Ok(if broken.is_empty() { Outcome::Held } else { Outcome::Broken })
}
