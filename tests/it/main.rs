//! Real sockets on port 0: one broker in this process, wires that speak the protocol packet by packet.

mod bench;
mod channels;
mod crash;
mod cuts;
mod faults;
mod groups;
mod hostile;
mod refusals;
mod restored;
mod rights;
mod rules;
mod secrets;
mod sessions;
mod streams;
mod tls;
mod world;
