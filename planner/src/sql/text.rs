//! SQL as text: tokens, statements, and places in it.

use shoal_kernel::limits::SQL_BYTES_MAX;
use shoal_kernel::{Error, ErrorCode, Result, Span};
use sqlparser::dialect::GenericDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::ParserError;
use sqlparser::tokenizer::{self, Token, TokenWithSpan, Tokenizer};

/// The dialect of every text: PostgreSQL's ways, and more.
pub(crate) static DIALECT: GenericDialect = GenericDialect {};

/// Operators that may follow one another in one expression.
const CHAIN_LINKS_MAX: usize = 256;

/// Cuts a text into its statements, each as it was written, without the semicolons. Empty ones are left out.
///
/// # Errors
/// The text is longer than [`SQL_BYTES_MAX`], or a string, comment or name in it has no end.
pub fn split_statements(sql: &str) -> Result<Vec<String>> {
    let lines = LineStarts::new(sql);
    let statements = statements(sql)?;
    let text = |tokens: &Vec<TokenWithSpan>| {
        let start = tokens.first().map_or(0, |token| lines.offset(sql, token.span.start));
        let end = tokens.last().map_or(sql.len(), |token| lines.offset(sql, token.span.end));
        sql.get(start..end).unwrap_or(sql).to_owned()
    };
    Ok(statements.iter().map(text).collect())
}

/// The tokens of each statement, without white space and comments.
pub(crate) fn statements(sql: &str) -> Result<Vec<Vec<TokenWithSpan>>> {
    if sql.len() > SQL_BYTES_MAX {
        let message = format!("the SQL text has {} bytes, more than the {SQL_BYTES_MAX} allowed", sql.len());
        return Err(
            Error::new(ErrorCode::LimitExceeded, message).with_help("load rows through ingest instead of INSERT")
        );
    }
    let tokens = Tokenizer::new(&DIALECT, sql).tokenize_with_location().map_err(|error| {
        let place = error.location;
        Error::new(ErrorCode::Syntax, error.message).with_span(Span {
            line: place.line,
            column: place.column,
            end_line: place.line,
            end_column: place.column + 1,
        })
    })?;
    let mut statements = Vec::new();
    let mut current = Vec::new();
    for token in tokens {
        match token.token {
            Token::SemiColon if !current.is_empty() => statements.push(std::mem::take(&mut current)),
            Token::SemiColon | Token::Whitespace(_) | Token::EOF => {}
            _ => current.push(token),
        }
    }
    if !current.is_empty() {
        statements.push(current);
    }
    Ok(statements)
}

/// The tokens of the one statement of a text.
pub(crate) fn only_statement(sql: &str) -> Result<Vec<TokenWithSpan>> {
    let mut statements = statements(sql)?.into_iter();
    match (statements.next(), statements.next()) {
        (Some(tokens), None) => Ok(tokens),
        (None, _) => Err(Error::new(ErrorCode::Syntax, "the text has no statement")),
        (Some(_), Some(second)) => {
            let error = Error::new(ErrorCode::Syntax, "one statement was expected, here starts a second one");
            Err(second.first().map_or(error.clone(), |token| at(error, token.span)).with_help("send them one by one"))
        }
    }
}

/// Refuses chains of operators, set operations and joins that are too long: the tree of `a OR b OR c …` is as deep as the
/// chain is long, and whatever walks a tree needs a stack that deep.
///
/// # Errors
/// The statement has such a chain; the error has the place where it gets too long.
pub(crate) fn check_chains(tokens: &[TokenWithSpan]) -> Result<()> {
    // Links of the expression at hand, and links that no comma ends; of this level of parentheses, and of those around it.
    let mut level = (0_usize, 0_usize);
    let mut around = Vec::new();
    let mut depth = 0;
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket => around.push(std::mem::take(&mut level)),
            Token::RParen | Token::RBracket => {
                depth -= level.0 + level.1;
                level = around.pop().unwrap_or_default();
            }
            Token::Comma => {
                depth -= level.0;
                level.0 = 0;
            }
            Token::Word(word) if word.quote_style.is_none() => match word.keyword {
                Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::IS | Keyword::LIKE | Keyword::CASE => {
                    (level.0, depth) = (level.0 + 1, depth + 1);
                }
                Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::JOIN => {
                    (level.1, depth) = (level.1 + 1, depth + 1);
                }
                _ => {}
            },
            Token::Word(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::Period => {}
            // Everything else that is neither a name nor a constant can be an operator.
            _ => (level.0, depth) = (level.0 + 1, depth + 1),
        }
        if depth > CHAIN_LINKS_MAX {
            let message = format!("the statement chains more than the {CHAIN_LINKS_MAX} operators allowed");
            let error = at(Error::new(ErrorCode::LimitExceeded, message), token.span);
            return Err(error.with_help("use IN (…) or a join with VALUES instead of a long chain of conditions"));
        }
    }
    Ok(())
}

/// The upper-case words at the start of a statement, for telling statements apart.
pub(crate) fn first_words(tokens: &[TokenWithSpan]) -> Vec<String> {
    let word = |token: &TokenWithSpan| match &token.token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_ascii_uppercase()),
        _ => None,
    };
    tokens.iter().map_while(word).take(4).collect()
}

/// Adds a place to an error.
pub(crate) fn at(error: Error, span: tokenizer::Span) -> Error {
    if span == tokenizer::Span::empty() {
        return error;
    }
    error.with_span(Span {
        line: span.start.line,
        column: span.start.column,
        end_line: span.end.line,
        end_column: span.end.column,
    })
}

/// A parser's error with its place. The parser knows it only as the end of its message.
pub(crate) fn syntax_error(error: ParserError, tokens: &[TokenWithSpan]) -> Error {
    let message = match error {
        ParserError::RecursionLimitExceeded => {
            let limit = crate::session::SQL_NESTING_MAX;
            let message = format!("the statement nests more than the {limit} levels allowed");
            return Error::new(ErrorCode::LimitExceeded, message);
        }
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
    };
    let (words, place) = match message.rsplit_once(" at Line: ") {
        Some((words, place)) => (words.to_owned(), place.split_once(", Column: ")),
        None => (message, None),
    };
    let parsed = place.and_then(|(line, column)| Some((line.parse::<u64>().ok()?, column.parse::<u64>().ok()?)));
    let error = Error::new(ErrorCode::Syntax, lower_first(&words));
    match parsed {
        Some((line, column)) if line > 0 => {
            let found = tokens.iter().find(|token| token.span.start.line == line && token.span.start.column == column);
            let end = found.map_or((line, column + 1), |token| (token.span.end.line, token.span.end.column));
            error.with_span(Span { line, column, end_line: end.0, end_column: end.1 })
        }
        _ => match tokens.last() {
            // The text ended too early: the place is behind its last word.
            Some(last) => at(error, tokenizer::Span::new(last.span.end, last.span.end)),
            None => error,
        },
    }
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// Whether a token is this keyword.
pub(crate) fn is_keyword(token: &Token, keyword: Keyword) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.keyword == keyword)
}

/// Finds the byte of a line and column.
struct LineStarts(Vec<usize>);

impl LineStarts {
    fn new(sql: &str) -> Self {
        let after_breaks = sql.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(place, _)| place + 1);
        Self(std::iter::once(0).chain(after_breaks).collect())
    }

    fn offset(&self, sql: &str, place: tokenizer::Location) -> usize {
        let index = |number: u64| usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        let Some(start) = self.0.get(index(place.line)).copied() else { return sql.len() };
        let line = sql.get(start..).unwrap_or_default();
        line.char_indices().nth(index(place.column)).map_or(sql.len(), |(offset, _)| start + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_keep_their_text() {
        let sql = "SELECT ';' -- a; b\n;;  INSERT INTO t VALUES ('ä;', 1); /* ; */ SELECT 2";
        assert_eq!(split_statements(sql).unwrap(), ["SELECT ';'", "INSERT INTO t VALUES ('ä;', 1)", "SELECT 2"]);
        assert!(split_statements(" ; -- nothing").unwrap().is_empty());
    }

    #[test]
    fn an_unfinished_string_has_a_place() {
        let error = split_statements("SELECT 1,\n 'abc").unwrap_err();
        assert_eq!((error.code(), error.spans()[0].line), (ErrorCode::Syntax, 2));
    }

    #[test]
    fn a_text_beyond_the_limit_is_refused() {
        let error = split_statements(&" ".repeat(SQL_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::LimitExceeded);
    }
}
