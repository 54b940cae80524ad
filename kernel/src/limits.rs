//! Limits that hold on every node. Each has a unit in its name, and an error that names it when it is reached.

/// Bytes of one frame between nodes; larger payloads are cut into items by their sender.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// Bytes of rows in one write to one partition.
pub const WRITE_BYTES_MAX: usize = 16 << 20;

/// Bytes of one SQL text.
pub const SQL_BYTES_MAX: usize = 1 << 20;

/// Partitions of one table.
pub const PARTITIONS_PER_TABLE_MAX: u32 = 1024;

/// Columns of one table.
pub const COLUMNS_PER_TABLE_MAX: usize = 4096;

/// Columns that a table may store, older forms and dropped ones of event tables included.
pub const STORED_COLUMNS_PER_TABLE_MAX: usize = 8192;

/// Forms of dropped columns that a table with a primary key remembers. A resend that brings an older one is a conflict.
pub const DROPPED_FORMS_MAX: usize = 64;

/// Bytes of one value: what a row has of one column. A page of a segment must have room for as many values as it has rows,
/// whatever they are.
pub const VALUE_BYTES_MAX: usize = 250_000;

/// Items of the lists in one value, those of lists inside lists included.
pub const VALUE_ITEMS_MAX: usize = 4096;

/// Levels of lists and structs in a type that is inferred from rows; what lies deeper is kept as JSON text.
pub const INFERRED_NESTING_MAX: usize = 16;

/// Fields of a struct that is inferred from rows, those of structs inside it included; one with more is kept as JSON text.
pub const INFERRED_FIELDS_MAX: usize = 1024;

/// Bytes of one encoded primary key.
pub const KEY_BYTES_MAX: usize = 16 << 10;

/// Bytes of one idempotency token, as the client sends it.
pub const TOKEN_BYTES_MAX: usize = 255;
