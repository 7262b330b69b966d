//! Real sockets on port 0: one broker in this process, wires that speak the protocol packet by packet.

mod accounts;
mod bench;
mod channels;
mod crash;
mod cuts;
mod disks;
mod faults;
mod files;
mod groups;
mod hostile;
mod levels;
mod load;
mod logins;
mod messages;
mod metrics;
mod old;
#[path = "../fixtures/pages.rs"]
mod pages;
mod parked;
mod present;
mod process;
mod push;
mod refusals;
mod restored;
mod retention;
mod rights;
mod rules;
mod scrape;
mod secrets;
mod sessions;
mod streams;
mod time;
mod tls;
mod upgrade;
mod weather;
mod world;
