//! DataFusion's errors as ours and back, without losing the type on the way.

use std::error::Error as StdError;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{Diagnostic, SchemaError};
use datafusion::error::DataFusionError;
use shoal_kernel::{Error, ErrorCode, Span, suggest};

/// Puts our error into DataFusion's, from which [`error_from_datafusion`] takes it out again unchanged.
pub fn error_to_datafusion(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// The typed error behind a DataFusion error. One of ours that travelled inside, however deep, comes back as it was.
pub fn error_from_datafusion(error: DataFusionError) -> Error {
    convert(&error)
}

fn convert(error: &DataFusionError) -> Error {
    match error {
        DataFusionError::Shared(inner) => convert(inner),
        DataFusionError::Context(_, inner) => convert(inner),
        DataFusionError::Diagnostic(diagnostic, inner) => with_diagnostic(convert(inner), diagnostic),
        DataFusionError::Collection(errors) => {
            let mut all = errors.iter().map(convert);
            let first = all.next().unwrap_or_else(|| Error::internal("an empty collection of errors"));
            all.flat_map(|error| error.spans().to_vec()).fold(first, Error::with_span)
        }
        DataFusionError::External(inner) => {
            travelled(inner.as_ref()).unwrap_or_else(|| Error::internal(inner.to_string()))
        }
        DataFusionError::ArrowError(inner, _) => from_arrow(inner),
        DataFusionError::IoError(inner) => {
            inner.get_ref().and_then(travelled).unwrap_or_else(|| Error::new(io_code(inner), inner.to_string()))
        }
        DataFusionError::SQL(inner, _) => Error::new(ErrorCode::Syntax, inner.to_string()),
        DataFusionError::NotImplemented(message) => Error::new(ErrorCode::Unsupported, message),
        DataFusionError::Plan(message) => Error::new(ErrorCode::InvalidStatement, message),
        DataFusionError::Configuration(message) => Error::new(ErrorCode::InvalidRequest, message),
        DataFusionError::SchemaError(inner, _) => from_schema(inner),
        DataFusionError::Execution(message) => Error::new(ErrorCode::Evaluation, message),
        DataFusionError::ExecutionJoin(inner) if inner.is_cancelled() => {
            Error::new(ErrorCode::Cancelled, "the query was cancelled")
        }
        DataFusionError::ResourcesExhausted(message) => Error::new(ErrorCode::OutOfMemory, message)
            .with_help("read fewer rows or columns at once, or raise query_memory_bytes_max"),
        other => Error::internal(other.message().into_owned()),
    }
}

/// Our error, if it is somewhere behind this one.
fn travelled(error: &(dyn StdError + Send + Sync + 'static)) -> Option<Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(ours) = error.downcast_ref::<Error>() {
            return Some(ours.clone());
        }
        if let Some(inner) = error.downcast_ref::<DataFusionError>() {
            return Some(convert(inner));
        }
        if let Some(inner) = error.downcast_ref::<ArrowError>() {
            return Some(from_arrow(inner));
        }
        next = error.source();
    }
    None
}

fn from_arrow(error: &ArrowError) -> Error {
    match error {
        ArrowError::ExternalError(inner) => {
            travelled(inner.as_ref()).unwrap_or_else(|| Error::internal(inner.to_string()))
        }
        ArrowError::MemoryError(message) => Error::new(ErrorCode::OutOfMemory, message),
        ArrowError::IoError(message, inner) => {
            inner.get_ref().and_then(travelled).unwrap_or_else(|| Error::new(io_code(inner), message))
        }
        ArrowError::NotYetImplemented(message) => Error::new(ErrorCode::Unsupported, message),
        ArrowError::DivideByZero => Error::new(ErrorCode::Evaluation, "division by zero"),
        ArrowError::ComputeError(message)
        | ArrowError::CastError(message)
        | ArrowError::ParseError(message)
        | ArrowError::ArithmeticOverflow(message)
        | ArrowError::InvalidArgumentError(message) => Error::new(ErrorCode::Evaluation, message),
        other => Error::internal(other.to_string()),
    }
}

fn io_code(error: &std::io::Error) -> ErrorCode {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
        std::io::ErrorKind::InvalidData => ErrorCode::Corruption,
        _ => ErrorCode::Io,
    }
}

fn from_schema(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let message = match &field.relation {
                Some(relation) => format!("there is no column '{}' in '{}'", field.name, relation.table()),
                None => format!("there is no column '{}'", field.name),
            };
            let error = Error::new(ErrorCode::UnknownColumn, message);
            let names = valid_fields.iter().map(|valid| valid.name.as_str());
            match suggest::closest(&field.name, names) {
                Some(near) => error.with_help(format!("did you mean '{near}'?")),
                None if valid_fields.is_empty() => error,
                None => {
                    let names: Vec<_> = valid_fields.iter().take(32).map(|valid| valid.name.as_str()).collect();
                    error.with_help(format!("the columns here are: {}", names.join(", ")))
                }
            }
        }
        SchemaError::AmbiguousReference { field } => {
            Error::new(ErrorCode::UnknownColumn, format!("column '{}' is ambiguous", field.name))
                .with_help("put the table's name or alias before it")
        }
        other => Error::new(ErrorCode::InvalidStatement, other.to_string()),
    }
}

fn with_diagnostic(mut error: Error, diagnostic: &Diagnostic) -> Error {
    if let Some(span) = diagnostic.span {
        error = error.with_span(Span {
            line: span.start.line,
            column: span.start.column,
            end_line: span.end.line,
            end_column: span.end.column,
        });
    }
    let help =
        diagnostic.helps.iter().map(|help| &help.message).chain(diagnostic.notes.iter().map(|note| &note.message));
    match error.help() {
        Some(_) => error,
        None => match help.cloned().collect::<Vec<_>>() {
            lines if lines.is_empty() => error,
            lines => error.with_help(lines.join("; ")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn our_error_survives_every_wrapping() {
        let ours = Error::new(ErrorCode::PartitionUnavailable, "p7 has no live replica").with_retry_after_ms(50);
        let wrapped = DataFusionError::Shared(Arc::new(DataFusionError::Context(
            "while scanning".into(),
            Box::new(DataFusionError::ArrowError(
                Box::new(ArrowError::ExternalError(Box::new(error_to_datafusion(ours.clone())))),
                None,
            )),
        )));
        assert_eq!(error_from_datafusion(wrapped), ours);
        let io = DataFusionError::IoError(std::io::Error::other(ours.clone()));
        assert_eq!(error_from_datafusion(io), ours);
    }

    #[test]
    fn run_time_failures_keep_their_kind() {
        let code = |error: DataFusionError| error_from_datafusion(error).code();
        assert_eq!(code(DataFusionError::ResourcesExhausted("pool".into())), ErrorCode::OutOfMemory);
        assert_eq!(code(ArrowError::DivideByZero.into()), ErrorCode::Evaluation);
        assert_eq!(code(DataFusionError::NotImplemented("x".into())), ErrorCode::Unsupported);
        assert_eq!(code(DataFusionError::External("strange".into())), ErrorCode::Internal);
    }
}
