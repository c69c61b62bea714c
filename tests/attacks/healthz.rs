//! `/healthz` is answered while the server is full of idle connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use crate::common::client::Client;
use crate::common::pipe::REQUEST;
use crate::common::process::{eventually, run};
use serde_json::json;

/// Connections that send one byte, wait until they are closed, and reconnect.
struct Attack {
    is_over: Arc<AtomicBool>,
    attempts: Arc<AtomicUsize>,
    attackers: Vec<JoinHandle<()>>,
}

impl Attack {
    fn start(address: SocketAddr, count: usize, sent: &'static str) -> Attack {
        let is_over = Arc::new(AtomicBool::new(false));
        let attempts = Arc::new(AtomicUsize::new(0));
        let attack = move |is_over: Arc<AtomicBool>, attempts: Arc<AtomicUsize>| {
            while !is_over.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect(address) else { continue };
                stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                let _ = stream.write_all(sent.as_bytes());
                attempts.fetch_add(1, Ordering::Relaxed);
                // The connection stays open until the server closes it.
                let is_open = |read: std::io::Result<usize>| match read {
                    Ok(bytes) => bytes > 0,
                    Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
                };
                while !is_over.load(Ordering::Relaxed) && is_open(stream.read(&mut [0; 100])) {}
            }
        };
        let attackers = (0..count)
            .map(|_| {
                let is_over = is_over.clone();
                let attempts = attempts.clone();
                spawn(move || attack(is_over, attempts))
            })
            .collect();
        let attack = Attack { is_over, attempts, attackers };
        eventually("all attackers are connected", || attack.attempts.load(Ordering::Relaxed) >= count);
        attack
    }

    fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for attacker in self.attackers {
            attacker.join().unwrap();
        }
    }
}

/// Sends twenty requests and asserts that each is answered.
fn assert_answers(address: SocketAddr, path: &str) {
    for i in 0..20 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        let end = stream.read_to_string(&mut answer);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path} {i}: {answer:?} {end:?}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn full_server_answers_healthz_under_connections_that_send_one_byte() {
    let (server, _stderr) = run(r#"exec "$0" --max-connections 2 --log error"#);
    let mut pair = ["A", "B"].map(|id| Client::open(server.address, "tea").register(id));
    for sent in ["G", "", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"] {
        let attack = Attack::start(server.address, 40, sent);
        assert_answers(server.address, "/healthz");
        attack.end();
    }
    for client in &mut pair {
        assert!(client.sync().len() <= 1, "the pair receives only its own messages");
    }
}

#[test]
fn server_without_memory_answers_healthz_under_connections_that_send_one_byte() {
    let (server, _stderr) = run(r#"exec "$0" --max-memory 8M --log error"#);
    let sdp = "x".repeat(60_000);
    let mut peers = Vec::new();
    // Offers take nearly all of it.
    for i in 0..50 {
        let mut peer = Client::open(server.address, &format!("room-{i}"));
        peer.send_json(json!({"type": "connect", "id": "A"}));
        peer.send_json(json!({"type": "offer", "id": "A", "sdp": sdp}));
        peers.push(peer);
    }
    // Connections use the memory that the offers have left.
    eventually("the memory is used up", || {
        let mut peer = Client::connect(server.address);
        peer.send(REQUEST.as_bytes());
        let is_refused = peer.read_head().starts_with("HTTP/1.1 503 ");
        peers.push(peer);
        is_refused
    });
    let attack = Attack::start(server.address, 40, "G");
    assert_answers(server.address, "/healthz");
    attack.end();
}

#[test]
fn metrics_listener_answers_under_connections_that_send_one_byte() {
    let (server, _stderr) = run(r#"exec "$0" --log error"#);
    let attack = Attack::start(server.metrics, 8, "G");
    for path in ["/healthz", "/metrics", "/rooms"] {
        assert_answers(server.metrics, path);
    }
    attack.end();
}
