//! `WITH (…)` of CREATE TABLE, `SET (…)` of ALTER TABLE.

use shoal_catalog::{Partitioning, SplitLimits, Table, TableOptions, TtlChange, WindowUnit, windows_kept};
use shoal_kernel::durability::FSYNC_INTERVAL_MS_MAX;
use shoal_kernel::limits::PARTITIONS_PER_TABLE_MAX;
use shoal_kernel::ttl::parse_duration;
use shoal_kernel::{Error, ErrorCode, Fsync, ReadLevel, Result, TableSchema, Ttl, WriteLevel, suggest};
use sqlparser::ast::{Expr, Spanned, SqlOption, Value};
use sqlparser::tokenizer::Span;

use super::normalised;
use super::text::at;

/// More copies than this are a mistake.
const REPLICATION_FACTOR_MAX: u32 = 16;

const NAMES: [&str; 11] = [
    "replication_factor",
    "write_level",
    "read_level",
    "fsync",
    "fsync_interval_ms",
    "ttl",
    "ttl_column",
    "schemaless",
    "partition_size_hint",
    "partition_bytes_max",
    "partition_rows_max",
];
/// Those that can be changed later.
const CHANGEABLE: [&str; 8] = [
    "write_level",
    "read_level",
    "ttl",
    "ttl_column",
    "schemaless",
    "partition_size_hint",
    "partition_bytes_max",
    "partition_rows_max",
];

const MICROS_PER_DAY: u64 = 86_400_000_000;

/// The word that keeps rows for ever, and lifts limits.
const NONE: &str = "none";

/// The settings that a statement names.
#[derive(Debug, Default)]
pub(super) struct Settings {
    replication_factor: Option<u32>,
    pub(super) write_level: Option<WriteLevel>,
    pub(super) read_level: Option<ReadLevel>,
    fsync: Option<Fsync>,
    fsync_interval: Option<(u32, Span)>,
    /// Microseconds; `None` inside for ever.
    ttl: Option<(Option<u64>, Span)>,
    ttl_column: Option<(String, Span)>,
    pub(super) schemaless: Option<(bool, Span)>,
    partition_size_hint: Option<(String, Span)>,
    pub(super) partition_bytes_max: Option<u64>,
    pub(super) partition_rows_max: Option<u64>,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// An unknown setting, or a value that it cannot have; the error has its place.
    pub(super) fn parse(options: &[SqlOption]) -> Result<Self> {
        let mut settings = Self::default();
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
                    let copies = text.parse().ok().filter(|copies| (1..=REPLICATION_FACTOR_MAX).contains(copies));
                    settings.replication_factor = Some(copies.ok_or_else(|| {
                        wrong(format!("replication_factor is a number from 1 to {REPLICATION_FACTOR_MAX}, not {text}"))
                    })?);
                }
                "fsync" => {
                    settings.fsync = Some(text.parse().map_err(|message| {
                        let near = suggest::closest(&text.to_ascii_lowercase(), Fsync::NAMES);
                        let help = near.map_or_else(
                            || {
                                "always: synced before it is acknowledged; interval: so often; never: when it suits"
                                    .to_owned()
                            },
                            |near| format!("did you mean '{near}'?"),
                        );
                        wrong(message).with_help(help)
                    })?);
                }
                "fsync_interval_ms" => {
                    let ms = text.parse().ok().filter(|ms| (1..=FSYNC_INTERVAL_MS_MAX).contains(ms));
                    let message =
                        || format!("fsync_interval_ms is a number from 1 to {FSYNC_INTERVAL_MS_MAX}, not {text}");
                    settings.fsync_interval = Some((ms.ok_or_else(|| wrong(message()))?, key.span));
                }
                "write_level" => settings.write_level = Some(text.parse().map_err(wrong)?),
                "read_level" => settings.read_level = Some(text.parse().map_err(wrong)?),
                "ttl" => {
                    let micros = match text.eq_ignore_ascii_case(NONE) {
                        true => None,
                        false => Some(Ttl::parse_micros(&text).map_err(|message| {
                            wrong(message).with_help(format!("ttl = '{NONE}' keeps rows for ever"))
                        })?),
                    };
                    settings.ttl = Some((micros, value.span()));
                }
                "ttl_column" => {
                    let name = match value {
                        Expr::Identifier(ident) => normalised(ident),
                        _ => text,
                    };
                    settings.ttl_column = Some((name, value.span()));
                }
                "schemaless" => {
                    let truth = match text.to_ascii_lowercase().as_str() {
                        "true" => true,
                        "false" => false,
                        _ => return Err(wrong(format!("schemaless is true or false, not {text}"))),
                    };
                    settings.schemaless = Some((truth, value.span()));
                }
                "partition_size_hint" => settings.partition_size_hint = Some((text, value.span())),
                "partition_bytes_max" => {
                    settings.partition_bytes_max = Some(parse_bytes(&text).ok_or_else(|| {
                        let message = format!("partition_bytes_max is a number of bytes, as '512MiB', not '{text}'");
                        wrong(message).with_help(format!("'{NONE}' lets partitions grow without bound"))
                    })?);
                }
                "partition_rows_max" => {
                    settings.partition_rows_max = Some(parse_count(&text).ok_or_else(|| {
                        let message = format!("partition_rows_max is a number of rows, not '{text}'");
                        wrong(message).with_help(format!("'{NONE}' lets partitions have any number of them"))
                    })?);
                }
                name => {
                    let message = format!("'{name}' is not a setting of a table");
                    let near = suggest::closest(name, NAMES);
                    let help = near.map_or_else(known, |near| format!("did you mean '{near}'?"));
                    return Err(at(Error::new(ErrorCode::InvalidStatement, message), key.span).with_help(help));
                }
            }
        }
        Ok(settings)
    }

    /// The same of `ALTER TABLE`.
    ///
    /// # Errors
    /// As of [`Settings::parse`], and a setting that a table keeps as it was made.
    pub(super) fn parse_changes(options: &[SqlOption]) -> Result<Self> {
        for option in options {
            if let SqlOption::KeyValue { key, .. } = option
                && let name = normalised(key)
                && !CHANGEABLE.contains(&name.as_str())
                && NAMES.contains(&name.as_str())
            {
                let error = Error::new(ErrorCode::Unsupported, format!("{name} cannot be changed yet"));
                let help = format!("the settings that can be changed are {}", CHANGEABLE.join(", "));
                return Err(at(error.with_help(help), key.span));
            }
        }
        Self::parse(options)
    }

    /// Those of a new table.
    ///
    /// # Errors
    /// Settings that do not go together, or with the schema; the error has its place.
    pub(super) fn of_new_table(self, schema: &TableSchema, partitioning: &Partitioning) -> Result<TableOptions> {
        let ttl = match self.ttl_change(schema)? {
            Some(TtlChange::Keep(ttl)) => Some(ttl),
            Some(TtlChange::Forever) | None => None,
        };
        let default = TableOptions::default();
        let mut fsync = self.fsync.unwrap_or(default.fsync);
        match (self.fsync_interval, &mut fsync) {
            (Some((asked, _)), Fsync::Interval { ms }) => *ms = asked,
            (Some((_, span)), _) => {
                let message = "fsync_interval_ms says how often a table is synced whose fsync is 'interval'";
                let error = at(Error::new(ErrorCode::InvalidStatement, message), span);
                return Err(error.with_help("add fsync = 'interval', or leave it out"));
            }
            (None, _) => {}
        }
        let partition_size_hint = self.new_window_width(schema, partitioning)?;
        self.check_windows_kept(ttl, partition_size_hint, partitioning)?;
        Ok(TableOptions {
            replication_factor: self.replication_factor.unwrap_or(default.replication_factor),
            write_level: self.write_level.unwrap_or(default.write_level),
            read_level: self.read_level.unwrap_or(default.read_level),
            fsync,
            ttl,
            schemaless: self.is_schemaless(schema)?,
            partition_size_hint,
            split: SplitLimits {
                partition_bytes_max: self.partition_bytes_max.unwrap_or(default.split.partition_bytes_max),
                partition_rows_max: self.partition_rows_max.unwrap_or(default.split.partition_rows_max),
            },
        })
    }

    /// Checks that a table may have as many windows as its rows are kept for, if the settings say something of either.
    ///
    /// # Errors
    /// It may not; the error has its place.
    pub(super) fn check_windows_kept(
        &self,
        ttl: Option<Ttl>,
        width: Option<u64>,
        partitioning: &Partitioning,
    ) -> Result<()> {
        let span = self.partition_size_hint.as_ref().map(|(_, span)| *span).or(self.ttl.map(|(_, span)| span));
        let (Some(span), Some(ttl), Some(width)) = (span, ttl, width) else { return Ok(()) };
        // Along that column, windows are measured in microseconds, as times are.
        let windows = windows_kept(&ttl, width);
        if partitioning.columns().first() != Some(&ttl.column) || windows <= u64::from(PARTITIONS_PER_TABLE_MAX) {
            return Ok(());
        }
        let message =
            format!("rows would be kept for {windows} windows, and a table has at most {PARTITIONS_PER_TABLE_MAX}");
        let help = "give it wider windows (partition_size_hint), or a shorter ttl";
        Err(at(Error::new(ErrorCode::InvalidStatement, message), span).with_help(help))
    }

    /// How wide the windows are that partitions are made of, in units of their column.
    ///
    /// # Errors
    /// It is no width of windows along that column, or there can be no windows; the error has its place.
    fn new_window_width(&self, schema: &TableSchema, partitioning: &Partitioning) -> Result<Option<u64>> {
        let Some((text, span)) = &self.partition_size_hint else { return Ok(None) };
        let invalid = |message: String| at(Error::new(ErrorCode::InvalidStatement, message), *span);
        let Partitioning::Range { columns } = partitioning else {
            return Err(invalid("partition_size_hint is for partitions by range, and these are not".into()));
        };
        let column = columns.first().and_then(|first| schema.index_of(*first)).map(|place| &schema.columns[place]);
        let column = column.ok_or_else(|| Error::internal("a partition key without a column"))?;
        let duration = || parse_duration(text).map_err(invalid);
        let width = match WindowUnit::of(&column.data_type) {
            Some(WindowUnit::Number) => text.parse().map_err(|_| {
                invalid(format!("partition_size_hint is a whole number, as '{}' is, not {text}", column.name))
            })?,
            Some(WindowUnit::Microsecond) => duration()?,
            Some(WindowUnit::Day) => {
                let micros = duration()?;
                if !micros.is_multiple_of(MICROS_PER_DAY) {
                    return Err(invalid(format!("'{}' is a date: windows along it are of whole days", column.name)));
                }
                micros / MICROS_PER_DAY
            }
            None => {
                let message =
                    format!("windows go along a whole number, a date or a timestamp, and not along '{}'", column.name);
                return Err(invalid(message).with_help("begin the key, or PARTITION BY RANGE (…), with such a column"));
            }
        };
        match width {
            0 => Err(invalid("partition_size_hint must be greater than zero".into())),
            width => Ok(Some(width)),
        }
    }

    /// How wide the windows of a table are to be that are made from now on, in units of their column.
    ///
    /// # Errors
    /// As above; or the table's partitions are not windows.
    pub(super) fn window_width(&self, table: &Table) -> Result<Option<u64>> {
        match &self.partition_size_hint {
            Some((_, span)) if table.options.partition_size_hint.is_none() => {
                let message = format!("'{}' was made with partitions over all keys, not with windows", table.name);
                let help = "make a table WITH (partition_size_hint = …) and INSERT INTO it from this one";
                Err(at(Error::new(ErrorCode::Unsupported, message), *span).with_help(help))
            }
            _ => self.new_window_width(&table.schema, &table.partitioning),
        }
    }

    /// Whether rows that are loaded may change the columns.
    ///
    /// # Errors
    /// They shall, and the table has a primary key.
    pub(super) fn is_schemaless(&self, schema: &TableSchema) -> Result<bool> {
        match self.schemaless {
            Some((true, span)) if schema.is_upsert() => {
                let message = "only tables of events, those without a PRIMARY KEY, can be schemaless";
                Err(at(Error::new(ErrorCode::InvalidStatement, message), span))
            }
            given => Ok(given.is_some_and(|(truth, _)| truth)),
        }
    }

    /// How long rows are to be kept from now on, if the settings say so.
    ///
    /// # Errors
    /// No column, or none that is meant, says how old a row is; the error has its place.
    pub(super) fn ttl_change(&self, schema: &TableSchema) -> Result<Option<TtlChange>> {
        let invalid = |message: String, span| at(Error::new(ErrorCode::InvalidStatement, message), span);
        let (micros, span) = match (self.ttl, &self.ttl_column) {
            (Some((Some(micros), span)), _) => (micros, span),
            (_, Some((_, span))) => {
                let message = "ttl_column says by which time rows are dropped, and they are kept for ever";
                return Err(invalid(message.into(), *span).with_help("add ttl = '30d', or leave it out"));
            }
            (Some((None, _)), None) => return Ok(Some(TtlChange::Forever)),
            (None, None) => return Ok(None),
        };
        let times = Table::time_columns(schema);
        let names = || times.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
        let column = match (&self.ttl_column, times.as_slice()) {
            (Some((name, span)), _) => times.iter().find(|column| column.name == *name).ok_or_else(|| {
                let help = match times.is_empty() {
                    true => "the table's key has none".to_owned(),
                    false => format!("it has these: {}", names()),
                };
                invalid(format!("'{name}' is no TIMESTAMP of the table's key"), *span).with_help(help)
            })?,
            (None, [one]) => one,
            (None, []) => {
                let message = "ttl goes by a TIMESTAMP of the primary key, and this key has none";
                let help = "add one to the key, or make a table of events: without a PRIMARY KEY, it has '_ts'";
                return Err(invalid(message.into(), span).with_help(help));
            }
            (None, _) => {
                let message = format!("the key has several TIMESTAMPs: {}", names());
                return Err(invalid(message, span).with_help("say which one with ttl_column"));
            }
        };
        Ok(Some(TtlChange::Keep(Ttl { column: column.id, micros })))
    }
}

/// A number, or `none` for as many as there can be.
fn parse_count(text: &str) -> Option<u64> {
    if text.eq_ignore_ascii_case(NONE) { Some(u64::MAX) } else { text.parse().ok() }
}

/// A number of bytes, in units of 1024 where a unit is named.
fn parse_bytes(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let unit = text.get(number.len()..)?.to_ascii_lowercase();
    let shift = match unit.as_str() {
        "kib" | "kb" | "k" => 10,
        "mib" | "mb" | "m" => 20,
        "gib" | "gb" | "g" => 30,
        "tib" | "tb" | "t" => 40,
        _ => return parse_count(text),
    };
    number.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn known() -> String {
    format!("the settings are: {}", NAMES.join(", "))
}
