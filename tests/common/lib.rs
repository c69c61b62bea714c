//! Shared test support: transcripts, protocols and sessions in memory, servers on sockets or as a process, browsers,
//! TLS, and the project's documents, configuration files and sources.

pub mod answer;
pub mod auxiliary_servers;
pub mod axe;
pub mod browser;
pub mod chromium;
pub mod client;
pub mod fault_proxy;
pub mod files;
pub mod firefox;
pub mod gstreamer;
pub mod input;
pub mod loaded_server;
pub mod memory;
pub mod own_process;
pub mod pipe;
pub mod process;
pub mod program;
pub mod raw;
pub mod readme;
pub mod rng;
pub mod shared_resource;
pub mod sockets;
pub mod tls;
pub mod transcript;
