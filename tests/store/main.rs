//! The store on real files: what an operator can run into, and the fixture of this version that every later one opens.

mod fixture;
mod folder;
#[path = "../fixtures/pages.rs"]
mod pages;
mod readers;
