//! Attacks on y-webrtc while a pair of noroshi's own protocol exchanges candidates: its topics have any number of
//! subscribers, and a connection may have many topics.

use std::time::Duration;

use crate::common::client::Client;
use crate::common::loaded_server::{BASELINE_BYTES, KIB, LoadedServer, MIB};
use crate::common::pipe::{TEXT, frame};
use crate::common::raw::{Raw, run_iteration, server, text};
use crate::common::transcript::Received;
use noroshi::config::Config;
use noroshi::limits::{
    BASE_BYTES, LARGE_QUEUE_BYTES_MAX_FLOOR, RATE_BURST_SECONDS, RATE_DELIVERIES_PER_CREDIT,
    TOPICS_PER_CONNECTION_MAX, WORK_PER_ITERATION, WORK_PER_SESSION,
};
use noroshi::protocols::ywebrtc;
use serde_json::{Value, json};

const FLAG: &str = "--y-webrtc";
const PATH: &str = "/y-webrtc";

fn subscribe(address: std::net::SocketAddr, topics: &[&str]) -> Client {
    let mut client = Client::connect(address).upgrade_at(PATH);
    client.send_json(json!({"type": "subscribe", "topics": topics}));
    client
}

fn publish(topic: &str, data_bytes: usize) -> Value {
    json!({"type": "publish", "topic": topic, "data": "x".repeat(data_bytes)})
}

fn deliveries(loaded: &LoadedServer) -> usize {
    loaded.server.metric("deliveries_total") as usize
}

/// The publisher pays for the deliveries. A burst reaches each subscriber a few times, and then the rate applies.
#[test]
fn publisher_pays_for_ten_thousand_subscribers() {
    const SUBSCRIBERS: usize = 10_000;
    let flags = format!("{FLAG} --max-connections {}", SUBSCRIBERS + 100);
    let mut loaded = LoadedServer::start_for_clients(SUBSCRIBERS + 100, &flags);
    let subscribers = loaded.connect_many(SUBSCRIBERS, |address, _| subscribe(address, &["tea"]));
    loaded.wait_for_metric("peers", 2 + SUBSCRIBERS);
    let mut publisher = Client::connect(loaded.address()).upgrade_at(PATH);
    let message = publish("tea", 100).to_string();
    let price = SUBSCRIBERS.div_ceil(RATE_DELIVERIES_PER_CREDIT);
    let rate = Config::default().rate_max as usize;
    let burst = rate * RATE_BURST_SECONDS as usize;
    let mut published = 0;
    while loaded.server.metric("closings_total{reason=\"rate_limited\"}") == 0.0 {
        for _ in 0..50 {
            published += usize::from(publisher.try_send(&frame(TEXT, message.as_bytes())).is_ok());
        }
        loaded.exchange_candidates();
        std::thread::sleep(Duration::from_millis(20));
    }
    let delivered = deliveries(&loaded) / SUBSCRIBERS;
    println!("{published} messages were published, and {delivered} of them delivered");
    assert_eq!(deliveries(&loaded), delivered * SUBSCRIBERS);
    // Messages over the rate cost nothing: each of them may be followed by one that passes, as credits come back.
    assert!((burst / price..published / 2).contains(&delivered), "{delivered} of {published}");
    assert_eq!(loaded.server.metric("errors_total{code=\"peer_busy\"}"), 0.0);
    drop((subscribers, publisher));
    loaded.finish(BASELINE_BYTES + SUBSCRIBERS * 4 * KIB);
}

/// The work of one iteration exceeds its limit by at most one message to all subscribers for each publisher's turn.
#[test]
fn messages_to_a_large_topic_are_relayed_in_bounded_iterations() {
    const SUBSCRIBERS: usize = 1500;
    const PUBLISHERS: usize = 8;
    const MESSAGES: usize = 20;
    let mut config = Config { rate_max: 0, ..Config::default() };
    config.mount(&ywebrtc::DESCRIPTOR.endpoint, PATH.to_owned());
    let (mut server, address) = server(&config);
    let open = |server: &mut noroshi::server::Server, topics: &[&str]| {
        let mut client = Raw::open(address, PATH);
        client.send(&text(&json!({"type": "subscribe", "topics": topics}).to_string()));
        for _ in 0..3 {
            run_iteration(server);
        }
        client
    };
    let mut subscribers: Vec<Raw> = (0..SUBSCRIBERS).map(|_| open(&mut server, &["tea"])).collect();
    let mut publishers: Vec<Raw> = (0..PUBLISHERS).map(|_| open(&mut server, &[])).collect();
    let mut bystander = open(&mut server, &["milk"]);
    for publisher in &mut publishers {
        publisher.send(&text(&publish("tea", 100).to_string()).repeat(MESSAGES));
    }
    let mut received = 0;
    let mut work_max = 0;
    let mut slowest = 0;
    while received < SUBSCRIBERS * PUBLISHERS * MESSAGES {
        bystander.send(&text(&publish("milk", 10).to_string()));
        let mut iterations = 0;
        while bystander.texts().is_empty() {
            run_iteration(&mut server);
            iterations += 1;
            work_max = work_max.max(server.work_of_last_iteration());
            received += subscribers.iter_mut().map(|subscriber| subscriber.texts().len()).sum::<usize>();
        }
        slowest = slowest.max(iterations);
    }
    println!("at most {work_max} units of work in one iteration, {slowest} iterations for another topic");
    assert!(work_max <= WORK_PER_ITERATION + WORK_PER_SESSION + SUBSCRIBERS, "{work_max} units of work");
    // Eight publishers of which each has one message to 1,500 subscribers in its turn, three of them in an iteration.
    assert!(slowest <= 4, "{slowest} iterations");
    drop((subscribers, publishers, bystander));
    for _ in 0..10 * SUBSCRIBERS {
        if server.sessions() == 0 {
            break;
        }
        server.advance(Duration::from_millis(10));
        run_iteration(&mut server);
    }
    assert_eq!(server.shared().budget.used(), BASE_BYTES);
}

#[test]
fn hundred_thousand_topics_are_handled() {
    const CONNECTIONS: usize = 100;
    let mut loaded = LoadedServer::start(FLAG);
    let mut clients = loaded.connect_many(CONNECTIONS, |address, number| {
        let mut client = Client::connect(address).upgrade_at(PATH);
        let topics: Vec<String> =
            (0..TOPICS_PER_CONNECTION_MAX + 10).map(|topic| format!("document {number}-{topic}")).collect();
        client.send_json(json!({"type": "subscribe", "topics": topics}));
        client
    });
    let topics = CONNECTIONS * TOPICS_PER_CONNECTION_MAX;
    loaded.wait_for_metric("rooms", 1 + topics);
    let ignored = loaded.server.metric("errors_total{code=\"too_many_topics\"}");
    assert_eq!(ignored as usize, CONNECTIONS * 10);
    for (number, client) in clients.iter_mut().enumerate() {
        client.send_json(publish(&format!("document {number}-1000"), 1));
        assert_eq!(client.receive_json()["clients"], 1);
    }
    // Half of them unsubscribe, and the others disconnect.
    for (number, client) in clients.iter_mut().enumerate().step_by(2) {
        let topics: Vec<String> =
            (0..TOPICS_PER_CONNECTION_MAX).map(|topic| format!("document {number}-{topic}")).collect();
        client.send_json(json!({"type": "unsubscribe", "topics": topics}));
    }
    loaded.wait_for_metric("rooms", 1 + topics / 2);
    let (_, peak) = loaded.server.memory();
    println!("{} bytes for each topic", (peak - BASELINE_BYTES / 2) / topics);
    drop(clients);
    loaded.finish(BASELINE_BYTES + topics * 400);
}

/// Topics count towards the memory limit.
#[test]
fn topics_are_within_the_memory_limit() {
    let mut loaded = LoadedServer::start(&format!("{FLAG} --max-memory 16M"));
    let mut clients = loaded.connect_many(100, |address, _| Client::connect(address).upgrade_at(PATH));
    for (number, client) in clients.iter_mut().enumerate() {
        let names = (0..TOPICS_PER_CONNECTION_MAX).map(|topic| format!("{}{number}-{topic}", "x".repeat(40)));
        client.send_json(json!({"type": "subscribe", "topics": names.collect::<Vec<_>>()}));
    }
    // A message that arrives in several pieces needs memory, too: its sender is closed if there is none.
    loaded.wait_until("all messages are handled", |server| {
        let handled = server.metric("messages_total{type=\"subscribe\"}");
        let closed = server.metric("closings_total{reason=\"no_memory\"}");
        handled + closed >= 100.0
    });
    assert!(loaded.server.metric("errors_total{code=\"too_many_topics\"}") > 0.0);
    drop(clients);
    loaded.finish(16 * MIB + BASELINE_BYTES);
}

/// The queues of a hundred subscribers that do not read refer to the same messages. The others miss none.
#[test]
fn stalled_subscribers_share_the_memory_of_their_queues() {
    const STALLED: usize = 100;
    let mut loaded = LoadedServer::start(&format!("{FLAG} --max-rate 0"));
    let mut stalled = loaded.connect_many(STALLED, |address, _| {
        let mut client = Client::with_buffer(address, 4 * KIB).upgrade_at(PATH);
        client.send_json(json!({"type": "subscribe", "topics": ["tea"]}));
        client.sync();
        client
    });
    let mut reader = subscribe(loaded.address(), &["tea"]);
    let mut publisher = Client::connect(loaded.address()).upgrade_at(PATH);
    let message = publish("tea", 60 * KIB).to_string();
    let count = 2 * LARGE_QUEUE_BYTES_MAX_FLOOR / (60 * KIB);
    for _ in 0..count {
        loaded.exchange_candidates();
        publisher.send_text(&message);
        let Received::Text(received) = reader.receive() else { panic!("the reader is closed") };
        assert_eq!(received.len(), message.len() + r#","clients":101"#.len());
    }
    // A queue is full as long as it rejects messages.
    loaded.wait_until("the stalled subscribers are closed", |server| {
        publisher.send_text(&message);
        assert!(matches!(reader.receive(), Received::Text(_)));
        server.metric("closings_total{reason=\"slow\"}") == STALLED as f64
    });
    assert!(loaded.server.metric("errors_total{code=\"peer_busy\"}") >= STALLED as f64);
    publisher.send_text(&message);
    assert_eq!(reader.receive_json()["clients"], 1);
    stalled.clear();
    drop((reader, publisher));
    // Without sharing, the queues would take 200 MiB.
    loaded.finish(BASELINE_BYTES + 2 * LARGE_QUEUE_BYTES_MAX_FLOOR);
}

/// The log has the number of topics, and one line for a connection that has reached their limit. Topics are logged only at
/// `debug`, quoted.
#[test]
fn topics_cannot_forge_or_flood_the_log() {
    for level in ["info", "debug"] {
        let loaded = LoadedServer::start_script(&format!(r#"exec "$0" --log {level} {FLAG}"#));
        let name = format!("x\n2026-01-01 ERROR forged {}", "\u{7f}".repeat(200));
        let mut client = subscribe(loaded.address(), &[&name, "tea"]);
        let more: Vec<String> = (0..TOPICS_PER_CONNECTION_MAX).map(|topic| topic.to_string()).collect();
        for _ in 0..10 {
            client.send_json(json!({"type": "subscribe", "topics": more}));
        }
        client.sync();
        drop(client);
        let log = loaded.finish(BASELINE_BYTES + MIB);
        if level == "info" {
            let is_end = |line: &&str| line.ends_with("; y-webrtc rooms: 1024");
            assert_eq!(log.lines().filter(is_end).count(), 1, "{log}");
            let is_limit = |line: &&str| line.ends_with(" has reached a limit: too_many_topics");
            assert_eq!(log.lines().filter(is_limit).count(), 1, "{log}");
        }
        // At `debug`, the log is longer than the pipe, and lines are dropped.
        assert_eq!(log.contains(r#" entered room "tea""#), level == "debug");
        assert_eq!(log.contains(r#" entered room "x\n2026"#), level == "debug");
        assert!(log.lines().all(|line| !line.starts_with("2026-01-01") && line.len() <= KIB));
    }
}
