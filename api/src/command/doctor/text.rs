//! The doctor's reports, for people.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use shoal_actors::doctor::{ColumnDump, Examined, Finding, PageDump, ReplicaExamined, SegmentDump, Severity};

/// What `shoal doctor DIR` prints.
pub(super) fn report(examined: &Examined) -> String {
    let mut text = vec![head(examined)];
    if !examined.replicas.is_empty() {
        text.push(replicas(&examined.replicas).to_string());
    }
    for severity in [Severity::Damage, Severity::Note] {
        let chosen = examined.all_findings().filter(|(_, finding)| finding.severity == severity);
        text.extend(chosen.map(|(replica, finding)| explain(replica, finding)));
    }
    let notes = examined.all_findings().count() - examined.damaged();
    text.push(match examined.damaged() {
        0 => format!("Sound. {}", count(notes, "note")),
        damaged => format!("DAMAGED: {}, {}", count(damaged, "problem"), count(notes, "note")),
    });
    text.join("\n")
}

fn head(examined: &Examined) -> String {
    let mut text = examined.dir.display().to_string();
    if let Some(node) = examined.node {
        text.push_str(&format!(" of node {node}"));
    }
    if let Some(catalog) = &examined.catalog {
        text.push_str(&format!(
            "\ncatalog: version {}, {}, {}, {}; log of {} with {}{}, snapshot of {}",
            catalog.version,
            count(catalog.nodes, "node"),
            count(catalog.tables, "table"),
            count(catalog.partitions, "partition"),
            bytes(catalog.log_bytes),
            count(catalog.log_entries, "entry"),
            catalog.end.as_ref().map(|end| format!(" up to {end}")).unwrap_or_default(),
            bytes(catalog.snapshot_bytes),
        ));
    }
    if let Some(bound) = &examined.clock_bound {
        text.push_str(&format!("\nclock: no version above {bound} was given out"));
    }
    text
}

fn replicas(replicas: &[ReplicaExamined]) -> Table {
    let mut table = new_table(&[
        "replica",
        "table",
        "counts",
        "segments",
        "rows",
        "dead",
        "bytes",
        "log records",
        "log rows",
        "log bytes",
        "flushed",
        "position",
        "damage",
    ]);
    for replica in replicas {
        let store = &replica.store;
        let dead: u64 = store.segments.iter().map(|segment| segment.dead).sum();
        let damage = store.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
        let counts = replica.counts.map_or("?", |counts| if counts { "yes" } else { "no" });
        let known = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
        table.add_row(vec![
            Cell::new(&replica.name),
            Cell::new(replica.table.as_deref().unwrap_or("?")),
            Cell::new(counts),
            number(store.segments.len()),
            number(store.segment_rows),
            number(dead),
            number(bytes(store.bytes)),
            number(store.log_records),
            number(store.log_rows),
            number(bytes(store.log_bytes)),
            number(known(store.flushed)),
            number(known(store.position)),
            number(damage),
        ]);
    }
    table
}

fn explain(replica: Option<&ReplicaExamined>, finding: &Finding) -> String {
    let mark = match finding.severity {
        Severity::Damage => "DAMAGE",
        Severity::Note => "note",
    };
    let place = replica.map(|replica| format!("replicas/{}/", replica.name)).unwrap_or_default();
    let offset = finding.problem.offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
    let (file, message, remedy) = (&finding.problem.file, &finding.problem.message, &finding.remedy);
    format!("{mark}  {place}{file}{offset}: {message}\n        {remedy}")
}

/// What `shoal doctor --dump` prints.
pub(super) fn dump(dump: &SegmentDump) -> String {
    let mut text = vec![format!(
        "{}: format {}, {} bytes, {}, {}, {} of 8 pages, {}\nversions {} to {}\npositions {} to {}\nkeys {} to {}\n\
         footer at byte {}, {} bytes",
        dump.file,
        dump.format,
        dump.bytes,
        count(dump.rows as usize, "row"),
        count(dump.pages as usize, "page"),
        count(dump.groups, "row group"),
        count(dump.tombstones as usize, "tombstone"),
        dump.versions.0,
        dump.versions.1,
        dump.positions.0,
        dump.positions.1,
        dump.keys.0,
        dump.keys.1,
        dump.footer_offset,
        dump.footer_bytes,
    )];
    text.push(columns(dump).to_string());
    text.push(pages(dump).to_string());
    let mut filters = new_table(&["group", "offset", "bytes", "key filter", "parts"]);
    for filter in &dump.filters {
        filters.add_row(vec![
            number(filter.group),
            number(filter.offset),
            number(filter.bytes),
            Cell::new(filter.form),
            number(filter.parts),
        ]);
    }
    text.push(filters.to_string());
    let problems = dump.problems.iter();
    text.extend(problems.map(|problem| format!("DAMAGE  {problem}")));
    text.push(match dump.problems.len() {
        0 => "Sound: every checksum holds, and every byte is covered by one.".to_owned(),
        damaged => format!("DAMAGED: {}", count(damaged, "problem")),
    });
    text.join("\n")
}

fn label(column: &ColumnDump) -> String {
    match (&column.name, column.id) {
        (Some(name), Some(id)) => format!("{name} (#{id})"),
        (Some(name), None) => name.clone(),
        (None, id) => format!("#{}", id.unwrap_or_default()),
    }
}

fn columns(dump: &SegmentDump) -> Table {
    let mut table = new_table(&[
        "column",
        "type",
        "pages",
        "stored",
        "dictionaries",
        "values",
        "plain",
        "bits per value",
        "distinct",
    ]);
    for column in &dump.columns {
        let pages: u64 = column.pages.iter().map(|page| u64::from(page.stored_bytes)).sum();
        let dictionaries: u64 = column.dictionaries.iter().map(|dictionary| u64::from(dictionary.bytes)).sum();
        let values: usize = column.dictionaries.iter().filter_map(|dictionary| dictionary.values).sum();
        let plain: usize = column.pages.iter().filter_map(|page| page.plain_bytes).sum();
        let bits = (pages + dictionaries) as f64 * 8.0 / f64::from(dump.rows.max(1));
        table.add_row(vec![
            Cell::new(label(column)),
            Cell::new(&column.data_type),
            number(column.pages.len()),
            number(pages),
            number(dictionaries),
            number(values),
            number(plain),
            number(format!("{bits:.2}")),
            number(column.distinct.map_or(String::new(), |distinct| format!("~{distinct}"))),
        ]);
    }
    table
}

fn pages(dump: &SegmentDump) -> Table {
    let mut table = new_table(&[
        "column", "group", "page", "offset", "stored", "plain", "rows", "nulls", "bits", "encoding", "least",
        "greatest", "sum", "checksum",
    ]);
    for column in &dump.columns {
        for dictionary in &column.dictionaries {
            let mut row = vec![Cell::new(label(column)), number(dictionary.group), Cell::new("dict")];
            row.extend([number(dictionary.offset), number(dictionary.bytes)]);
            row.extend(["", "", "", ""].map(Cell::new));
            let values = dictionary.values.map_or("?".to_owned(), |values| values.to_string());
            row.push(Cell::new(format!("dictionary of {values} values")));
            row.extend(["", "", ""].map(Cell::new));
            row.push(Cell::new(sound(dictionary.sound)));
            table.add_row(row);
        }
        for page in &column.pages {
            table.add_row(page_row(&label(column), page));
        }
    }
    table
}

fn page_row(column: &str, page: &PageDump) -> Vec<Cell> {
    let known = |bound: &Option<String>| Cell::new(bound.as_deref().unwrap_or(""));
    vec![
        Cell::new(column),
        number(page.group),
        number(page.page),
        number(page.offset),
        number(page.stored_bytes),
        number(page.plain_bytes.map_or("?".to_owned(), |bytes| bytes.to_string())),
        number(page.rows),
        number(page.nulls.map_or(String::new(), |nulls| nulls.to_string())),
        number(format!("{:.2}", page.bits_per_value)),
        Cell::new(&page.encoding),
        known(&page.min),
        known(&page.max),
        number(page.sum.as_deref().unwrap_or("")),
        Cell::new(sound(page.sound)),
    ]
}

fn sound(sound: bool) -> &'static str {
    if sound { "ok" } else { "WRONG" }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
    table
}

fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

fn count(number: usize, what: &str) -> String {
    match (number, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {what}s"),
    }
}

fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 3] = ["KiB", "MiB", "GiB"];
    let (mut amount, mut unit) = (bytes as f64, "B");
    for larger in UNITS {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") }
}
