//! The store from outside: what it promises, under faults.
#![allow(clippy::unwrap_used, reason = "a failed test should say where")]

mod disk;
mod fixture;
mod writes;
