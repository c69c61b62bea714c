//! Three nodes behind Caddy and HAProxy: clients that must meet reach the same node. For y-webrtc, the room is in the path; for
//! PeerJS, the API key is in the query.

use std::net::{SocketAddr, TcpStream};

use crate::common::client::Client;
use crate::common::process::{Running, run};
use crate::common::program::{Program, free_port, is_installed};
use crate::common::readme::configuration;
use serde_json::json;

/// Rooms of y-webrtc, or keys of PeerJS.
const ROOMS: usize = 40;

/// Writes a configuration file with other addresses, and starts a balancer with it.
fn balancer(program: &str, arguments: &str, file: &str, nodes: &[Running; 3], port: u16) -> Program {
    let mut text = configuration(file);
    let listener = if file.starts_with("Caddy") { "example.com {" } else { ":8080\n" };
    let address = match file.starts_with("Caddy") {
        true => format!("{{\n    admin off\n    auto_https off\n}}\nhttp://:{port} {{"),
        false => format!("127.0.0.1:{port}\n"),
    };
    let mut replacements = vec![(listener.to_owned(), address)];
    if !file.starts_with("Caddy") {
        replacements.push(("127.0.0.1:10000".to_owned(), format!("127.0.0.1:{}", free_port())));
    }
    for (number, node) in nodes.iter().enumerate() {
        replacements.push((format!("10.0.0.{}:8080", number + 1), node.address.to_string()));
    }
    for (from, to) in replacements {
        assert!(text.contains(&from), "{from}");
        text = text.replacen(&from, &to, 1);
    }
    let balancer = Program::start_after(program, arguments, |home| {
        std::fs::write(home.join(file), text).unwrap();
    });
    balancer.wait_until("the balancer", || TcpStream::connect(("127.0.0.1", port)).ok());
    balancer
}

/// Starts three nodes with this flag behind a balancer. Returns them with its address when it forwards this path to them.
fn cluster(
    program: &str,
    arguments: &str,
    file: &str,
    flag: &str,
    path: &str,
) -> ([Running; 3], Program, SocketAddr) {
    let command = format!(r#"exec "$0" {flag} --log error"#);
    let nodes = [(); 3].map(|()| run(&command).0);
    let port = free_port();
    let balancer = balancer(program, arguments, file, &nodes, port);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    // The health checks have to succeed first.
    balancer.wait_until("the nodes", || {
        let mut probe = Client::connect(address);
        let request = format!("GET {path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n");
        probe.send(request.as_bytes());
        probe.read_head().starts_with("HTTP/1.1 426 ").then_some(())
    });
    (nodes, balancer, address)
}

/// Asserts that each room is on one node, and that all nodes have rooms.
fn assert_spread(nodes: &[Running; 3]) {
    let rooms = nodes.each_ref().map(|node| node.metric("rooms"));
    assert_eq!(rooms.iter().sum::<f64>(), ROOMS as f64, "{rooms:?}");
    assert!(rooms.iter().all(|rooms| *rooms > 0.0), "all nodes have rooms: {rooms:?}");
}

fn assert_rooms_meet(program: &str, arguments: &str, file: &str) {
    if !is_installed(program) {
        return;
    }
    let (nodes, _balancer, address) = cluster(program, arguments, file, "--y-webrtc", "/y-webrtc");
    let mut clients = Vec::new();
    for room in 0..ROOMS {
        let topic = format!("document {room}");
        // Each client has another token in its query.
        let mut pair = [1, 2].map(|token| {
            let path = format!("/y-webrtc/document%20{room}?token={token}");
            let mut client = Client::connect(address).upgrade_at(&path);
            client.send_json(json!({"type": "subscribe", "topics": [topic]}));
            client.sync();
            client
        });
        pair[0].send_json(json!({"type": "publish", "topic": topic}));
        assert_eq!(pair[1].receive_json()["clients"], 2, "{file}: room {room}");
        clients.extend(pair);
    }
    assert_spread(&nodes);
}

fn assert_keys_meet(program: &str, arguments: &str, file: &str) {
    if !is_installed(program) {
        return;
    }
    let (nodes, _balancer, address) = cluster(program, arguments, file, "--peerjs", "/peerjs");
    let mut clients = Vec::new();
    for key in 0..ROOMS {
        let mut pair = ["alice", "bob"].map(|id| {
            let path = format!("/peerjs?key=key{key}&id={id}&token=secret-of-{id}&version=1.5.5");
            let mut client = Client::connect(address).upgrade_at(&path);
            assert_eq!(client.receive_json(), json!({"type": "OPEN"}), "{file}: key {key}");
            client
        });
        pair[0].send_json(json!({"type": "OFFER", "payload": key, "dst": "bob"}));
        let offer = json!({"type": "OFFER", "src": "alice", "dst": "bob", "payload": key});
        assert_eq!(pair[1].receive_json(), offer, "{file}: key {key}");
        clients.extend(pair);
    }
    assert_spread(&nodes);
}

#[test]
fn caddy_sends_each_y_webrtc_room_to_one_node() {
    let file = "Caddyfile-y-webrtc";
    assert_rooms_meet("/usr/bin/caddy", &format!("run --adapter caddyfile --config {file}"), file);
}

#[test]
fn haproxy_sends_each_y_webrtc_room_to_one_node() {
    let file = "haproxy-cluster.cfg";
    assert_rooms_meet("/usr/sbin/haproxy", &format!("-W -f {file}"), file);
}

#[test]
fn caddy_sends_each_peerjs_key_to_one_node() {
    let file = "Caddyfile-peerjs";
    assert_keys_meet("/usr/bin/caddy", &format!("run --adapter caddyfile --config {file}"), file);
}

#[test]
fn haproxy_sends_each_peerjs_key_to_one_node() {
    let file = "haproxy-peerjs.cfg";
    assert_keys_meet("/usr/sbin/haproxy", &format!("-W -f {file}"), file);
}
