//! A page and its dictionary, decoded whole and in part.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    shoal_storage::fuzzing::page(bytes);
});
