//! What several tests share: transcripts, and a hub on memory to play them against.

#![allow(dead_code, reason = "each test file is a crate of its own and uses its part")]

pub mod memory;
pub mod pipe;
pub mod sockets;
pub mod transcript;
