//! Attacks on GStreamer's protocol while a pair of noroshi's own protocol exchanges candidates: one message can cause messages to all
//! listeners of a room, a list of all producers, or an encoder in a camera.

use std::time::{Duration, Instant};

use crate::common::client::Client;
use crate::common::loaded_server::{BASELINE_BYTES, KIB, LoadedServer, MIB};
use crate::common::pipe::{TEXT, frame};
use crate::common::process::Running;
use crate::common::raw::{LOOPBACK, Raw, run_iteration, server, text, upgrade};
use nix::sys::signal::Signal;
use noroshi::config::Config;
use noroshi::limits::{
    BASE_BYTES, GSTREAMER_META_BYTES_MAX, GSTREAMER_ROOM_META_BYTES_MAX, GSTREAMER_SESSIONS_PER_PAIR_MAX,
    QUEUE_BURST_BYTES_FLOOR, QUEUE_BYTES_MAX_FLOOR, QUEUE_BYTES_RESERVE, RATE_BLOCK_BYTES,
    RATE_BURST_SECONDS, RATE_DELIVERIES_PER_CREDIT, WORK_PER_ITERATION, WORK_PER_SESSION,
};
use noroshi::protocols::gstreamer;
use serde_json::{Value, json};

const FLAG: &str = "--gstreamer=/gst";
const PATH: &str = "/gst";

/// Connects a client, and returns it with its id.
fn connect(address: std::net::SocketAddr, path: &str) -> (Client, String) {
    let mut client = Client::connect(address).upgrade_at(path);
    let id = client.receive_json()["peerId"].as_str().unwrap().to_owned();
    (client, id)
}

fn status(roles: &[&str], meta_bytes: usize) -> Value {
    json!({"type": "setPeerStatus", "roles": roles, "meta": "x".repeat(meta_bytes)})
}

fn connect_producer(address: std::net::SocketAddr, path: &str) -> (Client, String) {
    let (mut client, id) = connect(address, path);
    client.send_json(status(&["producer"], 10));
    assert_eq!(client.sync(), [] as [Value; 0]);
    (client, id)
}

/// Reads until the server ends the connection. Returns the received texts, and the code of a Close frame if there was one.
fn read_to_end(client: &mut Raw) -> (Vec<String>, Option<u16>) {
    let began = Instant::now();
    let mut texts = Vec::new();
    while client.is_connected() {
        texts.extend(client.texts());
        assert!(began.elapsed() < Duration::from_secs(600), "the connection does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    (texts, client.close_code)
}

/// The sender of a status pays for all deliveries, and is then ended without a Close frame.
#[test]
fn status_to_many_listeners_is_paid_by_its_sender() {
    const LISTENERS: usize = 300;
    let mut loaded = LoadedServer::start(FLAG);
    let mut listeners = loaded.connect_many(LISTENERS, |address, _| {
        let (mut client, _) = connect(address, PATH);
        client.send_json(status(&["listener"], 0));
        client
    });
    for listener in &mut listeners {
        listener.sync();
    }
    let mut sender = Raw::open(loaded.address(), PATH);
    let message = text(&status(&["producer"], 100).to_string());
    let price = 1 + LISTENERS.div_ceil(RATE_DELIVERIES_PER_CREDIT);
    let rate = Config::default().rate_max as usize;
    let began = Instant::now();
    let mut sent = 0;
    while loaded.server.metric("closings_total{reason=\"rate_limited\"}") == 0.0 {
        for _ in 0..50 {
            sender.send(&message);
            sent += 1;
        }
        loaded.exchange_candidates();
        std::thread::sleep(Duration::from_millis(20));
    }
    let seconds = began.elapsed().as_secs() as usize + 1;
    let (_, close_code) = read_to_end(&mut sender);
    assert_eq!(close_code, None);
    // The last message tells that the sender has gone. A pong would overtake messages that are queued.
    let mut delivered = 0;
    loop {
        let roles = &listeners[0].receive_json()["roles"];
        if *roles == json!([]) {
            break;
        }
        delivered += usize::from(*roles == json!(["producer"]));
    }
    println!("{sent} changes were sent, and {delivered} of them delivered to {LISTENERS} listeners");
    let burst = rate * RATE_BURST_SECONDS as usize;
    assert!((burst / price..=(burst + rate * seconds) / price + 1).contains(&delivered), "{delivered}");
    drop(listeners);
    loaded.finish(BASELINE_BYTES + LISTENERS * 32 * KIB);
}

/// The work of one iteration exceeds its limit by at most one message to all listeners for each sender's turn.
#[test]
fn status_changes_are_delivered_in_bounded_iterations() {
    const LISTENERS: usize = 500;
    const SENDERS: usize = 8;
    const MESSAGES: usize = 20;
    let mut config = Config { rate_max: 0, ..Config::default() };
    config.mount(&gstreamer::DESCRIPTOR.endpoint, PATH.to_owned());
    let (mut server, address) = server(&config);
    let open = |server: &mut noroshi::server::Server, path: &str| {
        let mut client = Raw::open(address, path);
        while client.texts().is_empty() {
            run_iteration(server);
        }
        client
    };
    let mut listeners: Vec<Raw> = (0..LISTENERS).map(|_| open(&mut server, PATH)).collect();
    let is_change = |text: &String| text.contains("producer");
    for index in 0..LISTENERS {
        listeners[index].send(&text(&status(&["listener"], 0).to_string()));
        run_iteration(&mut server);
        for listener in &mut listeners {
            listener.texts();
        }
    }
    let mut senders: Vec<Raw> = (0..SENDERS).map(|_| open(&mut server, PATH)).collect();
    let mut bystander = open(&mut server, "/gst/other");
    for sender in &mut senders {
        sender.send(&text(&status(&["producer"], 100).to_string()).repeat(MESSAGES));
    }
    let mut received = 0;
    let mut work_max = 0;
    let mut slowest = 0;
    while received < LISTENERS * SENDERS * MESSAGES {
        bystander.send(&text(r#"{"type":"list"}"#));
        let mut iterations = 0;
        while bystander.texts().is_empty() {
            run_iteration(&mut server);
            iterations += 1;
            work_max = work_max.max(server.work_of_last_iteration());
            for listener in &mut listeners {
                received += listener.texts().iter().filter(|text| is_change(text)).count();
            }
        }
        slowest = slowest.max(iterations);
    }
    println!("at most {work_max} units of work in one iteration, {slowest} iterations for another room");
    assert!(work_max <= WORK_PER_ITERATION + WORK_PER_SESSION + LISTENERS, "{work_max} units of work");
    assert!(slowest <= 4, "{slowest} iterations");
    drop((listeners, senders, bystander));
    for _ in 0..10 * LISTENERS {
        if server.sessions() == 0 {
            break;
        }
        server.advance(Duration::from_millis(10));
        run_iteration(&mut server);
    }
    assert_eq!(server.shared().budget.used(), BASE_BYTES);
}

/// Descriptions count towards the memory limit, and those of a room have a limit of their own.
#[test]
fn descriptions_are_within_the_limits_of_memory() {
    const ROOMS: usize = 100;
    const PEERS: usize = 10;
    let mut loaded = LoadedServer::start(&format!("{FLAG} --max-memory 16M"));
    let message = text(&status(&["producer"], GSTREAMER_META_BYTES_MAX - 2).to_string());
    let mut clients = loaded.connect_many(ROOMS * PEERS, |address, number| {
        Raw::open(address, &format!("/gst/{}", number / PEERS))
    });
    loaded.wait_for_metric("peers", 2 + ROOMS * PEERS);
    for client in &mut clients {
        client.send(&message);
    }
    // One whose message does not fit into the memory is ended, or gets an error.
    let read = |server: &Running| {
        let ended = server.metric("closings_total{reason=\"no_memory\"}") as usize;
        let refused = server.metric("errors_total{code=\"too_many\"}") as usize;
        let handled = server.metric("messages_total{type=\"setPeerStatus\"}") as usize;
        (ended, refused, handled)
    };
    loaded.wait_until("all messages are handled", |server| {
        let (ended, _, handled) = read(server);
        ended + handled >= ROOMS * PEERS
    });
    let (ended, refused, handled) = read(&loaded.server);
    let stored = handled - refused;
    println!("{stored} descriptions are stored, {refused} refused, {ended} connections ended");
    assert!(refused > 0 && ended > 0);
    assert!(stored * GSTREAMER_META_BYTES_MAX <= 16 * MIB && stored * GSTREAMER_META_BYTES_MAX > 2 * MIB);
    drop(clients);
    loaded.finish(16 * MIB + BASELINE_BYTES);
}

/// A message of 15 bytes is answered with 128 KiB. The sender pays for them, and if it does not read, it is ended and nobody waits.
#[test]
fn lists_are_paid_by_the_one_that_asks() {
    const STALLED: usize = 50;
    let mut loaded = LoadedServer::start(FLAG);
    let mut producers =
        loaded.connect_many(GSTREAMER_ROOM_META_BYTES_MAX / GSTREAMER_META_BYTES_MAX, |address, _| {
            let (mut client, _) = connect(address, PATH);
            client.send_json(status(&["producer"], GSTREAMER_META_BYTES_MAX - 2));
            assert_eq!(client.sync(), [] as [Value; 0]);
            client
        });
    let list = r#"{"type":"list"}"#;
    // Those that do not read.
    let stalled = loaded.connect_many(STALLED, |address, _| {
        let mut client = Raw::connect(address, LOOPBACK, Some(4 * KIB));
        client.send(&[upgrade(PATH), text(list).repeat(40)].concat());
        client
    });
    loaded.wait_until("those that do not read are ended", |server| {
        server.metric("closings_total{reason=\"slow\"}") == STALLED as f64
    });
    // One that reads.
    let rate = Config::default().rate_max as usize;
    let began = Instant::now();
    let mut reader = Raw::open(loaded.address(), PATH);
    let mut asked = 0;
    while loaded.server.metric("closings_total{reason=\"rate_limited\"}") == 0.0 {
        assert!(reader.is_connected(), "it is ended for its rate");
        reader.send(&text(list));
        asked += 1;
        // The pair is within its rate.
        std::thread::sleep(Duration::from_millis(10));
        loaded.exchange_candidates();
        reader.texts();
    }
    let seconds = began.elapsed().as_secs() as usize + 1;
    let (_, close_code) = read_to_end(&mut reader);
    assert_eq!(close_code, None);
    let credits = rate * (RATE_BURST_SECONDS as usize + seconds);
    println!("{asked} lists were asked for; {} KiB were sent in {seconds} s", reader.bytes_read / KIB);
    assert!(reader.bytes_read <= credits * RATE_BLOCK_BYTES, "{} bytes", reader.bytes_read);
    // The producers are not disturbed.
    for producer in &mut producers {
        assert_eq!(producer.sync(), [] as [Value; 0]);
    }
    drop((producers, stalled, reader));
    let queue = QUEUE_BYTES_MAX_FLOOR + QUEUE_BYTES_RESERVE + QUEUE_BURST_BYTES_FLOOR;
    loaded.finish(BASELINE_BYTES + 2 * STALLED * (queue + GSTREAMER_ROOM_META_BYTES_MAX) + MIB);
}

/// One that does not read stops neither the camera nor other viewers.
#[test]
fn one_that_does_not_read_stops_nobody() {
    let mut loaded = LoadedServer::start(&format!("{FLAG} --max-rate 0"));
    let (mut camera, camera_id) = connect_producer(loaded.address(), PATH);
    let mut stalled = Raw::connect(loaded.address(), LOOPBACK, Some(4 * KIB));
    let listen = text(&status(&["listener"], 0).to_string());
    let start = json!({"type": "startSession", "peerId": camera_id}).to_string();
    stalled.send(&[upgrade(PATH), listen, text(&start)].concat());
    let started = camera.receive_json();
    let session = started["sessionId"].as_str().unwrap().to_owned();
    let offer =
        json!({"type": "peer", "sessionId": session, "sdp": {"type": "offer", "sdp": "x".repeat(60_000)}});
    // The offers fill its queue until one does not fit, which ends the session.
    let mut offers = 0;
    let ended = loop {
        camera.send_json(offer.clone());
        offers += 1;
        loaded.exchange_candidates();
        if let Some(message) = camera.sync().pop() {
            break message;
        }
        assert!(offers < 200, "the queue is never full");
    };
    assert_eq!(ended, json!({"type": "endSession", "sessionId": session}));
    // Newcomers are welcomed, and see and play the camera.
    for _ in 0..20 {
        let (mut viewer, _) = connect(loaded.address(), PATH);
        viewer.send_json(json!({"type": "list"}));
        assert_eq!(viewer.receive_json()["producers"][0]["id"], json!(camera_id));
        viewer.send_text(&start);
        let session = viewer.receive_json()["sessionId"].clone();
        assert_eq!(camera.receive_json()["sessionId"], session);
        drop(viewer);
        assert_eq!(camera.receive_json(), json!({"type": "endSession", "sessionId": session}));
    }
    drop((camera, stalled));
    loaded.finish(BASELINE_BYTES + 4 * MIB);
}

/// Each session costs a camera an encoder. A viewer gets eight, and all of them end with the camera.
#[test]
fn many_sessions_are_limited_and_end_with_the_camera() {
    const VIEWERS: usize = 100;
    let mut loaded = LoadedServer::start(FLAG);
    let (mut camera, camera_id) = connect_producer(loaded.address(), PATH);
    let start = json!({"type": "startSession", "peerId": camera_id}).to_string();
    let mut viewers = loaded.connect_many(VIEWERS, |address, _| {
        let (mut viewer, _) = connect(address, PATH);
        for _ in 0..100 {
            viewer.send_text(&start);
        }
        let answers = viewer.sync();
        let count = |kind: &str| answers.iter().filter(|answer| answer["type"] == kind).count();
        let max = GSTREAMER_SESSIONS_PER_PAIR_MAX;
        assert_eq!((count("sessionStarted"), count("error")), (max, 100 - max));
        viewer
    });
    for _ in 0..VIEWERS * GSTREAMER_SESSIONS_PER_PAIR_MAX {
        assert_eq!(camera.receive_json()["type"], "startSession");
    }
    assert_eq!(loaded.server.metric("sessions") as usize, VIEWERS * GSTREAMER_SESSIONS_PER_PAIR_MAX);
    drop(camera);
    loaded.wait_for_metric("sessions", 0);
    for viewer in &mut viewers {
        assert_eq!(viewer.sync().len(), GSTREAMER_SESSIONS_PER_PAIR_MAX, "each session ends once");
    }
    drop(viewers);
    loaded.finish(BASELINE_BYTES + MIB);
}

/// Sessions that start and end again leave nothing.
#[test]
fn memory_does_not_grow_over_twenty_thousand_sessions() {
    let mut loaded = LoadedServer::start(&format!("{FLAG} --max-rate 0"));
    let (mut camera, camera_id) = connect_producer(loaded.address(), PATH);
    let (mut viewer, _) = connect(loaded.address(), PATH);
    let start = json!({"type": "startSession", "peerId": camera_id}).to_string();
    let mut after_first = 0;
    for round in 0..40 {
        for _ in 0..500 {
            viewer.send_text(&start);
            let session = viewer.receive_json()["sessionId"].clone();
            viewer.send_json(json!({"type": "endSession", "sessionId": session}));
        }
        for _ in 0..500 {
            assert_eq!(camera.receive_json()["type"], "startSession");
            assert_eq!(camera.receive_json()["type"], "endSession");
        }
        loaded.exchange_candidates();
        let (now, _) = loaded.server.memory();
        if round == 7 {
            after_first = now;
        }
        if round == 39 {
            println!("{} KiB after 4,000 sessions, {} KiB after 20,000", after_first / KIB, now / KIB);
            assert!(now <= after_first + MIB);
        }
    }
    drop((camera, viewer));
    loaded.finish(BASELINE_BYTES + MIB);
}

/// A viewer can send nothing to a camera but what it can parse.
#[test]
fn rubbish_reaches_no_camera() {
    let mut loaded = LoadedServer::start(&format!("{FLAG} --max-rate 0"));
    let (mut camera, camera_id) = connect_producer(loaded.address(), PATH);
    let (mut viewer, _) = connect(loaded.address(), PATH);
    viewer.send_json(json!({"type": "startSession", "peerId": camera_id}));
    let session = viewer.receive_json()["sessionId"].as_str().unwrap().to_owned();
    assert_eq!(camera.receive_json()["type"], "startSession");
    let deep = "[".repeat(30_000);
    let contents = [
        r#""sdp":"""#.to_owned(),
        r#""sdp":{"type":"answer","sdp":""}"#.to_owned(),
        r#""sdp":{"type":"answer","sdp":"\ud800"}"#.to_owned(),
        r#""sdp":{"type":"answer","sdp":7}"#.to_owned(),
        r#""sdp":{"type":"answer"}"#.to_owned(),
        r#""ice":{"candidate":"c","sdpMLineIndex":-1}"#.to_owned(),
        r#""ice":{"candidate":"c","sdpMLineIndex":1e99}"#.to_owned(),
        r#""ice":{"candidate":["c"],"sdpMLineIndex":0}"#.to_owned(),
        format!(r#""sdp":{deep}"#),
    ];
    for content in &contents {
        viewer.send_text(&format!(r#"{{"type":"peer","sessionId":"{session}",{content}}}"#));
    }
    for text in ["", "{", "null", r#"{"type":"newPeer"}"#, r#"{"type":"error","details":"x"}"#] {
        viewer.send_text(text);
    }
    viewer.send(&frame(0x82, b"\xff\xfe"));
    viewer.send(&frame(TEXT, br#"{"type":"list","x":1e999}"#));
    assert_eq!(viewer.sync().len(), 1, "the list");
    assert_eq!(camera.sync(), [] as [Value; 0]);
    assert_eq!(loaded.server.metric("errors_total{code=\"not_understood\"}") as usize, contents.len() + 6);
    loaded.exchange_candidates();
    drop((camera, viewer));
    loaded.finish(BASELINE_BYTES + MIB);
}

/// A process that stops sends no Close frame to a thousand clients, half of which do not read.
#[test]
fn sigterm_ends_all_connections_without_a_close_frame() {
    const CLIENTS: usize = 1000;
    let mut loaded = LoadedServer::start_for_clients(CLIENTS + 100, FLAG);
    let mut clients =
        loaded.connect_many(CLIENTS, |address, number| Raw::open(address, &format!("/gst/{number}")));
    loaded.wait_for_metric("peers", 2 + CLIENTS);
    let began = Instant::now();
    loaded.server.signal(Signal::SIGTERM);
    for client in clients.iter_mut().step_by(2) {
        let (texts, close_code) = read_to_end(client);
        assert_eq!((texts.len(), close_code), (1, None));
    }
    assert_eq!(loaded.server.code(), Some(0));
    let seconds = began.elapsed().as_secs_f64();
    println!("the server stopped after {seconds:.1} s");
    for client in clients.iter_mut().skip(1).step_by(2) {
        let (texts, close_code) = read_to_end(client);
        assert_eq!((texts.len(), close_code), (1, None));
    }
}

/// The description of a peer is not in the log, and its id cannot forge a line.
#[test]
fn peers_cannot_forge_the_log() {
    for level in ["info", "debug"] {
        let loaded = LoadedServer::start_script(&format!(r#"exec "$0" --log {level} {FLAG}"#));
        let (mut client, id) = connect(loaded.address(), "/gst/x%0a2026-01-01%20ERROR%20forged");
        client.send_json(
            json!({"type": "setPeerStatus", "roles": ["producer"], "meta": {"name": "secret\nname"}}),
        );
        client.send_json(json!({"type": "startSession", "peerId": "x", "offer": "secret v=0"}));
        client.sync();
        drop(client);
        let log = loaded.finish(BASELINE_BYTES + MIB);
        assert!(!log.contains("secret"), "{log}");
        let end = format!(r#"; gstreamer room "x\n2026-01-01 ERROR forged", id "{id}""#);
        assert_eq!(log.lines().filter(|line| line.ends_with(&end)).count(), 1, "{log}");
        assert!(log.lines().all(|line| !line.starts_with("2026-01-01")));
    }
}
