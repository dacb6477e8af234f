//! Tenure: a lock server that protects what it guards.
pub mod client;
pub mod command;
pub mod datagram;
pub mod identity;
pub mod inspect;
pub mod kind;
pub mod limits;
pub mod name;
pub mod outcome;
pub mod server;
pub mod state;
pub mod storage;
pub mod time;
pub mod wire;
