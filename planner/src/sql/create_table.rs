//! `CREATE TABLE`, in Shoal's own form.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, TimeUnit};
use shoal_catalog::{NewTable, Partitioning};
use shoal_kernel::limits::{COLUMNS_PER_TABLE_MAX, PARTITIONS_PER_TABLE_MAX};
use shoal_kernel::schema::{DEDUP_COLUMN, TOMBSTONE_COLUMN, TS_COLUMN, VERSION_COLUMN};
use shoal_kernel::{Column, ColumnId, Error, ErrorCode, Result, TableKind, TableSchema, suggest};
use sqlparser::ast::{ColumnDef, ColumnOption, Expr, Ident, PrimaryKeyConstraint, Spanned, TableConstraint};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Span, Token, TokenWithSpan};

use super::text::{at, is_keyword, syntax_error};
use super::{literal, normalised, options, table_name, types};
use crate::datum::is_key_type;

/// Parses a whole CREATE TABLE statement.
pub(super) fn parse(parser: &mut Parser<'_>, tokens: &[TokenWithSpan]) -> Result<NewTable> {
    let syntax = |error: ParserError| syntax_error(error, tokens);
    parser.expect_keywords(&[Keyword::CREATE, Keyword::TABLE]).map_err(syntax)?;
    let if_not_exists = parser.parse_keywords(&[Keyword::IF, Keyword::NOT, Keyword::EXISTS]);
    let name = table_name(&parser.parse_object_name(false).map_err(syntax)?)?;
    if name.name.starts_with("information_schema") {
        return Err(at(invalid("this name is reserved"), name.span));
    }
    let (columns, constraints) = parser.parse_columns().map_err(syntax)?;
    let clauses = Clauses::parse(parser, tokens)?;
    let rest = parser.peek_token();
    if is_keyword(&rest.token, Keyword::AS) {
        let error = Error::new(ErrorCode::Unsupported, "a table cannot be created from a query yet");
        return Err(at(error, rest.span).with_help("create it with its columns, then INSERT INTO it from the query"));
    }
    let settings = options::Settings::parse(&clauses.options)?;
    if columns.is_empty() && settings.schemaless.is_none_or(|(truth, _)| !truth) {
        return Err(at(invalid("a table needs at least one column"), name.span));
    }
    let schema = schema(&columns, &constraints, name.span)?;
    let (partitioning, split_points) = partitioning(&schema, &clauses)?;
    let options = settings.of_new_table(&schema, &partitioning)?;
    if options.partition_size_hint.is_some() && !split_points.is_empty() {
        let error = invalid("a table is SPLIT AT points or has a partition_size_hint, not both");
        return Err(at(error, name.span));
    }
    Ok(NewTable { name: name.name, schema, partitioning, split_points, options, if_not_exists })
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidStatement, message)
}

/// What stands behind the columns.
#[derive(Default)]
struct Clauses {
    partition_by: Option<PartitionBy>,
    options: Vec<sqlparser::ast::SqlOption>,
}

struct PartitionBy {
    columns: Vec<Ident>,
    kind: PartitionKind,
}

enum PartitionKind {
    Range { splits: Vec<Expr> },
    Hash { buckets: u64, span: Span },
    Value,
}

impl Clauses {
    fn parse(parser: &mut Parser<'_>, tokens: &[TokenWithSpan]) -> Result<Self> {
        let syntax = |error: ParserError| syntax_error(error, tokens);
        let mut clauses = Self::default();
        loop {
            let next = parser.peek_token();
            if is_keyword(&next.token, Keyword::PARTITION) {
                if clauses.partition_by.is_some() {
                    return Err(at(Error::new(ErrorCode::Syntax, "PARTITION BY stands here twice"), next.span));
                }
                parser.expect_keywords(&[Keyword::PARTITION, Keyword::BY]).map_err(syntax)?;
                clauses.partition_by = Some(PartitionBy::parse(parser, tokens)?);
            } else if is_keyword(&next.token, Keyword::WITH) {
                clauses.options.extend(parser.parse_options(Keyword::WITH).map_err(syntax)?);
            } else {
                return Ok(clauses);
            }
        }
    }
}

impl PartitionBy {
    fn parse(parser: &mut Parser<'_>, tokens: &[TokenWithSpan]) -> Result<Self> {
        let syntax = |error: ParserError| syntax_error(error, tokens);
        let kind = parser.next_token();
        let columns = |parser: &mut Parser<'_>| {
            parser.parse_parenthesized(|parser| parser.parse_comma_separated(Parser::parse_identifier))
        };
        if is_keyword(&kind.token, Keyword::RANGE) {
            let columns = columns(parser).map_err(syntax)?;
            let mut splits = Vec::new();
            if is_word(&parser.peek_token().token, "SPLIT") {
                parser.next_token();
                parser.expect_keyword(Keyword::AT).map_err(syntax)?;
                splits = parser
                    .parse_parenthesized(|parser| parser.parse_comma_separated(Parser::parse_expr))
                    .map_err(syntax)?;
            }
            return Ok(Self { columns, kind: PartitionKind::Range { splits } });
        }
        if is_keyword(&kind.token, Keyword::HASH) {
            let columns = columns(parser).map_err(syntax)?;
            parser.expect_keyword(Keyword::PARTITIONS).map_err(syntax)?;
            let span = parser.peek_token().span;
            let buckets = parser.parse_literal_uint().map_err(syntax)?;
            return Ok(Self { columns, kind: PartitionKind::Hash { buckets, span } });
        }
        if is_keyword(&kind.token, Keyword::VALUE) {
            return Ok(Self { columns: columns(parser).map_err(syntax)?, kind: PartitionKind::Value });
        }
        let message = format!("expected: RANGE, HASH or VALUE, found: {}", kind.token);
        Err(at(Error::new(ErrorCode::Syntax, message), kind.span))
    }
}

pub(super) fn is_word(token: &Token, text: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(text))
}

fn schema(definitions: &[ColumnDef], constraints: &[TableConstraint], table: Span) -> Result<TableSchema> {
    let mut names = BTreeSet::new();
    let mut columns = Vec::new();
    let mut key: Option<Vec<Ident>> = None;
    for definition in definitions {
        let name = normalised(&definition.name);
        if [VERSION_COLUMN, TOMBSTONE_COLUMN].contains(&name.as_str()) || name.is_empty() {
            return Err(at(invalid(format!("the column name '{name}' is reserved")), definition.name.span));
        }
        if !names.insert(name.clone()) {
            return Err(at(invalid(format!("there are two columns '{name}'")), definition.name.span));
        }
        let data_type = types::arrow_type(&definition.data_type).map_err(|error| at(error, definition.name.span))?;
        let mut nullable = true;
        for option in &definition.options {
            match &option.option {
                ColumnOption::Null => {}
                ColumnOption::NotNull => nullable = false,
                ColumnOption::PrimaryKey(_) if key.is_none() => key = Some(vec![definition.name.clone()]),
                other => {
                    let message = format!("'{other}' of column '{name}' is not supported");
                    return Err(at(Error::new(ErrorCode::Unsupported, message), definition.span()));
                }
            }
        }
        columns.push(Column { id: ColumnId(0), name, data_type, nullable });
    }
    for constraint in constraints {
        match constraint {
            TableConstraint::PrimaryKey(constraint) if key.is_none() => key = Some(key_columns(constraint)?),
            TableConstraint::PrimaryKey(constraint) => {
                return Err(at(invalid("there are two primary keys"), constraint.span()));
            }
            other => {
                let message = format!("the constraint '{other}' is not supported");
                return Err(at(Error::new(ErrorCode::Unsupported, message), other.span()));
            }
        }
    }
    if key.is_none() {
        add_event_columns(&mut columns, table)?;
    }
    if columns.len() > COLUMNS_PER_TABLE_MAX {
        let message = format!("a table has at most {COLUMNS_PER_TABLE_MAX} columns, not {}", columns.len());
        return Err(at(Error::new(ErrorCode::LimitExceeded, message), table));
    }
    for (place, column) in columns.iter_mut().enumerate() {
        column.id = ColumnId(u32::try_from(place).map_err(|_| invalid("too many columns"))?);
    }
    let kind = match key {
        None => TableKind::Event,
        Some(key) => {
            let mut primary_key = Vec::new();
            for ident in &key {
                let place = find(&columns, ident)?;
                if !is_key_type(&columns[place].data_type) {
                    let message = format!("a column of type {} cannot be part of a key", columns[place].data_type);
                    return Err(at(Error::new(ErrorCode::Unsupported, message), ident.span));
                }
                if primary_key.contains(&columns[place].id) {
                    return Err(at(invalid(format!("column '{ident}' is in the key twice")), ident.span));
                }
                columns[place].nullable = false;
                primary_key.push(columns[place].id);
            }
            TableKind::Upsert { primary_key }
        }
    };
    Ok(TableSchema::new(columns, kind))
}

fn key_columns(constraint: &PrimaryKeyConstraint) -> Result<Vec<Ident>> {
    let column = |index: &sqlparser::ast::IndexColumn| match &index.column.expr {
        Expr::Identifier(ident) => Ok(ident.clone()),
        other => Err(at(invalid(format!("'{other}' is not a column")), other.span())),
    };
    constraint.columns.iter().map(column).collect()
}

fn find(columns: &[Column], ident: &Ident) -> Result<usize> {
    let name = normalised(ident);
    columns.iter().position(|column| column.name == name).ok_or_else(|| {
        let error = Error::new(ErrorCode::UnknownColumn, format!("there is no column '{name}' in this table"));
        let near = suggest::closest(&name, columns.iter().map(|column| column.name.as_str()));
        let error = at(error, ident.span);
        match near {
            Some(near) => error.with_help(format!("did you mean '{near}'?")),
            None => error,
        }
    })
}

/// The two columns that tell the rows of an event table apart.
fn add_event_columns(columns: &mut Vec<Column>, table: Span) -> Result<()> {
    let wanted = [(TS_COLUMN, DataType::Timestamp(TimeUnit::Microsecond, None)), (DEDUP_COLUMN, DataType::Utf8)];
    for (name, data_type) in wanted {
        match columns.iter_mut().find(|column| column.name == name) {
            Some(column) if column.data_type == data_type => column.nullable = false,
            Some(column) => {
                let message =
                    format!("column '{name}' of an event table has the type {data_type}, not {}", column.data_type);
                return Err(
                    at(invalid(message), table).with_help("leave it out, it is added by itself; or add a PRIMARY KEY")
                );
            }
            None => columns.push(Column { id: ColumnId(0), name: name.into(), data_type, nullable: false }),
        }
    }
    Ok(())
}

fn partitioning(schema: &TableSchema, clauses: &Clauses) -> Result<(Partitioning, Vec<Vec<u8>>)> {
    let key = schema.key_indices();
    let Some(by) = &clauses.partition_by else {
        let first = key.first().map(|place| schema.columns[*place].id);
        let columns = first.into_iter().collect();
        return Ok((Partitioning::Range { columns }, Vec::new()));
    };
    let mut places = Vec::new();
    for ident in &by.columns {
        let place = find(&schema.columns, ident)?;
        if !key.contains(&place) {
            let names: Vec<_> = key.iter().map(|place| schema.columns[*place].name.as_str()).collect();
            let message = format!("the partition key must be part of the key, and '{ident}' is not");
            return Err(at(invalid(message), ident.span).with_help(format!("the key is ({})", names.join(", "))));
        }
        if places.contains(&place) {
            return Err(at(invalid(format!("column '{ident}' is in the partition key twice")), ident.span));
        }
        places.push(place);
    }
    let columns: Vec<ColumnId> = places.iter().map(|place| schema.columns[*place].id).collect();
    match &by.kind {
        PartitionKind::Hash { buckets, span } => {
            let buckets =
                u32::try_from(*buckets).ok().filter(|buckets| (1..=PARTITIONS_PER_TABLE_MAX).contains(buckets));
            let message = format!("a table has from 1 to {PARTITIONS_PER_TABLE_MAX} partitions");
            let buckets = buckets.ok_or_else(|| at(Error::new(ErrorCode::LimitExceeded, message), *span))?;
            Ok((Partitioning::Hash { columns, buckets }, Vec::new()))
        }
        PartitionKind::Value => Ok((Partitioning::Value { columns }, Vec::new())),
        PartitionKind::Range { splits } => {
            Ok((Partitioning::Range { columns }, split_points(schema, &places, splits)?))
        }
    }
}

/// The encoded key of values for the first columns of a partition key.
pub(super) fn split_point(schema: &TableSchema, places: &[usize], values: &[Expr], span: Span) -> Result<Vec<u8>> {
    if values.len() > places.len() {
        return Err(at(invalid("there are more values than the partition key has columns"), span));
    }
    let mut point = Vec::new();
    for (value, place) in values.iter().zip(places) {
        let column = &schema.columns[*place];
        literal::parse(value, &column.name, &column.data_type)?.encode_into(&mut point);
    }
    Ok(point)
}

fn split_points(schema: &TableSchema, places: &[usize], splits: &[Expr]) -> Result<Vec<Vec<u8>>> {
    if splits.len() >= PARTITIONS_PER_TABLE_MAX as usize {
        let message = format!("a table has at most {PARTITIONS_PER_TABLE_MAX} partitions, not {}", splits.len() + 1);
        return Err(Error::new(ErrorCode::LimitExceeded, message));
    }
    let mut points: Vec<Vec<u8>> = Vec::new();
    for split in splits {
        let values = match split {
            Expr::Tuple(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let point = split_point(schema, places, values, split.span())?;
        if points.last().is_some_and(|last| *last >= point) {
            let message = format!("split points must ascend, and {split} does not");
            return Err(at(invalid(message), split.span()));
        }
        points.push(point);
    }
    Ok(points)
}
