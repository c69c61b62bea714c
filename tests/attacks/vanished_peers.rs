//! Peers and networks that vanish, in every state of a connection.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;

use crate::common::client::Client;
use crate::common::loaded_server::{BASELINE_BYTES, LoadedServer, start_load_generator};
use crate::common::own_process::is_alone;
use crate::common::pipe::{CLOSE, REQUEST, TEXT, close, frame};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use noroshi::limits::QUEUE_BYTES_MAX_FLOOR;
use serde_json::json;

#[test]
fn stopped_client_is_noticed() {
    let mut loaded = LoadedServer::start("--max-rate 0 --ping-interval 2");
    let mut client = start_load_generator(&loaded, "--pairs 20 --seconds 60");
    loaded.wait_until("the peers exchange messages", |server| {
        server.metric("messages_total{type=\"candidateAdd\"}") > 1000.0
    });
    kill(Pid::from_raw(client.id() as i32), Signal::SIGSTOP).unwrap();
    loaded.wait_for_metric("closings_total{reason=\"silent\"}", 40);
    loaded.wait_for_metric("connections", 2);
    client.kill().unwrap();
    client.wait().unwrap();
    loaded.finish(BASELINE_BYTES);
}

/// The test needs its own network namespace, so it runs itself in one.
#[test]
fn cut_network_is_noticed() {
    // The second way is for users other than root, where the kernel permits it.
    let ways = [&["--net"][..], &["--net", "--map-root-user"]];
    let is_allowed = |way: &&&[&str]| {
        let command =
            Command::new("unshare").args(**way).args(["ip", "link", "add", "type", "veth"]).output();
        command.is_ok_and(|output| output.status.success())
    };
    let Some(way) = ways.iter().find(is_allowed) else {
        let missing = "network namespaces are not allowed here, or there is no `ip`";
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        // The test harness captures the output of print macros.
        return writeln!(std::io::stderr(), "SKIPPED cut_network_is_noticed: {missing}").unwrap();
    };
    let launcher = [&["unshare"], *way].concat();
    if is_alone("vanished_peers::cut_network_is_noticed", &launcher) {
        cut_network();
    }
}

fn cut_network() {
    sh("ip link set lo up");
    let mut loaded = LoadedServer::start("--ping-interval 2 --listen 0.0.0.0:0");
    let mut far = connect_from_namespace(loaded.address().port());
    let mut near = Client::open(loaded.address(), "tea").register("near");
    // One peer is idle, one has a partner, one has sent half a frame.
    far[1].send_json(json!({"type": "offer", "id": "1", "sdp": 1}));
    far[1].sync();
    near.send_json(json!({"type": "answer", "id": "near", "target_id": "1", "sdp": 2}));
    near.sync();
    far[2].send(&frame(TEXT, b"unfinished")[..9]);
    loaded.wait_for_metric("peers", 2 + 3 + 1);
    sh("ip link set near down");
    // The kernel accepts the messages for the partner.
    near.send_json(json!({"type": "candidateAdd", "id": "near", "candidate": 3}));
    let mut received = Vec::new();
    loaded.wait_until("the disconnect is noticed", |server| {
        received.extend(near.sync());
        server.metric("closings_total{reason=\"silent\"}") == 3.0
    });
    received.extend(near.sync());
    assert_eq!(received, [json!({"type": "peerLeft", "id": "1"})]);
    loaded.wait_until("all connections are dropped", |server| {
        near.sync();
        server.metric("connections") == 2.0 + 1.0
    });
    drop((near, far));
    loaded.finish(BASELINE_BYTES);
}

/// Connects three peers from the other end of a link to this network namespace.
fn connect_from_namespace(port: u16) -> Vec<Client> {
    let here = std::process::id();
    // A socket belongs to the network namespace of the thread that creates it. The namespace lives as long as its
    // sockets.
    let far = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh(&format!(
            "ip link add far type veth peer name near netns {here}
            nsenter --net --target {here} ip address add 10.0.0.1/24 dev near
            nsenter --net --target {here} ip link set near up
            ip address add 10.0.0.2/24 dev far
            ip link set far up"
        ));
        let server = ([10, 0, 0, 1], port).into();
        (0..3).map(|i| Client::open(server, "tea").register(&i.to_string())).collect()
    });
    far.join().unwrap()
}

fn sh(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

/// Returns connections in every state of the request and the WebSocket, each with the bytes that it would send next.
fn clients_in_every_state(address: SocketAddr) -> Vec<(Client, Vec<u8>)> {
    let asking =
        ["", "GET /ws/tea HT", "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "nonsense\r\n\r\n", REQUEST];
    let asking = asking.map(|request| (Client::connect(address), request.as_bytes().to_vec()));
    let open = [
        vec![],
        frame(TEXT, b"half")[..1].to_vec(),
        frame(TEXT, b"half")[..7].to_vec(),
        frame(0x01, b"fragment"),
        frame(0xff, b"invalid frame"),
        frame(TEXT, b"{"),
        frame(CLOSE, &close(1000, "")),
    ];
    let open = open.map(|bytes| (Client::open(address, "tea"), bytes));
    asking.into_iter().chain(open).collect()
}

/// Pairs of peers whose first peer is in a state of the protocol. Each lists the messages sent (`A answer`: A answers
/// B).
const FLOWS: [&str; 9] = [
    "A leave",
    "A connect",
    "A connect, A offer, A candidateAdd",
    "B connect, A connect",
    "B offer, A connect",
    "A offer, B connect",
    "B offer, A answer",
    "A join, B join",
    "A leave, B leave, B flood",
];

/// Returns peers in every state of the protocol, and the peers that keep them there.
fn peers_in_every_flow(address: SocketAddr) -> (Vec<Client>, Vec<Client>) {
    let flow = |(i, flow): (usize, &&str)| {
        let mut peers = ["A", "B"].map(|id| (id, Client::open(address, &format!("flow-{i}"))));
        for step in flow.split(", ") {
            let (id, kind) = step.split_once(' ').unwrap();
            let target = if id == "A" { "B" } else { "A" };
            let message = match kind {
                "answer" => json!({"type": kind, "id": id, "target_id": target}),
                "flood" => json!({"type": "offer", "id": id, "target_id": target, "sdp": "x".repeat(60_000)}),
                _ => json!({"type": kind, "id": id}),
            };
            let (_, peer) = peers.iter_mut().find(|(name, _)| *name == id).unwrap();
            let times = if kind == "flood" { 10 } else { 1 };
            (0..times).for_each(|_| peer.send_json(message.clone()));
            peer.sync();
        }
        peers.map(|(_, client)| client)
    };
    let mut pairs: Vec<[Client; 2]> = FLOWS.iter().enumerate().map(flow).collect();
    // A holder whose id is claimed, and a claimant.
    for (room, holder_first) in [("holder", true), ("claimant", false)] {
        let holder = Client::open(address, room).register("A");
        let mut claimant = Client::open(address, room);
        claimant.send_json(json!({"type": "leave", "id": "A"}));
        pairs.push(if holder_first { [holder, claimant] } else { [claimant, holder] });
    }
    pairs.into_iter().map(|[first, second]| (first, second)).unzip()
}

/// Returns peers in all states, and the peers that keep some of them there.
fn peers_in_all_states(loaded: &mut LoadedServer) -> (Vec<Client>, Vec<Client>) {
    let (mut attackers, keepers) = peers_in_every_flow(loaded.address());
    attackers.extend(clients_in_every_state(loaded.address()).into_iter().map(|(mut client, bytes)| {
        client.send(&bytes);
        client
    }));
    loaded.exchange_candidates();
    (attackers, keepers)
}

#[test]
fn reset_is_handled_in_every_state() {
    let mut loaded = LoadedServer::start("");
    let (attackers, keepers) = peers_in_all_states(&mut loaded);
    attackers.into_iter().for_each(Client::reset);
    let left = loaded.descriptors_at_rest + keepers.len();
    loaded.wait_until("the connections are closed", |server| server.descriptors() == left);
    keepers.into_iter().for_each(Client::reset);
    loaded.finish(BASELINE_BYTES + QUEUE_BYTES_MAX_FLOOR);
}

#[test]
fn half_close_is_handled_in_every_state() {
    let mut loaded = LoadedServer::start("");
    let (attackers, keepers) = peers_in_all_states(&mut loaded);
    // They keep reading and wait for messages that never arrive.
    attackers.iter().for_each(Client::half_close);
    let left = loaded.descriptors_at_rest + keepers.len();
    loaded.wait_until("the connections are closed", |server| server.descriptors() == left);
    drop((attackers, keepers));
    loaded.finish(BASELINE_BYTES + QUEUE_BYTES_MAX_FLOOR);
}

#[test]
fn half_close_with_the_last_message_is_handled() {
    let mut loaded = LoadedServer::start("");
    let mut attackers = clients_in_every_state(loaded.address());
    // Both arrive in the same readiness event.
    loaded.server.signal(Signal::SIGSTOP);
    for (client, bytes) in &mut attackers {
        client.send(bytes);
        client.half_close();
    }
    loaded.server.signal(Signal::SIGCONT);
    let at_rest = loaded.descriptors_at_rest;
    loaded.wait_until("the connections are closed", |server| server.descriptors() == at_rest);
    // The reason is the end of TCP, not a timeout.
    assert_eq!(loaded.server.metric("closings_total{reason=\"unregistered\"}"), 0.0);
    assert!(attackers.iter().all(|(client, _)| !client.has_response("408")));
    drop(attackers);
    loaded.finish(BASELINE_BYTES);
}
