//! A segment file: its footer, its pages, and all that a store does with them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    shoal_storage::fuzzing::segment(bytes);
});
