//! The server on sockets and as a process.

mod admission_limits;
mod command_line;
#[path = "../common/mod.rs"]
mod common;
mod drain;
mod logging;
mod metrics;
mod minimal;
mod panic;
mod random_sockets;
mod rooms;
mod sockets;
mod token_admission;
mod unix_socket;
