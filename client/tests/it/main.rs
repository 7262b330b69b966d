//! The client against a broker of a few lines, over pipes that are cut: what is published is stored once, what is
//! stored is delivered once.

mod broker;
mod delivering;
mod publishing;
mod restoring;
