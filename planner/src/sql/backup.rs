//! `BACKUP TABLE t | DATABASE TO 'url'` and `RESTORE TABLE t | DATABASE FROM 'url' [AS name]`, each with `WITH (name = 'value', …)`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use shoal_kernel::{Error, ErrorCode, Result, suggest};
use sqlparser::keywords::Keyword;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::create_table::is_word;
use super::text::{at, statements};
use super::{TableName, parse_table_name};
use crate::statement::{BackupPlace, OBJECT_OPTIONS, ObjectOptions};

/// Which of the backups at a place is meant.
const BACKUP: &str = "backup";

/// A backup, or the way back.
#[derive(Debug)]
pub(crate) struct BackupStatement {
    pub(crate) restores: bool,
    /// All tables if absent.
    pub(crate) table: Option<TableName>,
    /// What the restored table is to be called.
    pub(crate) named: Option<TableName>,
    pub(crate) place: BackupPlace,
}

/// Takes the statement apart. Its errors name no value: some are secret.
pub(super) fn parse(parser: &mut Parser<'_>, tokens: &[TokenWithSpan]) -> Result<BackupStatement> {
    let restores = is_word(&parser.next_token().token, "RESTORE");
    let table = match parser.parse_keyword(Keyword::DATABASE) {
        true => None,
        false if parser.parse_keyword(Keyword::TABLE) => Some(parse_table_name(parser, tokens)?),
        false => return Err(expected(parser, "TABLE and a name, or DATABASE")),
    };
    let (word, name) = if restores { (Keyword::FROM, "FROM") } else { (Keyword::TO, "TO") };
    if !parser.parse_keyword(word) {
        return Err(expected(parser, &format!("{name} and a URL in quotes")));
    }
    let url = text(parser).ok_or_else(|| expected(parser, "a URL in quotes"))?;
    let named = match restores && table.is_some() && parser.parse_keyword(Keyword::AS) {
        true => Some(parse_table_name(parser, tokens)?),
        false => None,
    };
    let mut options = BTreeMap::new();
    if parser.parse_keyword(Keyword::WITH) {
        if !parser.consume_token(&Token::LParen) {
            return Err(expected(parser, "( after WITH"));
        }
        loop {
            let place = parser.peek_token().span;
            let key = match parser.next_token().token {
                Token::Word(word) => word.value.to_ascii_lowercase(),
                _ => return Err(at(Error::new(ErrorCode::Syntax, "expected: the name of an option"), place)),
            };
            let is_known = OBJECT_OPTIONS.contains(&key.as_str()) || restores && key == BACKUP;
            if !is_known {
                let help = match suggest::closest(&key, OBJECT_OPTIONS) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("there are {}", OBJECT_OPTIONS.join(", ")),
                };
                let error = Error::new(ErrorCode::InvalidStatement, format!("there is no option '{key}'"));
                return Err(at(error.with_help(help), place));
            }
            if !parser.consume_token(&Token::Eq) {
                return Err(expected(parser, &format!("= after {key}")));
            }
            let value = text(parser).ok_or_else(|| expected(parser, &format!("the value of {key} in quotes")))?;
            if options.insert(key.clone(), value).is_some() {
                return Err(at(Error::new(ErrorCode::InvalidStatement, format!("{key} is given twice")), place));
            }
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        if !parser.consume_token(&Token::RParen) {
            return Err(expected(parser, ", or )"));
        }
    }
    if parser.peek_token().token != Token::EOF {
        return Err(expected(parser, "the end of the statement"));
    }
    let backup = options.remove(BACKUP);
    Ok(BackupStatement { restores, table, named, place: BackupPlace { url, options: ObjectOptions(options), backup } })
}

/// The next token, if it is a text.
fn text(parser: &mut Parser<'_>) -> Option<String> {
    let Token::SingleQuotedString(text) = parser.peek_token().token else { return None };
    parser.next_token();
    Some(text)
}

fn expected(parser: &Parser<'_>, what: &str) -> Error {
    at(Error::new(ErrorCode::Syntax, format!("expected: {what}")), parser.peek_token().span)
}

/// A text of statements as it may be shown to others and written to logs: without the options of backups, some of which are secret.
pub fn without_secrets(sql: &str) -> Cow<'_, str> {
    let lower = sql.to_ascii_lowercase();
    let begins = ["backup", "restore"].into_iter().filter_map(|word| lower.find(word)).min();
    let Some(with) = begins.and_then(|begin| Some(begin + lower.get(begin..)?.find("with")?)) else {
        return Cow::Borrowed(sql);
    };
    // Texts of other statements may have these words in them.
    let is_backup = |tokens: &Vec<TokenWithSpan>| {
        tokens.first().is_some_and(|token| ["BACKUP", "RESTORE"].iter().any(|word| is_word(&token.token, word)))
    };
    match statements(sql) {
        Ok(statements) if !statements.iter().any(is_backup) => Cow::Borrowed(sql),
        // What cannot be taken apart is cut as well.
        _ => Cow::Owned(format!("{}WITH (…)", sql.get(..with).unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Parsed, parse as parse_sql};

    fn backup(sql: &str) -> BackupStatement {
        match parse_sql(sql) {
            Ok(Parsed::Backup(statement)) => statement,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn statements_are_taken_apart() {
        let all = backup("backup database to 's3://b/x' with (endpoint = 'http://h:1', secret_access_key = 'hush')");
        assert!(all.table.is_none() && !all.restores);
        assert_eq!(all.place.url, "s3://b/x");
        assert_eq!(all.place.options.0["secret_access_key"], "hush");
        assert!(!format!("{all:?}").contains("hush"), "{all:?}");
        let one = backup("RESTORE TABLE a.b FROM 'file:///x' AS c WITH (backup = '7')".replace("a.b", "Ab").as_str());
        assert_eq!((one.table.unwrap().name, one.named.unwrap().name), ("ab".into(), "c".into()));
        assert_eq!((one.restores, one.place.backup.as_deref()), (true, Some("7")));
    }

    #[test]
    fn errors_name_no_value() {
        for (sql, words) in [
            ("BACKUP t TO 'x'", "expected: TABLE"),
            ("BACKUP TABLE t FROM 'x'", "expected: TO"),
            ("BACKUP TABLE t TO hush", "a URL in quotes"),
            ("BACKUP TABLE t TO 'x' AS y", "the end of the statement"),
            ("BACKUP TABLE t TO 'x' WITH (secret_access_key 'hush')", "= after secret_access_key"),
            ("BACKUP TABLE t TO 'x' WITH (secret_access_key = hush)", "in quotes"),
            ("BACKUP TABLE t TO 'x' WITH (region = 'r' 'hush')", ", or )"),
            ("BACKUP TABLE t TO 'x' WITH (backup = 'hush')", "no option 'backup'"),
            ("RESTORE DATABASE FROM 'x' AS y", "the end of the statement"),
        ] {
            let error = parse_sql(sql).unwrap_err();
            assert!(error.message().contains(words), "{sql}: {error}");
            assert!(!error.message().contains("hush"), "{sql}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = without_secrets("SELECT 1; BACKUP DATABASE TO 's3://b' WITH (secret_access_key = 'hush')");
        assert_eq!(shown, "SELECT 1; BACKUP DATABASE TO 's3://b' WITH (…)");
        assert_eq!(without_secrets("backup table 'with hush"), "backup table 'WITH (…)");
        for harmless in
            ["SELECT 'backup with'", "WITH backup AS (SELECT 1) SELECT * FROM backup", "BACKUP TABLE t TO 'x'"]
        {
            assert_eq!(without_secrets(harmless), harmless);
        }
    }
}
