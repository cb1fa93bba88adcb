//! Scenarios that read like sentences, on an account in memory.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets the unexpected ends"
)]

mod attacks;
mod bad_input;
mod build_inputs;
mod chaos;
mod circles;
mod documents;
mod events;
mod failed_calls;
mod last_use;
mod metrics;
mod mounts;
mod probation;
mod promotion;
mod push_to_main;
mod reconcile;
mod retention;
mod roles;
mod schedule;
mod snippets;
mod starting;
mod table;
mod template;
mod warming;
mod workspace;
