//! The model, the random commands, and the run that compares the state with it: for `tests/model.rs` and for the fuzz targets.

#![allow(dead_code, reason = "each of those who share this uses a part of it")]

pub(crate) mod keys;
pub(crate) mod lines;
pub(crate) mod model;
pub(crate) mod random;
pub(crate) mod run;
