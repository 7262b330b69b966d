//! The rules of SPEC.md, one module a chapter: every rule marked *[wire]* is cited by the test that shows it, and a
//! test here sees to that.

mod delivery;
mod endings;
mod first_flight;
mod framing;
mod heartbeat;
mod link;
mod models;
mod publishing;
mod recorded;
mod requests;
mod signals;
mod spec;
mod vectors;
mod world;
