//! What several tests share: transcripts, a hub and sessions on memory, a server on sockets or as a process,
//! a browser, TLS, the README, the files of the project.

#![allow(dead_code, reason = "each test file is a crate of its own and uses its part")]

pub mod axe;
pub mod browser;
pub mod chromium;
pub mod client;
pub mod files;
pub mod firefox;
pub mod loaded_server;
pub mod memory;
pub mod netns;
pub mod pipe;
pub mod process;
pub mod program;
pub mod raw;
pub mod readme;
pub mod rng;
pub mod sockets;
pub mod tls;
pub mod transcript;
pub mod wire;
