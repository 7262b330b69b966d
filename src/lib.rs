//! The Longwire broker: one log, conversations in it, streams out of it.

pub mod routing;
pub mod cli;
pub mod store;
