//! Routing: who may do what, which seq an entry gets, what a device is sent next. Pure state machines over rows
//! (records in, effects out), and the narrow shells that feed connections. Knows the store's face, never a socket.

pub mod account;
mod account_fold;
pub mod account_query;
#[cfg(test)]
mod account_tests;
mod actions;
pub mod allowance;
pub mod alteration;
pub mod audit;
pub mod catch_up;
pub mod change;
pub mod core;
#[cfg(test)]
mod core_tests;
pub mod deliveries;
pub mod draft;
pub mod duties;
mod erasure;
pub mod feed;
pub mod fold;
pub mod grants;
mod groups;
pub mod items;
pub mod levels;
pub mod limits;
pub mod loading;
pub mod messages;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod model;
#[cfg(test)]
mod model_tests;
mod names;
pub mod ops;
pub mod outbox;
pub mod presence;
pub mod push;
pub mod query;
#[cfg(test)]
mod quota_tests;
pub mod reads;
pub mod registry;
pub mod rehearsal;
pub mod resume;
pub mod retention;
pub mod rights;
pub mod rows;
pub mod schedule;
pub mod sifter;
pub mod signals;
pub mod state;
#[cfg(test)]
mod state_tests;
pub mod stream;
pub mod tallies;
pub mod view;
pub mod wills;
