//! For tests of the store and of everything above it: a disk that crashes; and for the store's own, a stand-in for routing
//! with a model of what must be there. Nothing of it is reached by the broker.

#[cfg(test)]
mod asked;
#[cfg(test)]
pub(crate) mod model;
mod pages;
mod sim_disk;

#[cfg(test)]
pub(crate) use asked::AskedFile;
#[cfg(test)]
pub(crate) use model::{Fold, Model, entry};
pub use sim_disk::SimDisk;
