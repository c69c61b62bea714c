//! The server on sockets and as a process.

mod admission_limits;
mod command_line;
mod drain;
mod logging;
mod metrics;
mod minimal;
mod panic;
mod random_sockets;
mod registration;
mod rooms;
mod sockets;
mod token_admission;
mod unix_socket;

use noroshi_test_support as common;
