//! Stories that read like sentences, told on an account in memory.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets the unexpected ends"
)]

mod attacks;
mod bad_input;
mod chaos;
mod day;
mod documents;
mod events;
mod faults;
mod giving;
mod last_use;
mod metrics;
mod night;
mod probation;
mod promotion;
mod push_to_main;
mod retention;
mod roles;
mod snippets;
mod starting;
mod sweep;
mod table;
mod template;
mod warming;
mod workspace;
