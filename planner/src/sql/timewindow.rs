//! `GROUP OVER TIMEWINDOW(time, window[, step]) [BY …]`: one group for each window of time, which overlap if a step is shorter than a window.
//!
//! It is written as the SQL that DataFusion has. A row belongs to the window that `date_bin` puts it into; if windows overlap, to as many
//! as begin within the length of one before it, for which each row is joined with a list of the distances. Windows are counted from
//! 1970-01-01T00:00Z.

use std::ops::ControlFlow;

use arrow::datatypes::{DataType, IntervalUnit};
use datafusion::common::ScalarValue;
use shoal_kernel::{Error, ErrorCode, Result};
use sqlparser::ast::{self, Expr, GroupByExpr, OrderByKind, SelectItem, SetExpr, Spanned, VisitMut, VisitorMut};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan};

use super::text::at;
use super::{template, unsupported};

const WORD: &str = "timewindow";
/// What stands for the first and the last moment of a window, wherever a group's columns may stand.
const START: &str = "window_start";
const END: &str = "window_end";
/// The list of distances, and its column.
const LIST: &str = "__timewindow";
const BACK: &str = "back";
/// Windows that one row may belong to.
const WINDOWS_MAX: i64 = 1_000;

/// Puts the clause as a call of a function in `GROUP BY`, which the parser knows. True if there is one.
pub(super) fn rewrite_tokens(tokens: &mut [TokenWithSpan]) -> bool {
    let mut any = false;
    let is = |token: &Token, keyword| matches!(token, Token::Word(word) if word.keyword == keyword && word.quote_style.is_none());
    let is_named = |token: &Token| matches!(token, Token::Word(word) if word.value.eq_ignore_ascii_case(WORD));
    for begin in 0..tokens.len() {
        let [group, over, name, open, ..] = &tokens[begin..] else { break };
        let found = is(&group.token, Keyword::GROUP) && is(&over.token, Keyword::OVER) && is_named(&name.token);
        if !found || open.token != Token::LParen {
            continue;
        }
        any = true;
        tokens[begin + 1].token = Token::make_keyword("BY");
        let mut depth = 0_usize;
        for place in begin + 3..tokens.len() {
            match tokens[place].token {
                Token::LParen => depth += 1,
                Token::RParen if depth == 1 => {
                    if let Some(by) = tokens.get_mut(place + 1).filter(|next| is(&next.token, Keyword::BY)) {
                        by.token = Token::Comma;
                    }
                    break;
                }
                Token::RParen => depth -= 1,
                _ => {}
            }
        }
    }
    any
}

/// Writes such calls out.
///
/// # Errors
/// One has too few or too many arguments, or its window or step is no length of time.
pub(super) fn rewrite(statement: &mut ast::Statement) -> Result<()> {
    let mut writer = Writer;
    match statement.visit(&mut writer) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

struct Writer;

impl VisitorMut for Writer {
    type Break = Box<Error>;

    fn pre_visit_query(&mut self, query: &mut ast::Query) -> ControlFlow<Box<Error>> {
        let SetExpr::Select(select) = query.body.as_ref() else { return ControlFlow::Continue(()) };
        let Some(windows) = broken(Windows::of(select))? else { return ControlFlow::Continue(()) };
        if let Some(OrderByKind::Expressions(order)) = query.order_by.as_mut().map(|order| &mut order.kind) {
            for item in order {
                match windows.column_of(select, &item.expr) {
                    Some(column) => item.expr = Expr::Identifier(column),
                    None => windows.put_into(&mut item.expr),
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<Box<Error>> {
        if let Some(windows) = broken(Windows::of(select))? {
            windows.put_into_select(select);
        }
        ControlFlow::Continue(())
    }
}

fn broken<T>(result: Result<T>) -> ControlFlow<Box<Error>, T> {
    match result {
        Ok(value) => ControlFlow::Continue(value),
        Err(error) => ControlFlow::Break(Box::new(error)),
    }
}

/// The windows of one SELECT.
struct Windows {
    time: Expr,
    /// Where the call stands in `GROUP BY`.
    place: usize,
    /// Nanoseconds.
    window: i64,
    step: i64,
    start: Expr,
    end: Expr,
    /// If windows overlap.
    distances: Option<ast::TableWithJoins>,
}

impl Windows {
    fn of(select: &ast::Select) -> Result<Option<Self>> {
        let GroupByExpr::Expressions(groups, _) = &select.group_by else { return Ok(None) };
        let mut calls = groups.iter().enumerate().filter_map(|(place, group)| match group {
            Expr::Function(call) if call.name.to_string().eq_ignore_ascii_case(WORD) => Some((place, call)),
            _ => None,
        });
        let Some((place, call)) = calls.next() else { return Ok(None) };
        if let Some((_, second)) = calls.next() {
            return Err(at(unsupported("rows can be grouped over one TIMEWINDOW only"), second.span()));
        }
        let wrong = || {
            let message = "TIMEWINDOW takes a time, the length of a window and, if windows overlap, a step";
            let error = Error::new(ErrorCode::InvalidStatement, message);
            at(
                error.with_help("as in GROUP OVER TIMEWINDOW(time, INTERVAL '5 minutes', INTERVAL '1 minute') BY host"),
                call.span(),
            )
        };
        let ast::FunctionArguments::List(list) = &call.args else { return Err(wrong()) };
        let arguments = list.args.iter().map(|argument| match argument {
            ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        });
        let arguments = arguments.collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        let (time, window, step) = match arguments.as_slice() {
            [time, window] => (*time, length(window)?, None),
            [time, window, step] => (*time, length(window)?, Some((length(step)?, *step))),
            _ => return Err(wrong()),
        };
        if let Some((step, expr)) = step {
            if step > window {
                let error =
                    Error::new(ErrorCode::InvalidStatement, "a step that is longer than a window leaves rows out");
                return Err(at(error, expr.span()));
            }
            if window / step >= WINDOWS_MAX {
                let message =
                    format!("each row would belong to {} windows, more than the {WINDOWS_MAX} allowed", window / step);
                return Err(at(Error::new(ErrorCode::LimitExceeded, message), expr.span()));
            }
        }
        let step = step.map_or(window, |(step, _)| step);
        let back = if step == window { String::new() } else { format!(" - {LIST}.{BACK}") };
        let start = template::expr(&format!("date_bin({}, \"time\"){back}", interval(step)), &[("time", time)])?;
        let end = template::expr(&format!("\"start\" + {}", interval(window)), &[("start", &start)])?;
        let distances = if step == window { None } else { Some(list_of_distances(window, step)?) };
        Ok(Some(Self { time: time.clone(), place, window, step, start, end, distances }))
    }

    /// The name that something which stands for a window has in the answer.
    fn column_of(&self, select: &ast::Select, wanted: &Expr) -> Option<ast::Ident> {
        let name = self.name_of(wanted)?;
        select.projection.iter().find_map(|item| match item {
            SelectItem::UnnamedExpr(expr) if expr == wanted => Some(name.clone()),
            SelectItem::ExprWithAlias { expr, alias } if expr == wanted => Some(alias.clone()),
            _ => None,
        })
    }

    /// The name that it has if no other is given.
    fn name_of(&self, expr: &Expr) -> Option<ast::Ident> {
        match expr {
            Expr::Identifier(name) if *expr == self.time => Some(name.clone()),
            Expr::CompoundIdentifier(names) if *expr == self.time => names.last().cloned(),
            Expr::Function(call) => Naming(self).named(call).map(|(name, _)| ast::Ident::new(name)),
            _ => None,
        }
    }

    /// In the place of the time itself, if it stands alone, and of what is named after windows.
    fn put_into(&self, expr: &mut Expr) {
        if *expr == self.time {
            *expr = self.start.clone();
            return;
        }
        let _: ControlFlow<()> = expr.visit(&mut Naming(self));
    }

    fn put_into_select(&self, select: &mut ast::Select) {
        for item in &mut select.projection {
            match item {
                SelectItem::UnnamedExpr(expr) => {
                    let name = self.name_of(expr);
                    self.put_into(expr);
                    if let Some(alias) = name {
                        *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                    }
                }
                SelectItem::ExprWithAlias { expr, .. } => self.put_into(expr),
                _ => {}
            }
        }
        if let Some(having) = &mut select.having {
            self.put_into(having);
        }
        if let GroupByExpr::Expressions(groups, _) = &mut select.group_by
            && let Some(group) = groups.get_mut(self.place)
        {
            *group = self.start.clone();
        }
        let Some(distances) = &self.distances else { return };
        select.from.push(distances.clone());
        if self.window % self.step != 0 {
            // The farthest of the windows that a step reaches may end before the row.
            let holds = Expr::BinaryOp {
                left: Box::new(Expr::Nested(Box::new(self.end.clone()))),
                op: ast::BinaryOperator::Gt,
                right: Box::new(self.time.clone()),
            };
            select.selection = Some(match select.selection.take() {
                Some(condition) => Expr::BinaryOp {
                    left: Box::new(Expr::Nested(Box::new(condition))),
                    op: ast::BinaryOperator::And,
                    right: Box::new(holds),
                },
                None => holds,
            });
        }
    }
}

/// Puts in what is named after the windows.
struct Naming<'a>(&'a Windows);

impl Naming<'_> {
    fn named(&self, call: &ast::Function) -> Option<(&'static str, &Expr)> {
        let name = call.name.to_string().to_ascii_lowercase();
        [(START, &self.0.start), (END, &self.0.end)].into_iter().find(|(known, _)| *known == name)
    }
}

impl VisitorMut for Naming<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(call) = &*expr
            && let Some((_, meant)) = self.named(call)
        {
            *expr = Expr::Nested(Box::new(meant.clone()));
        }
        ControlFlow::Continue(())
    }
}

/// A length of time in nanoseconds: an interval, text that is one, or seconds.
pub(super) fn length(expr: &Expr) -> Result<i64> {
    let text = match expr {
        Expr::Value(value) => match &value.value {
            ast::Value::Number(seconds, _) => Some(format!("{seconds} seconds")),
            ast::Value::SingleQuotedString(text) => Some(text.clone()),
            _ => None,
        },
        Expr::Interval(ast::Interval { value, leading_field, last_field: None, .. }) => {
            let unit = leading_field.as_ref().map_or_else(String::new, |unit| format!(" {unit}"));
            match value.as_ref() {
                Expr::Value(value) => match &value.value {
                    ast::Value::Number(text, _) | ast::Value::SingleQuotedString(text) => Some(format!("{text}{unit}")),
                    _ => None,
                },
                _ => None,
            }
        }
        _ => None,
    };
    let interval = text.and_then(|text| {
        let text = ScalarValue::Utf8(Some(text));
        match text.cast_to(&DataType::Interval(IntervalUnit::MonthDayNano)).ok()? {
            ScalarValue::IntervalMonthDayNano(Some(interval)) => Some(interval),
            _ => None,
        }
    });
    let nanos = interval.filter(|interval| interval.months == 0).and_then(|interval| {
        const DAY: i64 = 86_400_000_000_000;
        i64::from(interval.days).checked_mul(DAY)?.checked_add(interval.nanoseconds).filter(|nanos| *nanos > 0)
    });
    nanos.ok_or_else(|| {
        let message = format!(
            "{expr} is not the length of a window: that is constant, above zero and the same for each, so not in months"
        );
        let error = Error::new(ErrorCode::InvalidStatement, message);
        at(error.with_help("as in INTERVAL '5 minutes', or a number of seconds"), expr.span())
    })
}

/// A length of time in SQL.
pub(super) fn interval(nanos: i64) -> String {
    match nanos % 1_000_000_000 {
        0 => format!("INTERVAL '{} seconds'", nanos / 1_000_000_000),
        _ => format!("INTERVAL '{nanos} nanoseconds'"),
    }
}

/// What there is to subtract from the last window of a row to get to each of its windows, as a table.
fn list_of_distances(window: i64, step: i64) -> Result<ast::TableWithJoins> {
    let count = (window - 1) / step + 1;
    let rows: Vec<String> = (0..count).map(|distance| format!("({})", interval(distance * step))).collect();
    let text = format!("(VALUES {}) AS {LIST}({BACK})", rows.join(", "));
    template::parsed(&text, |parser| parser.parse_table_and_joins())
}
