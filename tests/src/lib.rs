//! What the scenarios run on: an AWS account in memory, and a test environment that pushes, merges and builds in it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that meets the unexpected ends"
)]
#![allow(clippy::missing_panics_doc, reason = "see above")]

pub mod account;
pub mod environment;
pub mod iam;
pub mod ministack;
pub mod rules;
pub mod template;
pub mod worst;
