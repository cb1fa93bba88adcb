//! The domain of Stoker. Planners are plain functions from policy and observed world to a plan; the ports in
//! [`ports`] are all that reaches outside, and their adapters to AWS live behind the `adapters` feature.

#[cfg(feature = "adapters")]
pub mod aws;
pub mod cache;
pub mod decide;
pub mod emf;
pub mod error;
pub mod event;
pub mod forge;
pub mod gate;
pub mod give;
pub mod handout;
#[cfg(feature = "aws")]
pub mod lambda;
pub mod names;
pub mod night;
pub mod partition;
pub mod policy;
pub mod ports;
pub mod promote;
pub mod provenance;
#[cfg(feature = "registry")]
pub mod registry;
pub mod retain;
pub mod start;
pub mod warm;
