//! The protocol of one session, without socket, clock, thread or randomness.
