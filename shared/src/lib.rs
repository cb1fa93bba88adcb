//! The domain of Stoker. Planners are plain functions from policy and observed world to a plan; the ports in
//! [`ports`] are all that reaches outside, and their adapters to AWS live behind the `aws` feature.

pub mod cache;
pub mod names;
pub mod policy;
