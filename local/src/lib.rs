//! The local stand-ins: what Stoker needs of AWS and no emulator has.
//!
//! [`serve`] is one process in three parts: the `CodeBuild` API ([`api`]), the machine that runs its builds
//! ([`machine`]), and the source of the events that AWS emits by itself ([`events`], [`images`], [`bus`]).
//! [`simulated`] is a builder for machines without Docker: it reads and writes valid caches, and only sleeps where a
//! Dockerfile sleeps.
//!
//! Everything listens on, and speaks to, the loopback interface only.

pub mod api;
pub mod aws;
pub mod build;
pub mod builder;
pub mod buildspec;
pub mod bus;
pub mod control;
pub mod events;
pub mod http;
pub mod images;
pub mod ledger;
pub mod machine;
pub mod project;
pub mod serve;
pub mod simulated;

/// The account that the local stand-ins belong to.
pub const ACCOUNT: &str = "000000000000";
/// The region that the local stand-ins lie in.
pub const REGION: &str = "us-east-1";

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Locks a mutex whose data stays valid even when a holder panicked.
fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
