//! Every transcript, against the bare hub and against a running server.

mod common;

use common::memory::Memory;
use common::sockets::Net;
use common::transcript;

#[test]
fn on_memory() {
    for transcript in transcript::all() {
        println!("{}", transcript.name);
        transcript.play(Box::new(Memory::new(&transcript.config)));
    }
}

#[test]
fn on_sockets() {
    for transcript in transcript::all() {
        println!("{}", transcript.name);
        transcript.play(Box::new(Net::new(&transcript.config)));
    }
}
