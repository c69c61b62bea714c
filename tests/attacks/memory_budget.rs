//! With `--max-memory 32M` the process stays under 40 MB under every attack, and light peers are unaffected.

use std::io::Write;
use std::net::TcpStream;

use crate::common::client::{Client, connect_numbered};
use crate::common::loaded_server::{KIB, LoadedServer, MIB};
use crate::common::pipe::{REQUEST, TEXT, frame};
use noroshi::limits::{CANDIDATES_MAX, HEAD_BYTES_MAX, STORED_BYTES_MAX};
use serde_json::json;

/// Connections that hold memory and ignore responses.
type OpenConnections = Vec<TcpStream>;

/// Opens connections that send these bytes and then stay open.
fn hold_connections(
    loaded: &mut LoadedServer,
    count: usize,
    bytes: impl Fn(usize) -> Vec<u8>,
) -> OpenConnections {
    loaded.connect_many(count, |address, i| {
        let mut stream = connect_numbered(address, i);
        // Rejected connections may already be closed.
        let _ = stream.write_all(&bytes(i));
        stream
    })
}

fn request(room: &str) -> Vec<u8> {
    REQUEST.replace("/ws/tea", &format!("/ws/{room}")).into_bytes()
}

fn text(message: serde_json::Value) -> Vec<u8> {
    frame(TEXT, message.to_string().as_bytes())
}

fn heads(loaded: &mut LoadedServer) -> OpenConnections {
    let head = format!("GET /ws HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(HEAD_BYTES_MAX - 100));
    hold_connections(loaded, 4_000, |_| head.clone().into_bytes())
}

fn pages(loaded: &mut LoadedServer) -> OpenConnections {
    hold_connections(loaded, 4_000, |_| b"GET / HTTP/1.1\r\nHost: h\r\n\r\n".into())
}

fn frames(loaded: &mut LoadedServer) -> OpenConnections {
    let message = frame(TEXT, &[b'x'; 64 * KIB]);
    hold_connections(loaded, 1_000, |_| [&request("tea"), &message[..message.len() - 1]].concat())
}

fn fragments(loaded: &mut LoadedServer) -> OpenConnections {
    let fragment = frame(0x01, &[b'x'; 10 * KIB]);
    hold_connections(loaded, 4_000, |_| [&request("tea"), &fragment[..]].concat())
}

fn offers_and_candidates(loaded: &mut LoadedServer) -> OpenConnections {
    let candidate = "x".repeat(STORED_BYTES_MAX / CANDIDATES_MAX - 2);
    let candidates = text(json!({"type": "candidateAdd", "id": "A", "candidates": vec![candidate; 60]}));
    let offer = text(json!({"type": "offer", "id": "A", "sdp": "\"".repeat(30 * KIB)}));
    hold_connections(loaded, 1_000, |i| {
        [request(&format!("room-{i}")), offer.clone(), candidates.clone()].concat()
    })
}

fn claims(loaded: &mut LoadedServer) -> OpenConnections {
    let long = text(json!({"type": "connect", "id": "A", "x": "x".repeat(60 * KIB)}));
    // The holder does not answer the probe.
    let mut held = hold_connections(loaded, 1, |_| {
        [request("claims"), text(json!({"type": "leave", "id": "A"}))].concat()
    });
    held.extend(hold_connections(loaded, 1_000, |_| {
        [request("claims"), long.clone(), long.clone()].concat()
    }));
    held
}

/// Fills the queues of stalled readers after the kernel's buffers are full.
fn fill_stalled_queues(loaded: &mut LoadedServer) -> OpenConnections {
    let target = |i| format!("stalled-{i}");
    let stalled = loaded.connect_many(300, |address, i| {
        Client::with_buffer(address, 4 * KIB).upgrade("stalled").register(&target(i)).clone_stream()
    });
    let offer = |i| json!({"type": "offer", "id": format!("sender-{i}"), "target_id": target(i), "sdp": "x".repeat(60 * KIB)});
    let senders =
        hold_connections(loaded, stalled.len(), |i| [request("stalled"), text(offer(i)).repeat(8)].concat());
    loaded.exchange_candidates();
    drop(senders);
    stalled
}

fn idle(loaded: &mut LoadedServer) -> OpenConnections {
    hold_connections(loaded, 16_000, |i| {
        [request(&format!("r{i}")), text(json!({"type": "leave", "id": "x".repeat(128)}))].concat()
    })
}

/// Returns how many requests, messages and connections were rejected for lack of memory.
fn memory_rejections(loaded: &LoadedServer) -> f64 {
    let metrics = [
        "closings_total{reason=\"no_memory\"}",
        "errors_total{code=\"peer_busy\"}",
        "errors_total{code=\"too_many\"}",
        "errors_total{code=\"rate_limited\"}",
    ];
    metrics.iter().map(|name| loaded.server.metric(name)).sum()
}

/// The attacks run one after the other, because together they would need more descriptors than a process has. Then as
/// many as possible run together.
#[test]
fn attacks_stay_within_the_memory_budget() {
    let alone = [heads, pages, frames, fragments, offers_and_candidates, claims, fill_stalled_queues, idle]
        .map(|attack| vec![attack]);
    let at_once = vec![fill_stalled_queues, offers_and_candidates, claims, fragments, frames, heads];
    for attacks in alone.into_iter().chain([at_once]) {
        let mut loaded =
            LoadedServer::start_for_clients(16_000, "--max-memory 32M --max-connections 19000 --max-rate 0");
        let held: Vec<OpenConnections> = attacks.iter().map(|attack| attack(&mut loaded)).collect();
        loaded.exchange_candidates();
        // Some attacks alone do not exhaust the memory.
        assert!(attacks.len() == 1 || memory_rejections(&loaded) > 0.0);
        drop(held);
        loaded.finish(40 * MIB);
    }
}
