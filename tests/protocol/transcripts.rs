//! Plays every transcript against the protocols in memory and against a server on sockets.

use crate::common::memory::Memory;
use crate::common::sockets::Net;
use crate::common::transcript;

#[test]
fn transcripts_pass_in_memory() {
    for transcript in transcript::all() {
        println!("{}", transcript.name);
        transcript.play(Box::new(Memory::new(&transcript.config)));
    }
}

#[test]
fn transcripts_pass_on_sockets() {
    for transcript in transcript::all() {
        println!("{}", transcript.name);
        transcript.play(Box::new(Net::new(&transcript.config)));
    }
}
