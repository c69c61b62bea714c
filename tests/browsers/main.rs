//! The page and the client library in browsers, and clients of other projects.

mod ayame_sdk;
mod check_page;
mod documentation;
mod end_to_end;
mod fault_injection;
mod foreign_clients;
mod gstreamer;
mod interoperability;
mod interrupted_signaling;
mod library;
mod library_media;
mod library_messages;
mod library_page;
mod matchbox_socket;
mod message_races;
mod package;
mod page;
mod peerjs;
mod room_of_64;
mod simulation;
mod tokens;
mod types;
mod ywebrtc_provider;

use noroshi_test_support as common;
