//! Cuts a text into statements at its top-level semicolons. Lexical only: whether a statement means anything is the
//! planner's business, and a quote that never closes reaches it as it stands.

/// A statement and its place in the text it was cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The statement, trimmed, without its semicolon.
    pub text: &'a str,
    /// Line of its first character, from 1.
    pub line: usize,
    /// Column of its first character, from 1, in characters.
    pub column: usize,
}

impl Statement<'_> {
    /// The statement behind as much white space as stood before it in lines and columns, so that the places an error names
    /// are places in the whole text.
    pub fn in_place(&self) -> String {
        let mut text = String::with_capacity(self.text.len() + self.line + self.column);
        text.extend(std::iter::repeat_n('\n', self.line - 1));
        text.extend(std::iter::repeat_n(' ', self.column - 1));
        text.push_str(self.text);
        text
    }
}

/// The statements of a text; pieces of nothing but white space and comments are left out.
pub fn split(text: &str) -> Vec<Statement<'_>> {
    let mut statements = Vec::new();
    let mut rest = Scanner::new(text);
    while let Some(piece) = rest.next_piece() {
        statements.extend(piece.statement);
    }
    statements
}

/// Whether the text ends with a complete statement: its last semicolon closes everything before it.
pub fn is_complete(text: &str) -> bool {
    let mut rest = Scanner::new(text);
    let mut complete = false;
    while let Some(piece) = rest.next_piece() {
        if piece.terminated {
            complete = true;
        } else if piece.statement.is_some() || piece.open {
            return false;
        }
    }
    complete
}

struct Piece<'a> {
    statement: Option<Statement<'a>>,
    terminated: bool,
    /// A quote or a block comment was still open at the end of the text.
    open: bool,
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: usize,
    column: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1, column: 1 }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    fn next_piece(&mut self) -> Option<Piece<'a>> {
        if self.at >= self.text.len() {
            return None;
        }
        // Where the statement's first token stands; comments before it are not part of it.
        let mut first: Option<(usize, usize, usize)> = None;
        let mut end = self.at;
        let (mut terminated, mut open) = (false, false);
        while self.at < self.text.len() {
            let here = (self.at, self.line, self.column);
            let byte = self.bytes()[self.at];
            if byte == b';' {
                self.advance(1);
                terminated = true;
                break;
            }
            if byte.is_ascii_whitespace() {
                self.advance(1);
                continue;
            }
            if self.text[self.at..].starts_with("--") {
                let length = self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at);
                self.advance(length);
                continue;
            }
            if self.text[self.at..].starts_with("/*") {
                let (length, closed) = block_comment(&self.bytes()[self.at..]);
                open |= !closed;
                self.advance(length);
                continue;
            }
            let (length, closed) = self.token();
            open |= !closed;
            first.get_or_insert(here);
            self.advance(length);
            end = self.at;
        }
        let statement = first.map(|(start, line, column)| Statement { text: &self.text[start..end], line, column });
        Some(Piece { statement, terminated, open })
    }

    /// Length of the quoted piece, word or character at the cursor, and whether it is closed.
    fn token(&self) -> (usize, bool) {
        let rest = &self.bytes()[self.at..];
        match rest[0] {
            quote @ (b'\'' | b'"' | b'`') => {
                let escapes = quote == b'\''
                    && self.at > 0
                    && matches!(self.bytes()[self.at - 1], b'e' | b'E')
                    && !(self.at > 1 && is_word(self.bytes()[self.at - 2]));
                quoted(rest, quote, escapes)
            }
            b'$' => dollar_quoted(&self.text[self.at..]).unwrap_or((1, true)),
            // An identifier is passed over whole, so that a dollar inside it opens no quote; an E before a quote stays apart.
            byte if is_word(byte) => {
                let length = rest.iter().take_while(|byte| is_word(**byte) || **byte == b'$').count();
                (length, true)
            }
            _ => (self.text[self.at..].chars().next().map_or(1, char::len_utf8), true),
        }
    }

    fn advance(&mut self, length: usize) {
        for character in self.text[self.at..self.at + length].chars() {
            if character == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.at += length;
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn quoted(rest: &[u8], quote: u8, escapes: bool) -> (usize, bool) {
    let mut at = 1;
    while at < rest.len() {
        if escapes && rest[at] == b'\\' {
            at += 2;
        } else if rest[at] == quote {
            if rest.get(at + 1) != Some(&quote) {
                return (at + 1, true);
            }
            at += 2;
        } else {
            at += 1;
        }
    }
    (rest.len(), false)
}

fn dollar_quoted(rest: &str) -> Option<(usize, bool)> {
    let tag_end = rest[1..].find('$')? + 2;
    let tag = &rest[..tag_end];
    let name = &tag[1..tag.len() - 1];
    if !name.bytes().all(is_word) || name.as_bytes().first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    Some(match rest[tag_end..].find(tag) {
        Some(close) => (tag_end + close + tag.len(), true),
        None => (rest.len(), false),
    })
}

fn block_comment(rest: &[u8]) -> (usize, bool) {
    let (mut at, mut depth) = (2, 1_usize);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return (at, true);
            }
        } else {
            at += 1;
        }
    }
    (rest.len(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(split(text).iter().map(|statement| statement.text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn cuts_only_at_top_level() {
        check("SELECT 1", &["SELECT 1"]);
        check(" SELECT 1 ; SELECT 2;; ", &["SELECT 1", "SELECT 2"]);
        check("SELECT ';', \";\"; SELECT 'it''s; fine'", &["SELECT ';', \";\"", "SELECT 'it''s; fine'"]);
        check("SELECT E'\\';'; SELECT 2", &["SELECT E'\\';'", "SELECT 2"]);
        check("SELECT name'\\'; SELECT 2", &["SELECT name'\\'", "SELECT 2"]);
        check("SELECT $$a;b$$; SELECT $x$;$$;$x$", &["SELECT $$a;b$$", "SELECT $x$;$$;$x$"]);
        check("SELECT $1; SELECT $2", &["SELECT $1", "SELECT $2"]);
        check("-- a; comment\nSELECT 1 /* ; /* nested; */ */ + 1; -- end;", &["SELECT 1 /* ; /* nested; */ */ + 1"]);
        check("SELECT 'über;' ; SELECT 'é'", &["SELECT 'über;'", "SELECT 'é'"]);
        check("SELECT 'open; SELECT 2", &["SELECT 'open; SELECT 2"]);
        check("", &[]);
        check(" -- nothing", &[]);
    }

    #[test]
    fn keeps_the_place() {
        let text = "SELECT 1;\n  SELECT\n oops";
        let second = split(text)[1];
        assert_eq!((second.line, second.column), (2, 3));
        assert_eq!(second.in_place(), "\n  SELECT\n oops");
    }

    #[test]
    fn knows_when_a_statement_is_complete() {
        for (text, complete) in [
            ("SELECT 1;", true),
            ("SELECT 1; -- done", true),
            ("SELECT 1", false),
            ("SELECT ';", false),
            ("SELECT 1; SELECT", false),
            ("SELECT 1; /* open", false),
            ("", false),
            ("-- only a comment", false),
        ] {
            assert_eq!(is_complete(text), complete, "{text:?}");
        }
    }
}
