//! Tenure: a lock server that protects what it guards.
pub mod command;
pub mod failpoint;
pub mod identity;
pub mod image;
pub mod kind;
pub mod limits;
pub mod name;
pub mod outcome;
pub mod state;
pub mod time;
