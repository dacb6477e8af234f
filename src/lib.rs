//! Tenure: a lock server that protects what it guards.
pub mod command;
pub mod datagram;
pub mod identity;
pub mod kind;
pub mod lease;
pub mod limits;
pub mod log;
pub mod name;
pub mod node;
pub mod outcome;
pub mod proof;
pub mod state;
pub mod time;
pub mod wire;
