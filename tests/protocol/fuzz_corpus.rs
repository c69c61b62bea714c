//! Runs the corpus of the fuzz targets, which contains all past findings; see `tests/fuzz/README.md`.

#![allow(clippy::duplicate_mod, reason = "each target is a program of its own")]

#[path = "../fuzz/ayame.rs"]
mod ayame;
#[path = "../fuzz/config.rs"]
mod config;
#[path = "../fuzz/forwarded.rs"]
mod forwarded;
#[path = "../fuzz/hub.rs"]
mod hub;
#[path = "../fuzz/json.rs"]
mod json;
#[path = "../fuzz/matchbox.rs"]
mod matchbox;
#[path = "../fuzz/origin.rs"]
mod origin;
#[path = "../fuzz/query.rs"]
mod query;
#[path = "../fuzz/request.rs"]
mod request;
#[path = "../fuzz/stream.rs"]
mod stream;
#[path = "../fuzz/token.rs"]
mod token;

use std::path::{Path, PathBuf};

/// The targets run one after the other, because they count allocations of the process.
#[test]
fn fuzz_corpus_passes() {
    play("ayame", ayame::check);
    play("hub", hub::check);
    play("json", json::check);
    play("matchbox", matchbox::check);
    play("config", config::check);
    play("forwarded", forwarded::check);
    play("hub", hub::check);
    play("json", json::check);
    play("origin", origin::check);
    play("query", query::check);
    play("request", request::check);
    play("stream", stream::check);
    play("token", token::check);
}

fn play(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = corpus.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(file).unwrap());
    }
}
