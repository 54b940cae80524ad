//! A file of the write-ahead log: its frames, and the replay of their writes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    shoal_storage::fuzzing::log(bytes);
});
