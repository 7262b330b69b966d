//! Real sockets on port 0: one broker in this process, wires that speak the protocol packet by packet.

mod bench;
mod channels;
mod crash;
mod cuts;
mod faults;
mod groups;
mod refusals;
mod restored;
mod rules;
mod sessions;
mod streams;
mod tls;
mod world;
