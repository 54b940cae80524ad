//! SQL that stands for other SQL: text with names to be filled in. What is filled in keeps its places in the statement, for errors.

use std::ops::ControlFlow;

use shoal_kernel::{Error, Result};
use sqlparser::ast::{Expr, VisitMut, VisitorMut};
use sqlparser::parser::{Parser, ParserError};

use super::text::DIALECT;

/// A text, parsed.
pub(super) fn parsed<T>(text: &str, parse: impl FnOnce(&mut Parser<'_>) -> Result<T, ParserError>) -> Result<T> {
    let wrong = |error: ParserError| Error::internal(format!("{text}: {error}"));
    parse(&mut Parser::new(&DIALECT).try_with_sql(text).map_err(wrong)?).map_err(wrong)
}

/// Puts expressions in the place of names in quotes.
pub(super) fn fill(tree: &mut impl VisitMut, holes: &[(&str, &Expr)]) {
    let _: ControlFlow<()> = tree.visit(&mut Holes(holes));
}

/// An expression with others in it.
pub(super) fn expr(text: &str, holes: &[(&str, &Expr)]) -> Result<Expr> {
    let mut expr = parsed(text, |parser| parser.parse_expr())?;
    fill(&mut expr, holes);
    Ok(expr)
}

struct Holes<'a>(&'a [(&'a str, &'a Expr)]);

impl VisitorMut for Holes<'_> {
    type Break = ();

    // Afterwards: what has been put in is not looked at.
    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Identifier(name) = &*expr
            && name.quote_style.is_some()
            && let Some((_, with)) = self.0.iter().find(|(hole, _)| *hole == name.value)
        {
            *expr = Expr::Nested(Box::new((*with).clone()));
        }
        ControlFlow::Continue(())
    }
}
