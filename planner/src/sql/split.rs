//! `ALTER TABLE … SPLIT [PARTITION p12 | AT (…)]`.

use shoal_catalog::{Catalog, Partitioning};
use shoal_kernel::{Error, ErrorCode, PartitionId, Result};
use sqlparser::ast::{Expr, Ident, Spanned};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::create_table::{is_word, split_point};
use super::text::{at, syntax_error};
use super::{TableName, parse_table_name};
use crate::statement::SplitWish;
use crate::unknown::unknown_table;

/// The statement, with names as they stand in the text.
#[derive(Debug)]
pub(crate) struct Splitting {
    table: TableName,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Largest,
    Partition(Ident),
    At(Box<Expr>),
}

/// Takes the statement apart, if it is this one; the parser stands at its beginning, and may be anywhere after `None`.
pub(super) fn parse(parser: &mut Parser<'_>, tokens: &[TokenWithSpan]) -> Result<Option<Splitting>> {
    let syntax = |error| syntax_error(error, tokens);
    if !(parser.parse_keyword(Keyword::ALTER) && parser.parse_keyword(Keyword::TABLE)) {
        return Ok(None);
    }
    let Ok(table) = parse_table_name(parser, tokens) else { return Ok(None) };
    if !is_word(&parser.peek_token().token, "SPLIT") {
        return Ok(None);
    }
    parser.next_token();
    let place = if parser.parse_keyword(Keyword::PARTITION) {
        Place::Partition(parser.parse_identifier().map_err(syntax)?)
    } else if parser.parse_keyword(Keyword::AT) {
        let open = parser.peek_token();
        if open.token != Token::LParen {
            let message = format!("expected: ( and a partition key, found: {}", open.token);
            return Err(at(Error::new(ErrorCode::Syntax, message), open.span));
        }
        Place::At(Box::new(parser.parse_expr().map_err(syntax)?))
    } else {
        Place::Largest
    };
    Ok(Some(Splitting { table, place }))
}

impl Splitting {
    /// The table's name, and which of its partitions is meant.
    ///
    /// # Errors
    /// There is no such table or partition, its partitions are not split, or the key is none; the error has its place.
    pub(crate) fn resolve(&self, catalog: &Catalog) -> Result<(String, SplitWish)> {
        let table = catalog
            .table(&self.table.name)
            .ok_or_else(|| at(unknown_table(catalog, &self.table.name), self.table.span))?;
        let Partitioning::Range { columns } = &table.partitioning else {
            let are = match &table.partitioning {
                Partitioning::Value { .. } => "hold one value each, and",
                _ => "are buckets of hashes, which",
            };
            let message = format!("the partitions of '{}' {are} are not split", table.name);
            return Err(at(Error::new(ErrorCode::Unsupported, message), self.table.span));
        };
        let how = match &self.place {
            Place::Largest => SplitWish::Largest,
            Place::Partition(name) => {
                let id = name.value.strip_prefix(['p', 'P']).and_then(|number| number.parse().ok()).map(PartitionId);
                let id = id.filter(|id| table.partitions.contains(id)).ok_or_else(|| {
                    let message = format!("'{}' has no partition {}", table.name, name.value);
                    let help = format!("SHOW PARTITIONS {} lists them", table.name);
                    at(Error::new(ErrorCode::InvalidStatement, message).with_help(help), name.span)
                })?;
                SplitWish::Partition(id)
            }
            Place::At(key) => {
                let places: Vec<usize> = columns.iter().filter_map(|id| table.schema.index_of(*id)).collect();
                let values = match &**key {
                    Expr::Nested(value) => std::slice::from_ref(&**value),
                    Expr::Tuple(values) => values.as_slice(),
                    other => {
                        return Err(at(Error::new(ErrorCode::Syntax, "a partition key stands in ( )"), other.span()));
                    }
                };
                SplitWish::At(split_point(&table.schema, &places, values, key.span())?)
            }
        };
        Ok((table.name.clone(), how))
    }
}
