//! The Longwire broker: one log, conversations in it, streams out of it.

pub mod admin;
pub mod auth;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod metrics;
pub mod mutation;
pub mod net;
#[cfg(feature = "push")]
pub mod push;
pub mod routing;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod vital;
