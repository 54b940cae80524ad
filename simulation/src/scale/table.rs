//! Reports as Markdown.

use std::fmt::Write as _;

use super::catalog::CatalogReport;
use super::scenes::{GossipReport, PARTITION_SECONDS, SLOW_SECONDS};
use super::traffic::Rates;

fn seconds(micros: Option<u64>) -> String {
    micros.map_or_else(|| "**never**".to_owned(), |micros| format!("{:.1} s", micros as f64 / 1e6))
}

fn bytes(rates: &Rates) -> String {
    format!("{:.0}", rates.sent_bytes)
}

fn percent(part: f64) -> String {
    format!("{:.2} %", part * 100.0)
}

/// One column for each number of nodes.
pub fn gossip_table(reports: &[GossipReport]) -> String {
    let mut table = String::from("| |");
    for report in reports {
        let _ = write!(table, " {} nodes |", report.nodes);
    }
    table.push_str("\n|---|");
    table.push_str(&"---:|".repeat(reports.len()));
    table.push('\n');
    let mut row = |what: &str, cell: &dyn Fn(&GossipReport) -> String| {
        // Writing to a string cannot fail.
        let _ = write!(table, "| {what} |");
        for report in reports {
            let _ = write!(table, " {} |", cell(report));
        }
        table.push('\n');
    };
    row("**Storm**: all start within 1 s; the median node sees all", &|it| seconds(it.storm.median_micros));
    row("the last node sees all", &|it| seconds(it.storm.last_micros));
    row("bytes sent per node and second", &|it| bytes(&it.storm.rates));
    row("**Quiet**: virtual seconds", &|it| (it.quiet.micros / 1_000_000).to_string());
    row("bytes sent per node and second", &|it| bytes(&it.quiet.rates));
    row("datagrams sent per node and second", &|it| format!("{:.1}", it.quiet.rates.sent_datagrams));
    row("busiest node, bytes sent and received per second", &|it| format!("{:.0}", it.quiet.rates.busiest_bytes));
    row("all nodes but one in a hundred, at most", &|it| format!("{:.0}", it.quiet.rates.busy_bytes));
    row("nodes falsely suspected", &|it| it.quiet.suspected.to_string());
    row("nodes falsely down", &|it| it.quiet.called_down.to_string());
    row("**Join** of one more: it sees all", &|it| seconds(it.join.newcomer_micros));
    row("all see all", &|it| seconds(it.join.last_micros));
    row("bytes that the newcomer sends and receives", &|it| it.join.newcomer_bytes.to_string());
    row("**Crash** of 10 %, one at least: somebody calls the first one down", &|it| seconds(it.crash.first_micros));
    row("each is called down by somebody", &|it| seconds(it.crash.each_micros));
    row("the median survivor knows all of them", &|it| seconds(it.crash.median_micros));
    row("the last survivor knows all of them", &|it| seconds(it.crash.last_micros));
    row("bytes sent per node and second", &|it| bytes(&it.crash.rates));
    row("survivors falsely suspected", &|it| it.crash.suspected.to_string());
    row("survivors falsely down", &|it| it.crash.called_down.to_string());
    row(&format!("**Partition** in halves, after {PARTITION_SECONDS} s: other half down"), &|it| {
        percent(it.partition.across[2])
    });
    row("own half alive", &|it| percent(it.partition.within[0]));
    row("bytes sent per node and second", &|it| bytes(&it.partition.rates));
    row("**Heal**: the median node sees all", &|it| seconds(it.partition.median_micros));
    row("the last node sees all", &|it| seconds(it.partition.last_micros));
    row("bytes sent per node and second", &|it| bytes(&it.partition.heal_rates));
    row(&format!("**Slow**: 10 % stand still again and again for {SLOW_SECONDS} s; others falsely suspected"), &|it| {
        it.slow.others_suspected.to_string()
    });
    row("others falsely down", &|it| it.slow.others_called_down.to_string());
    row("slow nodes falsely down", &|it| format!("{} of {}", it.slow.called_down, it.slow.nodes));
    row("the last node sees all, from the end", &|it| seconds(it.slow.last_micros));
    table
}

/// The catalog, one line for each figure.
pub fn catalog_table(report: &CatalogReport) -> String {
    let mut table = String::from("| Catalog | |\n|---|---:|\n");
    let mut row = |what: &str, figure: String| {
        let _ = writeln!(table, "| {what} | {figure} |");
    };
    row("nodes", report.nodes.to_string());
    row("tables", report.tables.to_string());
    row("partitions of three replicas", report.partitions.to_string());
    row("a snapshot, as a node fetches it", format!("{} bytes", report.snapshot_bytes));
    row("for each partition", format!("{:.1} bytes", report.bytes_per_partition()));
    let entries = report.move_entries;
    row(&format!("the move of one replica, in the log ({entries} entries)"), format!("{} bytes", report.move_bytes));
    row("in memory", format!("{} MiB", report.resident_bytes >> 20));
    row("to make all tables", format!("{:.2?}", report.made_in));
    row("to make the last one", format!("{:.2?}", report.last_made_in));
    row("to apply one change of a replica", format!("{:.2?}", report.applied_in));
    row("to look for partitions that lack a replica", format!("{:.2?}", report.looked_over_in));
    row("to copy it for its readers, after each change", format!("{:.2?}", report.copied_in));
    row("to encode a snapshot", format!("{:.2?}", report.encoded_in));
    row("to decode one", format!("{:.2?}", report.decoded_in));
    table
}
