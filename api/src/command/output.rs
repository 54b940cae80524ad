//! Answers on a terminal.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

/// Characters of a cell that are shown to people.
const CELL_CHARS_MAX: usize = 200;

/// One entry of `results`, for people.
pub(super) fn result(entry: &Value, rows_max: usize) -> String {
    if entry["type"] == "command" {
        return command(entry);
    }
    let (columns, rows) = (array(&entry["columns"]), array(&entry["rows"]));
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column["name"].as_str().unwrap_or_default()));
    for row in rows.iter().take(rows_max) {
        let cells = array(row).iter().zip(columns).map(|(value, column)| {
            let alignment = if is_number(column) { CellAlignment::Right } else { CellAlignment::Left };
            Cell::new(text(value)).set_alignment(alignment)
        });
        table.add_row(cells);
    }
    let count = match rows.len() {
        1 => "1 row".to_owned(),
        rows if rows > rows_max => format!("{rows} rows, {rows_max} shown"),
        rows => format!("{rows} rows"),
    };
    format!("{table}\n{count}")
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn command(entry: &Value) -> String {
    let mut line = entry["tag"].as_str().unwrap_or("done").to_owned();
    if let Some(rows) = entry["rows"].as_u64() {
        line.push_str(&format!(" {rows}"));
    }
    if let Some(level) = entry["level"].as_str() {
        line.push_str(&format!(" at {level}"));
    }
    line
}

fn is_number(column: &Value) -> bool {
    let data_type = column["type"].as_str().unwrap_or_default();
    ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "REAL", "DOUBLE", "DECIMAL"]
        .iter()
        .any(|number| data_type.starts_with(number) && !data_type.ends_with("[]"))
}

fn text(value: &Value) -> String {
    let text = match value {
        Value::Null => return "NULL".into(),
        Value::String(text) => text.replace('\n', "↵").replace('\t', " "),
        other => other.to_string(),
    };
    match text.char_indices().nth(CELL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The SQL's line with a mark under the place an error names.
pub(super) fn mark(sql: &str, line: usize, column: usize) -> Option<String> {
    let text = sql.lines().nth(line.checked_sub(1)?)?;
    let indent: String =
        text.chars().take(column.checked_sub(1)?).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    Some(format!("  {text}\n  {indent}^"))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_are_drawn() {
        let entry = json!({"type": "table", "columns": [{"name": "origin", "type": "VARCHAR"}, {"name": "n", "type": "BIGINT"}],
            "rows": [["SEA", 12], [null, 3], ["x", 1]]});
        expect![[r#"
            ┌────────┬────┐
            │ origin ┆ n  │
            ╞════════╪════╡
            │ SEA    ┆ 12 │
            │ NULL   ┆  3 │
            └────────┴────┘
            3 rows, 2 shown"#]]
        .assert_eq(&result(&entry, 2));
        let entry = json!({"type": "command", "tag": "INSERT", "rows": 2, "level": "quorum"});
        assert_eq!(result(&entry, 10), "INSERT 2 at quorum");
    }

    #[test]
    fn places_are_marked() {
        assert_eq!(mark("SELECT\n  oops", 2, 3).unwrap(), "    oops\n    ^");
        assert_eq!(mark("SELECT", 5, 1), None);
    }
}
