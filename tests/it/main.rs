//! Real sockets on port 0: one broker in this process, wires that speak the protocol packet by packet.

mod accounts;
mod bench;
mod channels;
mod commands;
mod crash;
mod cuts;
mod delivered;
mod disks;
mod examples;
mod faults;
mod files;
mod forgotten;
mod groups;
mod hostile;
mod levels;
mod load;
mod logins;
mod messages;
mod metrics;
mod old;
mod openssl;
#[path = "../fixtures/pages.rs"]
mod pages;
mod present;
mod process;
mod providers;
mod push;
#[path = "../../push/tests/server/mod.rs"]
mod push_server;
mod refusals;
mod remains;
mod restored;
mod retention;
mod rights;
mod roles;
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
