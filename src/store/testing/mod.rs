//! What the store's own tests share: a disk that crashes, and a stand-in for routing with a model of what must be there.

pub(crate) mod model;
pub(crate) mod sim_disk;

pub(crate) use model::{Fold, Model};
pub(crate) use sim_disk::SimDisk;
