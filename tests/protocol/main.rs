//! Protocols, sessions and tokens in memory, the fuzz corpus, and the architecture. Nothing has to be installed.

mod architecture;
mod fuzz_corpus;
mod gstreamer;
mod noroshi;
mod other_protocols;
mod peerjs;
mod session;
mod simulation;
mod tokens;
mod transcripts;
mod ywebrtc;

use noroshi_test_support as common;
