//! Shared test support: transcripts, protocols and sessions in memory, servers on sockets or as a process, browsers,
//! TLS, and the project's documents, configuration files and sources.

#![allow(dead_code, reason = "each test file is a crate of its own and uses its part")]

pub mod auxiliary_servers;
pub mod axe;
pub mod browser;
pub mod chromium;
pub mod client;
pub mod fault_proxy;
pub mod files;
pub mod firefox;
pub mod input;
pub mod loaded_server;
pub mod memory;

pub mod pipe;
pub mod process;
pub mod program;
pub mod raw;
pub mod readme;
pub mod rng;
pub mod sockets;
pub mod tls;
pub mod transcript;
