//! Connection storms, and fewer descriptors than connections need.

use std::net::TcpStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::client::{Client, connect_numbered};
use crate::common::loaded_server::{BASELINE_BYTES, KIB, LoadedServer, MIB, PAIR, start_load_generator};
use crate::common::pipe::REQUEST;
use crate::common::process::{Running, eventually};
use noroshi::config::Config;
use noroshi::limits::REJECTED_AT_ONCE;
use serde_json::json;

// ---- Descriptors ----

/// Waits until the server uses little CPU. A loop that spins would use all that it gets, even on a busy machine.
fn wait_until_it_rests(server: &Running) {
    eventually("the server does not spin", || {
        let before = server.cpu();
        let time = Duration::from_secs(1);
        sleep(time);
        let used = server.cpu() - before;
        println!("{used:?} of CPU in {time:?}");
        used < time / 20
    });
}

/// Returns how many clients have received a response with this status.
fn count_responses(clients: &[Client], status: &str) -> usize {
    clients.iter().filter(|client| client.has_response(status)).count()
}

#[test]
fn five_hundred_clients_with_sixty_four_descriptors_are_served() {
    let mut loaded = LoadedServer::start_script(r#"ulimit -n 64; exec "$0" --log warn"#);
    let mut clients = loaded.connect_many(500, |address, _| Client::connect(address));
    clients.iter_mut().for_each(|client| client.send(REQUEST.as_bytes()));
    // 31 connections fit, including the pair. Others are rejected and closed, so that none is left waiting.
    loaded.wait_for_metric("connections_total", 31);
    loaded.wait_until("some connections are rejected", |_| {
        count_responses(&clients, "503") >= REJECTED_AT_ONCE
    });
    let inside = loaded.descriptors_at_rest + 31 - PAIR.len();
    loaded.wait_until("the other connections are closed", |server| server.descriptors() == inside);
    wait_until_it_rests(&loaded.server);
    for came in 32..35 {
        let inside = clients.iter().position(|client| client.has_response("101")).unwrap();
        drop(clients.swap_remove(inside));
        loaded.wait_until("a new client takes the slot", |server| {
            let mut client = Client::connect(server.address);
            client.send(REQUEST.as_bytes());
            let is_inside = client.read_head().starts_with("HTTP/1.1 101 ");
            clients.push(client);
            is_inside
        });
        loaded.wait_for_metric("connections_total", came);
    }
    drop(clients);
    let log = loaded.finish(BASELINE_BYTES);
    assert_eq!(log.lines().count(), 0, "the limit is logged at the start: {log}");
}

#[test]
fn five_hundred_clients_without_descriptors_are_served_later() {
    let mut loaded = LoadedServer::start("");
    let mut clients = loaded.connect_many(10, |address, _| Client::open(address, "tea"));
    // Fewer than at the start of the process, so that accept fails.
    let pid = loaded.server.child.id().to_string();
    let limit = loaded.server.descriptors() + 3;
    let prlimit = ["--pid", &pid, &format!("--nofile={limit}:{limit}")];
    assert!(Command::new("prlimit").args(prlimit).status().unwrap().success());
    let began = Instant::now();
    let mut waiting = loaded.connect_many(500, |address, _| Client::connect(address));
    waiting.iter_mut().for_each(|client| client.send(REQUEST.as_bytes()));
    loaded.wait_until("all descriptors are in use", |server| server.descriptors() >= limit);
    wait_until_it_rests(&loaded.server);
    // A freed descriptor is used for a waiting client.
    let before = count_responses(&waiting, "101");
    clients.truncate(5);
    loaded.wait_until("five more clients are upgraded", |_| count_responses(&waiting, "101") >= before + 5);
    drop((clients, waiting));
    let log = loaded.finish(BASELINE_BYTES);
    let warnings = log.matches("cannot accept").count();
    assert!((1..=1 + began.elapsed().as_secs() as usize).contains(&warnings), "{log}");
}

// ---- Storms ----

/// When the backlog is full, TCP retransmits the SYN after a second. On loopback, connecting takes no time otherwise, even
/// if this thread does not run for that long.
#[test]
fn burst_of_five_thousand_is_served_within_a_second() {
    let mut loaded = LoadedServer::start_for_clients(5000, "");
    let connect = |_| {
        let stream = TcpStream::connect_timeout(&loaded.address(), Duration::from_millis(900));
        let mut client = Client::from_stream(stream.expect("the backlog has room"));
        client.send(REQUEST.as_bytes());
        client
    };
    let clients: Vec<_> = (0..5000).map(connect).collect();
    loaded.wait_for_metric("connections", 5002);
    drop(clients);
    loaded.finish(BASELINE_BYTES + 5000 * KIB);
}

/// Connects the maximum number of clients, each of which sends `connect` in a room.
fn fill(loaded: &mut LoadedServer, room: impl Fn(usize) -> String) -> Vec<Client> {
    let connections_max = Config::default().connections_max;
    let clients = loaded.connect_many(connections_max - PAIR.len(), |address, i| {
        let mut client = Client::from_stream(connect_numbered(address, i)).upgrade(&room(i));
        client.send_json(json!({"type": "connect", "id": i.to_string()}));
        client
    });
    loaded.wait_for_metric("peers", connections_max);
    clients
}

#[test]
fn full_server_queues_in_one_room_or_many() {
    let mut loaded = LoadedServer::start_for_clients(Config::default().connections_max, "");
    let mut waiting = fill(&mut loaded, |_| "tea".to_owned());
    loaded.wait_for_metric("rooms", 2);
    let mut refused = Client::connect(loaded.address());
    refused.send(REQUEST.as_bytes());
    assert!(refused.read_head().starts_with("HTTP/1.1 503 "));
    // Each peer becomes the offerer when the previous one leaves.
    for mut client in waiting.drain(..100) {
        assert_eq!(client.receive_json(), json!({"type": "offer"}));
    }
    drop((waiting, refused));
    loaded.wait_for_metric("connections", 2);
    let rooms = fill(&mut loaded, |i| i.to_string());
    loaded.wait_for_metric("rooms", 1 + rooms.len());
    drop(rooms);
    loaded.finish(BASELINE_BYTES + 10_000 * KIB);
}

#[test]
fn memory_does_not_grow_over_a_hundred_thousand_peers() {
    let mut loaded = LoadedServer::start("");
    let mut clients = start_load_generator(&loaded, "--mode churn --seconds 600");
    loaded.wait_until("the first peers have disconnected", |server| {
        server.metric("connections_total") > 10_000.0
    });
    let (early, _) = loaded.server.memory();
    loaded.wait_until("the other peers have disconnected", |server| {
        server.metric("connections_total") > 100_000.0
    });
    clients.kill().unwrap();
    clients.wait().unwrap();
    loaded.wait_for_metric("connections", 2);
    let (late, _) = loaded.server.memory();
    println!("{} KiB early, {} KiB late", early / KIB, late / KIB);
    // If one allocation of each of the 90,000 peers stayed, it would take 32 bytes of the heap, so 2.8 MB.
    assert!(late <= early + 2 * MIB);
    loaded.finish(BASELINE_BYTES);
}
