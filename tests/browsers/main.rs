//! The page and the client library in browsers, and clients of other projects.

mod ayame_sdk;
mod check_page;
mod end_to_end;
mod fault_injection;
mod interoperability;
mod interrupted_signaling;
mod library;
mod matchbox_socket;
mod message_races;
mod page;
mod peerjs;
mod room_of_64;
mod tokens;
mod types;

use noroshi_test_support as common;
