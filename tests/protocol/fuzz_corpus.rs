//! Runs the corpus of the fuzz targets, which contains all past findings; see `tests/fuzz/README.md`.

#![allow(clippy::duplicate_mod, reason = "each target is a program of its own")]

#[path = "../fuzz/ayame.rs"]
mod ayame;
#[path = "../fuzz/config.rs"]
mod config;
#[path = "../fuzz/forwarded.rs"]
mod forwarded;
#[path = "../fuzz/gstreamer.rs"]
mod gstreamer;
#[path = "../fuzz/hub.rs"]
mod hub;
#[path = "../fuzz/json.rs"]
mod json;
#[path = "../fuzz/matchbox.rs"]
mod matchbox;
#[path = "../fuzz/origin.rs"]
mod origin;
#[path = "../fuzz/peerjs.rs"]
mod peerjs;
#[path = "../fuzz/query.rs"]
mod query;
#[path = "../fuzz/request.rs"]
mod request;
#[path = "../fuzz/stream.rs"]
mod stream;
#[path = "../fuzz/token.rs"]
mod token;
#[path = "../fuzz/ywebrtc.rs"]
mod ywebrtc;

use std::path::PathBuf;

use crate::common::files::project_root;
use crate::common::own_process::is_alone;

#[test]
fn ayame_corpus_passes() {
    play("ayame", ayame::check);
}

#[test]
fn config_corpus_passes() {
    play("config", config::check);
}

#[test]
fn forwarded_corpus_passes() {
    play("forwarded", forwarded::check);
}

#[test]
fn gstreamer_corpus_passes() {
    play("gstreamer", gstreamer::check);
}

#[test]
fn hub_corpus_passes() {
    play("hub", hub::check);
}

#[test]
fn json_corpus_passes() {
    play("json", json::check);
}

#[test]
fn matchbox_corpus_passes() {
    play("matchbox", matchbox::check);
}

#[test]
fn origin_corpus_passes() {
    play("origin", origin::check);
}

#[test]
fn peerjs_corpus_passes() {
    play("peerjs", peerjs::check);
}

#[test]
fn query_corpus_passes() {
    play("query", query::check);
}

#[test]
fn request_corpus_passes() {
    play("request", request::check);
}

#[test]
fn stream_corpus_passes() {
    // It compares the allocations of the process with the memory that is counted.
    if is_alone("fuzz_corpus::stream_corpus_passes", &[]) {
        play("stream", stream::check);
    }
}

#[test]
fn token_corpus_passes() {
    play("token", token::check);
}

#[test]
fn ywebrtc_corpus_passes() {
    play("ywebrtc", ywebrtc::check);
}

fn play(target: &str, check: fn(&[u8])) {
    let corpus = project_root().join("tests/fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = corpus.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(file).unwrap());
    }
}
