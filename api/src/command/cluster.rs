//! `shoal cluster`: what operators do with nodes.

#![allow(clippy::disallowed_methods, reason = "the command line waits in the real world")]

use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{DEFAULT_URL, Exit};
use crate::client::Client;

/// Between two looks at how far a node has got.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(super) struct ClusterArguments {
    #[command(subcommand)]
    command: ClusterCommand,
    /// The node to ask; any
    #[arg(long, default_value = DEFAULT_URL, env = "SHOAL_URL", global = true)]
    url: String,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Nodes, with their state and how many replicas each holds
    Status,
    /// Have a node give its replicas to others and take no new ones
    Drain(Target),
    /// Have a drained node take replicas again; also ends a drain or a decommission that is under way
    Activate {
        /// The node's number, as `shoal cluster status` shows it
        node: NodeNumber,
    },
    /// Have a node give its replicas to others, then leave the cluster and end
    Decommission(Target),
    /// Give up a node that is gone for good, with everything that its disk held
    Remove {
        /// The node's number, as `shoal cluster status` shows it
        node: NodeNumber,
        /// Say that its disk is lost: what only it held is lost with it
        #[arg(long, required = true)]
        disk_is_lost: bool,
    },
}

#[derive(Args)]
struct Target {
    /// The node's number, as `shoal cluster status` shows it
    node: NodeNumber,
    /// Come back at once, and not when it holds nothing any more
    #[arg(long)]
    no_wait: bool,
}

/// A node's number, with or without the n before it.
#[derive(Debug, Clone, Copy)]
struct NodeNumber(u32);

impl std::str::FromStr for NodeNumber {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('n').unwrap_or(text).parse();
        number.map(Self).map_err(|_| format!("'{text}' is not the number of a node; shoal cluster status shows them"))
    }
}

pub(super) fn run(arguments: &ClusterArguments) -> Result<(), Exit> {
    let client = Client::new(&arguments.url);
    match &arguments.command {
        ClusterCommand::Status => {
            println!("{}", status(&client.cluster()?));
            Ok(())
        }
        ClusterCommand::Drain(target) => {
            client.change_node(target.node.0, "drain")?;
            if target.no_wait {
                return Ok(());
            }
            wait_until_empty(&client, target.node)?;
            println!(
                "n{} holds nothing any more; it takes replicas again with: shoal cluster activate n{0}",
                target.node.0
            );
            Ok(())
        }
        ClusterCommand::Activate { node } => Ok(client.change_node(node.0, "activate")?),
        ClusterCommand::Decommission(target) => {
            client.change_node(target.node.0, "decommission")?;
            if target.no_wait {
                return Ok(());
            }
            wait_until_empty(&client, target.node)?;
            println!("n{} has left the cluster; its data directory can be deleted", target.node.0);
            Ok(())
        }
        ClusterCommand::Remove { node, .. } => {
            client.change_node(node.0, "remove")?;
            println!("n{} is removed; what it held is made anew elsewhere, from the other replicas", node.0);
            Ok(())
        }
    }
}

/// Shows how far a node has got with giving its replicas away. Whoever interrupts this interrupts the waiting only.
fn wait_until_empty(client: &Client, node: NodeNumber) -> Result<(), Exit> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len} replicas gone");
    bar.set_style(style.map_err(Exit::failed)?);
    bar.set_message(format!("n{}", node.0));
    let mut most = 0;
    loop {
        let cluster = client.cluster()?;
        let found = array(&cluster["nodes"]).iter().find(|entry| entry["id"] == node.0);
        let Some(state) = found else {
            bar.finish_and_clear();
            return Ok(());
        };
        if state["state"] == "active" {
            bar.abandon();
            return Err(Exit::failed(format!("n{} was told to stay by somebody else", node.0)));
        }
        let left = state["replicas"].as_u64().unwrap_or(0);
        most = most.max(left);
        bar.set_length(most);
        bar.set_position(most - left);
        if left == 0 && state["state"] == "draining" {
            bar.finish_and_clear();
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// The nodes as a table.
fn status(cluster: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["node", "state", "seems", "replicas", "clients", "nodes", "catalog"]);
    for node in array(&cluster["nodes"]) {
        let text = |field: &str| node[field].as_str().unwrap_or_default().to_owned();
        let role = match (node["id"] == cluster["leader"], node["voter"] == true) {
            (true, _) => "leads",
            (false, true) => "votes",
            (false, false) => "follows",
        };
        table.add_row([
            Cell::new(format!("n{}", node["id"])),
            Cell::new(text("state")),
            Cell::new(text("swim")),
            Cell::new(node["replicas"].to_string()).set_alignment(CellAlignment::Right),
            Cell::new(text("http_address")),
            Cell::new(text("cluster_address")),
            Cell::new(role),
        ]);
    }
    table.to_string()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
