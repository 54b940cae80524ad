//! `WITH (…)` of CREATE TABLE.

use shoal_catalog::TableOptions;
use shoal_kernel::durability::FSYNC_INTERVAL_MS_MAX;
use shoal_kernel::{Error, ErrorCode, Fsync, Result, WriteLevel, suggest};
use sqlparser::ast::{Expr, Spanned, SqlOption, Value};

use super::normalised;
use super::text::at;

/// More copies than this are a mistake.
const REPLICATION_FACTOR_MAX: u32 = 16;

const NAMES: [&str; 4] = ["replication_factor", "write_level", "fsync", "fsync_interval_ms"];

/// The settings of a table.
///
/// # Errors
/// An unknown setting, or a value that it cannot have; the error has its place.
pub(super) fn table_options(options: &[SqlOption]) -> Result<TableOptions> {
    let mut settings = TableOptions::default();
    let mut interval = None;
    for option in options {
        let SqlOption::KeyValue { key, value } = option else {
            let message = format!("'{option}' is not a setting of a table");
            return Err(Error::new(ErrorCode::InvalidStatement, message).with_help(known()));
        };
        let wrong = |message: String| at(Error::new(ErrorCode::InvalidStatement, message), value.span());
        let text = match value {
            Expr::Value(value) => match &value.value {
                Value::Number(text, _) | Value::SingleQuotedString(text) => text.clone(),
                other => other.to_string(),
            },
            other => other.to_string(),
        };
        match normalised(key).as_str() {
            "replication_factor" => {
                settings.replication_factor = text
                    .parse()
                    .ok()
                    .filter(|copies| (1..=REPLICATION_FACTOR_MAX).contains(copies))
                    .ok_or_else(|| {
                        wrong(format!("replication_factor is a number from 1 to {REPLICATION_FACTOR_MAX}, not {text}"))
                    })?;
            }
            "fsync" => {
                settings.fsync = text.parse().map_err(|message| {
                    let near = suggest::closest(&text.to_ascii_lowercase(), Fsync::NAMES);
                    let help = near.map_or_else(
                        || {
                            "always: synced before it is acknowledged; interval: so often; never: when it suits"
                                .to_owned()
                        },
                        |near| format!("did you mean '{near}'?"),
                    );
                    wrong(message).with_help(help)
                })?;
            }
            "fsync_interval_ms" => {
                let ms = text.parse().ok().filter(|ms| (1..=FSYNC_INTERVAL_MS_MAX).contains(ms));
                let message = || format!("fsync_interval_ms is a number from 1 to {FSYNC_INTERVAL_MS_MAX}, not {text}");
                interval = Some((ms.ok_or_else(|| wrong(message()))?, key.span));
            }
            "write_level" => settings.write_level = text.parse().map_err(wrong)?,
            name => {
                let message = format!("'{name}' is not a setting of a table");
                let help = suggest::closest(name, NAMES).map_or_else(known, |near| format!("did you mean '{near}'?"));
                return Err(at(Error::new(ErrorCode::InvalidStatement, message), key.span).with_help(help));
            }
        }
    }
    match (interval, &mut settings.fsync) {
        (Some((asked, _)), Fsync::Interval { ms }) => *ms = asked,
        (Some((_, span)), _) => {
            let message = "fsync_interval_ms says how often a table is synced whose fsync is 'interval'";
            let error = at(Error::new(ErrorCode::InvalidStatement, message), span);
            return Err(error.with_help("add fsync = 'interval', or leave it out"));
        }
        (None, _) => {}
    }
    Ok(settings)
}

/// The write level that `ALTER TABLE … SET (…)` gives.
///
/// # Errors
/// Another setting, which a table keeps as it was made or does not have; or a value that it cannot have.
pub(super) fn changed_write_level(options: &[SqlOption]) -> Result<WriteLevel> {
    for option in options {
        if let SqlOption::KeyValue { key, .. } = option
            && let name = normalised(key)
            && name != "write_level"
            && NAMES.contains(&name.as_str())
        {
            let error = Error::new(ErrorCode::Unsupported, format!("{name} cannot be changed yet"));
            return Err(at(error.with_help("the setting that can be changed is write_level"), key.span));
        }
    }
    Ok(table_options(options)?.write_level)
}

fn known() -> String {
    format!("the settings are: {}", NAMES.join(", "))
}
