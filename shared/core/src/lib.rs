//! What Stoker decides and does. Planners are plain functions from policy and observed state to a plan; the ports in
//! [`ports`] are all that reaches outside.

pub mod build_inputs;
pub mod error;
pub mod event;
pub mod forge;
pub mod line_update;
pub mod mounts;
pub mod names;
mod newest_commit;
pub mod onboard;
pub mod partition;
pub mod policy;
pub mod ports;
pub mod promote;
pub mod provenance;
pub mod recent_builds;
pub mod request;
pub mod resolve;
pub mod retain;
pub mod routing;
pub mod schedule;
pub mod simulate;
pub mod sources;
pub mod start;
pub mod start_in_turn;
pub mod trigger;
pub mod warm;
