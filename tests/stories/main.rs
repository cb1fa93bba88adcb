//! Stories that read like sentences, told on an account in memory.

mod bad_input;
mod events;
mod faults;
mod push_to_main;
mod retention;
mod workspace;
