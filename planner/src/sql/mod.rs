//! SQL text as statements that Shoal knows, or a typed refusal.

mod alter_table;
mod backup;
mod create_table;
mod literal;
mod options;
mod split;
mod template;
mod text;
mod timewindow;
mod types;

pub(crate) use alter_table::Alteration;
pub(crate) use backup::BackupStatement;
pub use backup::without_secrets;
pub(crate) use split::Splitting;
pub use text::split_statements;
pub(crate) use text::{DIALECT, at, first_words, only_statement};

use std::ops::ControlFlow;

use shoal_catalog::NewTable;
use shoal_kernel::{Error, ErrorCode, Result};
use sqlparser::ast::{self, ObjectName, ObjectNamePart, ObjectType, Spanned, Visit, Visitor};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::session::{CATALOG, SCHEMA, SQL_NESTING_MAX};
use text::{check_chains, syntax_error};

/// A statement, parsed and not yet planned.
#[derive(Debug)]
pub(crate) enum Parsed {
    Query(Box<ast::Statement>),
    Explain {
        statement: Box<ast::Statement>,
        analyze: bool,
    },
    CreateTable(NewTable),
    DropTable {
        name: String,
        if_exists: bool,
    },
    AlterTable(Alteration),
    Split(Splitting),
    Insert(Box<ast::Statement>),
    /// DELETE or UPDATE.
    Change(Box<ast::Statement>),
    Flush(Option<TableName>),
    Optimize(TableName),
    Repair(TableName),
    Backup(BackupStatement),
    ShowTables,
    Describe(TableName),
    ShowPartitions(TableName),
}

/// A table's name where it stands in the text.
#[derive(Debug)]
pub(crate) struct TableName {
    pub(crate) name: String,
    pub(crate) span: sqlparser::tokenizer::Span,
}

/// Parses exactly one statement.
pub(crate) fn parse(sql: &str) -> Result<Parsed> {
    let mut tokens = only_statement(sql)?;
    check_chains(&tokens)?;
    let over_windows = timewindow::rewrite_tokens(&mut tokens);
    let words = first_words(&tokens);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    refuse(&words, &tokens)?;
    let mut parser = parser_of(&tokens);
    let parsed = match words.as_slice() {
        ["CREATE", "TABLE", ..] => Parsed::CreateTable(create_table::parse(&mut parser, &tokens)?),
        ["SHOW", "PARTITIONS", ..] => {
            parser.next_token();
            parser.next_token();
            // FROM may stand before the name.
            let _ = parser.parse_keyword(Keyword::FROM);
            Parsed::ShowPartitions(parse_table_name(&mut parser, &tokens)?)
        }
        ["FLUSH", ..] => {
            parser.next_token();
            match parser.parse_keyword(Keyword::TABLE) {
                true => Parsed::Flush(Some(parse_table_name(&mut parser, &tokens)?)),
                false => Parsed::Flush(None),
            }
        }
        ["OPTIMIZE", ..] => {
            parser.next_token();
            parser.expect_keyword(Keyword::TABLE).map_err(|error| syntax_error(error, &tokens))?;
            Parsed::Optimize(parse_table_name(&mut parser, &tokens)?)
        }
        ["ALTER", "TABLE", ..] => match split::parse(&mut parser, &tokens)? {
            Some(splitting) => Parsed::Split(splitting),
            None => {
                parser = parser_of(&tokens);
                classify(parser.parse_statement().map_err(|error| syntax_error(error, &tokens))?)?
            }
        },
        ["REPAIR", ..] => {
            parser.next_token();
            parser.expect_keyword(Keyword::TABLE).map_err(|error| syntax_error(error, &tokens))?;
            Parsed::Repair(parse_table_name(&mut parser, &tokens)?)
        }
        ["BACKUP" | "RESTORE", ..] => Parsed::Backup(backup::parse(&mut parser, &tokens)?),
        _ => {
            let mut statement = parser.parse_statement().map_err(|error| syntax_error(error, &tokens))?;
            if over_windows {
                timewindow::rewrite(&mut statement)?;
            }
            classify(statement)?
        }
    };
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        let message = format!("expected: end of statement, found: {}", rest.token);
        return Err(at(Error::new(ErrorCode::Syntax, message), rest.span));
    }
    Ok(parsed)
}

fn parser_of(tokens: &[TokenWithSpan]) -> Parser<'static> {
    Parser::new(&DIALECT).with_recursion_limit(SQL_NESTING_MAX).with_tokens_with_locations(tokens.to_vec())
}

fn parse_table_name(parser: &mut Parser<'_>, tokens: &[TokenWithSpan]) -> Result<TableName> {
    let name = parser.parse_object_name(false).map_err(|error| syntax_error(error, tokens))?;
    table_name(&name)
}

/// Refuses what would open the server's files or change the server.
fn refuse(words: &[&str], tokens: &[TokenWithSpan]) -> Result<()> {
    let (code, message, help) = match words {
        ["COPY", ..] => {
            (ErrorCode::Forbidden, "COPY would open files of the server", "use ingest, or the shell's import")
        }
        ["CREATE", "EXTERNAL", ..] | ["CREATE", "OR", "REPLACE", "EXTERNAL"] | ["CREATE", "UNBOUNDED", ..] => (
            ErrorCode::Forbidden,
            "CREATE EXTERNAL TABLE would open files of the server",
            "create a table and import the file",
        ),
        ["LOAD" | "UNLOAD" | "ATTACH" | "INSTALL", ..] => {
            (ErrorCode::Forbidden, "this statement would open files of the server", "use ingest to load rows")
        }
        ["CREATE", "FUNCTION", ..] => {
            (ErrorCode::Unsupported, "functions cannot be created", "use the built-in functions")
        }
        ["SET" | "RESET", ..] => {
            (ErrorCode::Unsupported, "there are no session settings", "give options with the request")
        }
        ["TRUNCATE", ..] => {
            (ErrorCode::Unsupported, "TRUNCATE does not exist", "use DELETE, or drop the table and create it again")
        }
        ["MERGE", ..] => (
            ErrorCode::Unsupported,
            "MERGE does not exist",
            "use INSERT: a row with an existing key replaces the older one by itself",
        ),
        _ => return Ok(()),
    };
    let error = Error::new(code, message).with_help(help);
    Err(match tokens.first() {
        Some(token) => at(error, token.span),
        None => error,
    })
}

/// Clauses that the planner would pass over in silence.
struct Ignored(Option<Error>);

impl Visitor for Ignored {
    type Break = ();

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<()> {
        if query.locks.is_empty() {
            return ControlFlow::Continue(());
        }
        let error = unsupported("FOR UPDATE and FOR SHARE do not exist: reads lock nothing");
        self.0 = Some(at(error, query.span()));
        ControlFlow::Break(())
    }

    fn pre_visit_table_factor(&mut self, factor: &ast::TableFactor) -> ControlFlow<()> {
        if !matches!(factor, ast::TableFactor::Table { sample: Some(_), .. }) {
            return ControlFlow::Continue(());
        }
        let error = unsupported("TABLESAMPLE is not built yet").with_help("use WHERE random() < 0.1");
        self.0 = Some(at(error, factor.span()));
        ControlFlow::Break(())
    }
}

fn classify(statement: ast::Statement) -> Result<Parsed> {
    let span = statement.span();
    let mut ignored = Ignored(None);
    let _ = statement.visit(&mut ignored);
    if let Some(error) = ignored.0 {
        return Err(error);
    }
    Ok(match statement {
        ast::Statement::Query(_) => Parsed::Query(Box::new(statement)),
        ast::Statement::Explain { options: Some(_), .. } | ast::Statement::Explain { format: Some(_), .. } => {
            let error =
                unsupported("EXPLAIN has no options and no formats").with_help("use EXPLAIN or EXPLAIN ANALYZE");
            return Err(at(error, span));
        }
        ast::Statement::Explain { analyze, statement, .. } => match *statement {
            ast::Statement::Query(_) => Parsed::Explain { statement, analyze },
            ast::Statement::Delete(_) | ast::Statement::Update(_) if !analyze => Parsed::Explain { statement, analyze },
            ast::Statement::Delete(_) | ast::Statement::Update(_) => {
                let error = unsupported("EXPLAIN ANALYZE would have to change the rows");
                return Err(at(error.with_help("EXPLAIN shows how they are read"), span));
            }
            _ => return Err(at(unsupported("only queries, DELETE and UPDATE can be explained"), span)),
        },
        ast::Statement::ExplainTable { table_name: name, .. } => Parsed::Describe(table_name(&name)?),
        ast::Statement::ShowTables { .. } => Parsed::ShowTables,
        ast::Statement::ShowColumns { show_options, .. } => {
            match show_options.show_in.and_then(|place| place.parent_name) {
                Some(name) => Parsed::Describe(table_name(&name)?),
                None => return Err(at(Error::new(ErrorCode::Syntax, "SHOW COLUMNS needs FROM and a table"), span)),
            }
        }
        ast::Statement::AlterTable(altered) => Parsed::AlterTable(alter_table::parse(altered)?),
        ast::Statement::Insert(_) => Parsed::Insert(Box::new(statement)),
        ast::Statement::Delete(_) | ast::Statement::Update(_) => Parsed::Change(Box::new(statement)),
        ast::Statement::Drop { object_type: ObjectType::Table, if_exists, names, .. } => match names.as_slice() {
            [name] => Parsed::DropTable { name: table_name(name)?.name, if_exists },
            _ => return Err(at(unsupported("one table can be dropped at a time"), span)),
        },
        other => {
            let words = other.to_string();
            let kind = words.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            return Err(at(unsupported(&format!("'{kind}' is not a statement that Shoal carries out")), span));
        }
    })
}

fn unsupported(message: &str) -> Error {
    Error::new(ErrorCode::Unsupported, message)
}

/// A column's or table's name as SQL resolves it: lower case unless quoted.
pub(crate) fn normalised(ident: &ast::Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        // As DataFusion has it, and PostgreSQL.
        None => ident.value.to_ascii_lowercase(),
    }
}

/// What is asked for, in which order, and how much of it, if there is nothing else in a query.
pub(crate) fn plain_query(
    query: &ast::Query,
) -> Option<(&ast::SetExpr, Option<&ast::OrderBy>, Option<&ast::LimitClause>)> {
    let ast::Query {
        with,
        body,
        order_by,
        limit_clause,
        fetch,
        locks,
        for_clause,
        settings,
        format_clause,
        pipe_operators,
    } = query;
    let is_plain = with.is_none()
        && fetch.is_none()
        && locks.is_empty()
        && for_clause.is_none()
        && settings.is_none()
        && format_clause.is_none()
        && pipe_operators.is_empty();
    is_plain.then_some((body, order_by.as_ref(), limit_clause.as_ref()))
}

/// A table's name, with or without the database and schema before it.
pub(crate) fn table_name(name: &ObjectName) -> Result<TableName> {
    let parts: Option<Vec<String>> = name
        .0
        .iter()
        .map(|part| match part {
            ObjectNamePart::Identifier(ident) => Some(normalised(ident)),
            ObjectNamePart::Function(_) => None,
        })
        .collect();
    let parts = parts.unwrap_or_default();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let span = name.span();
    match parts.as_slice() {
        [name] | [SCHEMA, name] | [CATALOG, SCHEMA, name] if !name.is_empty() => {
            Ok(TableName { name: (*name).to_owned(), span })
        }
        _ => {
            let message = format!("'{name}' is not the name of a table here");
            let help = format!("tables are in the schema '{SCHEMA}' of the database '{CATALOG}'");
            Err(at(Error::new(ErrorCode::UnknownTable, message), span).with_help(help))
        }
    }
}
