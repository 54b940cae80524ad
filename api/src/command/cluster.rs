//! `shoal cluster`: what operators do with nodes.

#![allow(clippy::disallowed_methods, reason = "the command line waits in the real world")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::Value;
use shoal_actors::recovery;
use shoal_kernel::NodeId;
use shoal_kernel::env::real;
use shoal_kernel::level::quorum;

use super::{DEFAULT_URL, Exit};
use crate::client::{Client, ClientError};

/// Between two looks at how far a node has got.
const LOOK: Duration = Duration::from_millis(500);
/// Looks without an answer before the waiting is given up.
const SILENT_MAX: u32 = 20;
/// Looks at which there is nothing to move before that is believed.
const QUIET_MIN: u32 = 4;
/// Looks without progress before it is said what is waited for.
const STILL_MAX: u32 = 20;
/// Partitions that are named then.
const WAITS_SHOWN: usize = 5;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The node holds nothing.
    Empty,
    /// It is no member any more.
    Gone,
}

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
    /// Have replicas moved until all nodes carry about the same, as they are by themselves unless that was paused
    Rebalance {
        /// Only list the moves
        #[arg(long)]
        dry_run: bool,
        /// Have no more replicas moved for balance, and call off what is on its way for it alone
        #[arg(long, conflicts_with = "dry_run")]
        pause: bool,
        /// Come back at once, and not when there is nothing left to move
        #[arg(long, conflicts_with_all = ["dry_run", "pause"])]
        no_wait: bool,
    },
    /// Give up a node that is gone for good, with everything that its disk held
    Remove {
        /// The node's number, as `shoal cluster status` shows it
        node: NodeNumber,
        /// Say that its disk is lost: what only it held is lost with it
        #[arg(long, required = true)]
        disk_is_lost: bool,
    },
    /// Make a stopped node the only voter on the catalog, when most of the voters are gone for good
    #[command(after_help = RECOVER_HELP)]
    Recover {
        /// The node's data directory
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// All nodes that are gone for good, separated by commas
        #[arg(long, value_name = "NODES", required_unless_present = "follow", value_delimiter = ',')]
        lost: Vec<NodeNumber>,
        /// Only say what would be done, and how far the node has got
        #[arg(long)]
        dry_run: bool,
        /// Instead, have the node forget its own catalog and take the one that was recovered on another node
        #[arg(long, conflicts_with_all = ["lost", "dry_run"])]
        follow: bool,
    },
}

const RECOVER_HELP: &str = "\
Without most of its voters the catalog takes no changes, though tables are served. If they are never to come back:
  1. Stop all nodes that are left, and take the one that has got furthest: the greatest term, then the greatest entry, of what
     shoal cluster recover --data-dir DIR --lost n2,n3 --dry-run says of each.
  2. shoal cluster recover --data-dir DIR --lost n2,n3
  3. Start that node, then the others; they follow it. One that had got further ends with catalog_diverged: it follows after
     shoal cluster recover --data-dir DIR --follow. Its rows stay, but for those of tables and partitions that the catalog lacks now.
  4. shoal cluster remove n2 --disk-is-lost, and so on: what the lost ones held is made anew from other replicas.
A change that only the lost ones knew of is lost, and so are rows that were written under it. If one of them still runs, there are two catalogs: make sure that none does, and empty
its data directory before it is started again.";

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
        ClusterCommand::Recover { data_dir, follow: true, .. } => {
            let (node, forgotten) = recovery::follow_catalog(&real::disk(), data_dir)?;
            match forgotten.end {
                Some(end) => println!("{node} has forgotten its catalog, whose log ended with {end}"),
                None => println!("{node} has no catalog to forget"),
            }
            println!("it takes the catalog of the others when it has been started");
            Ok(())
        }
        ClusterCommand::Recover { data_dir, lost, dry_run, .. } => {
            let lost: BTreeSet<NodeId> = lost.iter().map(|node| NodeId(node.0)).collect();
            let (node, recovery) = recovery::recover_catalog(&real::disk(), data_dir, &lost, *dry_run)?;
            println!("the log of {node} ends with {}", recovery.end);
            let is = if *dry_run { "would be" } else { "is" };
            println!("the catalog {is} that of {node} alone");
            if *dry_run {
                return Ok(());
            }
            for other in &recovery.others {
                println!("{other} follows it when both have been started");
            }
            for lost in &lost {
                println!("give {lost} up when the node runs: shoal cluster remove {lost} --disk-is-lost");
            }
            Ok(())
        }
        ClusterCommand::Status => {
            println!("{}", status(&client.cluster()?));
            Ok(())
        }
        ClusterCommand::Drain(target) => {
            client.change_node(target.node.0, "drain")?;
            if target.no_wait {
                return Ok(());
            }
            wait_until_empty(&client, target.node, Wanted::Empty)?;
            println!(
                "n{} holds nothing any more; it takes replicas again with: shoal cluster activate n{0}",
                target.node.0
            );
            Ok(())
        }
        ClusterCommand::Rebalance { dry_run: true, .. } => {
            println!("{}", moves(&client.balance()?));
            Ok(())
        }
        ClusterCommand::Rebalance { pause: true, .. } => {
            client.change_balance("pause")?;
            println!("no replicas are moved for balance; they are again after: shoal cluster rebalance");
            Ok(())
        }
        ClusterCommand::Rebalance { no_wait, .. } => {
            client.change_balance("resume")?;
            if *no_wait { Ok(()) } else { wait_until_balanced(&client) }
        }
        ClusterCommand::Activate { node } => Ok(client.change_node(node.0, "activate")?),
        ClusterCommand::Decommission(target) => {
            client.change_node(target.node.0, "decommission")?;
            if target.no_wait {
                return Ok(());
            }
            wait_until_empty(&client, target.node, Wanted::Gone)?;
            println!("n{} has left the cluster; its data directory can be deleted", target.node.0);
            Ok(())
        }
        ClusterCommand::Remove { node, .. } => {
            // Afterwards nobody knows any more what it held.
            let lost = may_be_lost(&client.cluster()?, *node);
            client.change_node(node.0, "remove")?;
            println!("n{} is removed; what it held is made anew elsewhere, from the other replicas", node.0);
            lost.iter().for_each(|line| println!("{line}"));
            Ok(())
        }
    }
}

/// The answer of a node that may be busy, or just be restarted.
fn patiently(ask: impl Fn() -> Result<Value, ClientError>) -> Result<Value, ClientError> {
    for _ in 0..SILENT_MAX {
        match ask() {
            Err(error) if error.retryable() => std::thread::sleep(LOOK),
            answer => return answer,
        }
    }
    ask()
}

/// Shows how far a node has got with giving its replicas away, and what that waits for. Whoever interrupts this interrupts the
/// waiting only.
fn wait_until_empty(client: &Client, node: NodeNumber, wanted: Wanted) -> Result<(), Exit> {
    let client = elsewhere(client, node)?;
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len} replicas gone");
    bar.set_style(style.map_err(Exit::failed)?);
    bar.set_message(format!("n{}", node.0));
    let (mut most, mut least, mut still) = (0, u64::MAX, 0u32);
    loop {
        let cluster = patiently(|| client.cluster())?;
        let found = array(&cluster["nodes"]).iter().find(|entry| entry["id"] == node.0);
        let state = found.and_then(|entry| entry["state"].as_str());
        match (state, wanted) {
            (None | Some("leaving"), Wanted::Gone) | (Some("draining"), Wanted::Empty) => {}
            _ => {
                bar.abandon();
                let state = state.unwrap_or("no member any more");
                return Err(Exit::failed(format!("n{} is {state} by somebody else's wish", node.0)));
            }
        }
        let left = found.and_then(|entry| entry["replicas"].as_u64()).unwrap_or(0);
        if left == 0 && (found.is_none() || wanted == Wanted::Empty) {
            bar.finish_and_clear();
            return Ok(());
        }
        most = most.max(left);
        bar.set_length(most);
        bar.set_position(most - left);
        still = if left < least { 0 } else { still + 1 };
        least = left;
        if still == STILL_MAX {
            for line in waits_for(&cluster, node) {
                bar.suspend(|| eprintln!("{line}"));
            }
            still = 0;
        }
        std::thread::sleep(LOOK);
    }
}

/// Shows how much there is left to move. Whoever interrupts this interrupts the waiting only.
fn wait_until_balanced(client: &Client) -> Result<(), Exit> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len} moves done");
    bar.set_style(style.map_err(Exit::failed)?);
    let (mut most, mut quiet) = (0, 0u32);
    loop {
        let balance = patiently(|| client.balance())?;
        if balance["paused"] == true {
            bar.abandon();
            return Err(Exit::failed("balance is paused by somebody else's wish"));
        }
        let (moving, wanted) = (array(&balance["moving"]).len(), array(&balance["wanted"]).len());
        let left = (moving + wanted) as u64;
        // What moves next is decided on once a second, by what nodes said of themselves a while ago.
        quiet = if left == 0 { quiet + 1 } else { 0 };
        if quiet == QUIET_MIN {
            bar.finish_and_clear();
            println!("all nodes carry about the same");
            return Ok(());
        }
        most = most.max(left);
        bar.set_length(most);
        bar.set_position(most - left);
        bar.set_message(format!("{moving} under way"));
        std::thread::sleep(LOOK);
    }
}

/// What balance asks for, as a table.
fn moves(balance: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["partition", "table", "from", "to", "bytes"]);
    let wanted = array(&balance["wanted"]);
    for one in wanted {
        let bytes = HumanBytes(one["bytes"].as_u64().unwrap_or(0)).to_string();
        table.add_row([
            Cell::new(format!("p{}", one["partition"])),
            Cell::new(one["table"].as_str().unwrap_or_default()),
            Cell::new(format!("n{}", one["from"])),
            Cell::new(format!("n{}", one["to"])),
            Cell::new(bytes).set_alignment(CellAlignment::Right),
        ]);
    }
    let moving = match array(&balance["moving"]).len() {
        0 => String::new(),
        moving => format!("; {moving} under way"),
    };
    let paused = if balance["paused"] == true { "; balance is paused" } else { "" };
    match wanted.len() {
        0 => format!("nothing to move{moving}{paused}"),
        count => format!("{table}\n{count} to move{moving}{paused}"),
    }
}

/// Another node to ask, for that one may go away; itself if there is none.
fn elsewhere(client: &Client, node: NodeNumber) -> Result<Client, Exit> {
    let cluster = client.cluster()?;
    if cluster["node"] != node.0 {
        return Ok(client.clone());
    }
    let mut others = array(&cluster["nodes"]).iter().filter(|entry| entry["id"] != node.0 && entry["swim"] == "alive");
    let address = others.find_map(|entry| entry["http_address"].as_str());
    Ok(address.map_or_else(|| client.clone(), |address| Client::new(&format!("http://{address}"))))
}

/// Why a node still holds replicas, as far as the cluster says so.
fn waits_for(cluster: &Value, node: NodeNumber) -> Vec<String> {
    let held = array(&cluster["partitions"]).iter().filter_map(|partition| {
        let replicas = array(&partition["replicas"]);
        replicas.iter().any(|replica| replica["node"] == node.0).then_some((partition, replicas))
    });
    let waits = held.map(|(partition, replicas)| {
        let problems = replicas.iter().filter_map(|replica| {
            let problem = match (replica["reachable"] == true, replica["problem"].as_str()) {
                (false, _) => "does not answer",
                (true, problem) => problem?,
            };
            Some(format!("n{}: {problem}", replica["node"]))
        });
        let problems: Vec<String> = problems.collect();
        let why = if problems.is_empty() { "its turn has not come".to_owned() } else { problems.join("; ") };
        format!("p{} of table {} waits: {why}", partition["id"], partition["table"].as_str().unwrap_or_default())
    });
    waits.take(WAITS_SHOWN).collect()
}

/// What may be lost with a node's disk, in words.
fn may_be_lost(cluster: &Value, node: NodeNumber) -> Vec<String> {
    let votes = |replica: &&Value| replica["state"] == "voting";
    let held: Vec<(&Value, Vec<&Value>)> = array(&cluster["partitions"])
        .iter()
        .filter_map(|partition| {
            let voters: Vec<&Value> = array(&partition["replicas"]).iter().filter(votes).collect();
            let (own, others): (Vec<&Value>, _) = voters.into_iter().partition(|replica| replica["node"] == node.0);
            (!own.is_empty()).then_some((partition, others))
        })
        .collect();
    if held.is_empty() {
        return vec!["it held no replica that votes, so nothing is lost with it".to_owned()];
    }
    let mut lines = vec![format!(
        "it held replicas of {} partitions: rows that were acknowledged at level one, and by it alone, are lost",
        held.len()
    )];
    let is_whole = |replica: &&&Value| replica["reachable"] == true && replica["problem"].is_null();
    let doubtful = held.iter().filter(|(_, others)| {
        // What was acknowledged at quorum may have been here, and else on those only that do not serve.
        let away = others.len() - others.iter().filter(is_whole).count();
        away + 1 >= quorum(others.len() + 1)
    });
    let doubtful: Vec<String> = doubtful
        .map(|(partition, others)| {
            let (whole, all) = (others.iter().filter(is_whole).count(), others.len());
            let table = partition["table"].as_str().unwrap_or_default();
            format!("p{} of table {table} ({whole} of {all} other replicas serve)", partition["id"])
        })
        .collect();
    match doubtful.as_slice() {
        [] => lines.push("what was acknowledged at quorum or all is on the other replicas".to_owned()),
        some => {
            let more = some.len().saturating_sub(WAITS_SHOWN);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let shown = some.iter().take(WAITS_SHOWN).cloned().collect::<Vec<_>>().join(", ");
            lines.push(format!(
                "rows that were acknowledged at quorum may be lost, too, unless the replicas that do not serve come back: {shown}{more}"
            ));
        }
    }
    lines
}

/// The nodes as a table.
fn status(cluster: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["node", "zone", "state", "seems", "replicas", "bytes", "clients", "nodes", "catalog"]);
    let replicas = || array(&cluster["partitions"]).iter().flat_map(|partition| array(&partition["replicas"]));
    for node in array(&cluster["nodes"]) {
        let bytes = replicas().filter(|replica| replica["node"] == node["id"]);
        let bytes: u64 = bytes.filter_map(|replica| replica["bytes"].as_u64()).sum();
        let text = |field: &str| node[field].as_str().unwrap_or_default().to_owned();
        let role = match (node["id"] == cluster["leader"], node["voter"] == true) {
            (true, _) => "leads",
            (false, true) => "votes",
            (false, false) => "follows",
        };
        table.add_row([
            Cell::new(format!("n{}", node["id"])),
            Cell::new(text("zone")),
            Cell::new(text("state")),
            Cell::new(text("swim")),
            Cell::new(node["replicas"].to_string()).set_alignment(CellAlignment::Right),
            Cell::new(HumanBytes(bytes).to_string()).set_alignment(CellAlignment::Right),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_lost_disk_takes_is_told() {
        let replica = |node: u32, reachable: bool| json!({"node": node, "state": "voting", "reachable": reachable});
        let told = |replicas: Vec<Value>| {
            let cluster = json!({"partitions": [{"id": 7, "table": "kv", "replicas": replicas}]});
            may_be_lost(&cluster, NodeNumber(3)).join("; ")
        };
        assert!(told(vec![replica(1, true), replica(2, true)]).contains("nothing is lost"));
        let one_away = told(vec![replica(1, true), replica(2, true), replica(3, false)]);
        assert!(one_away.contains("replicas of 1 partitions") && one_away.contains("is on the other"), "{one_away}");
        let two_away = told(vec![replica(1, true), replica(2, false), replica(3, false)]);
        assert!(two_away.contains("p7 of table kv (1 of 2 other replicas serve)"), "{two_away}");
        let of_five =
            told(vec![replica(1, true), replica(2, true), replica(3, false), replica(4, false), replica(5, true)]);
        assert!(of_five.contains("is on the other"), "{of_five}");
    }
}
