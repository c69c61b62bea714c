//! Attacks on PeerJS's protocol while a pair of noroshi's own protocol exchanges candidates.

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::client::Client;
use crate::common::loaded_server::{BASELINE_BYTES, KIB, LoadedServer, MIB};
use crate::common::pipe::{TEXT, frame};
use crate::common::transcript::Received;
use noroshi::limits::{HELD_BYTES_MAX_FLOOR, HELD_PAIRS_MAX, HELD_PER_RECEIVER_MAX, QUEUE_BYTES_MAX_FLOOR};
use serde_json::{Value, json};

fn connect(address: SocketAddr, id: &str, token: &str) -> Client {
    Client::connect(address).upgrade_at(&format!("/peerjs?key=peerjs&id={id}&token={token}"))
}

/// Connects a client and waits until its id is registered.
fn open(address: SocketAddr, id: &str) -> Client {
    let mut client = connect(address, id, "t");
    assert_eq!(client.receive_json(), json!({"type": "OPEN"}));
    client
}

fn offer(to: &str, payload: &str) -> Value {
    json!({"type": "OFFER", "payload": payload, "dst": to})
}

fn expire(absent: &str, sender: &str) -> Value {
    json!({"type": "EXPIRE", "src": absent, "dst": sender})
}

/// Each of them is told once. A receiver that comes in time gets all messages in one iteration of the loop.
#[test]
fn thousand_clients_wait_for_an_absent_peer() {
    let mut loaded = LoadedServer::start_for_clients(3000, "--peerjs");
    let mut waiting = loaded.connect_many(1000, |address, i| {
        let mut client = open(address, &i.to_string());
        client.send_json(offer("never", "x"));
        client.send_json(json!({"type": "CANDIDATE", "payload": 1, "dst": "never"}));
        client
    });
    for (i, client) in waiting.iter_mut().enumerate() {
        assert_eq!(client.receive_json(), expire("never", &i.to_string()));
    }
    loaded.exchange_candidates();
    for client in &mut waiting {
        client.send_json(offer("late", "x"));
    }
    assert!(waiting.len() <= HELD_PER_RECEIVER_MAX);
    loaded.wait_for_metric("messages_total{type=\"OFFER\"}", 2000);
    let mut late = open(loaded.address(), "late");
    let mut senders: Vec<u32> = Vec::new();
    for _ in 0..1000 {
        let message = late.receive_json();
        assert_eq!(message["type"], "OFFER");
        senders.push(message["src"].as_str().unwrap().parse().unwrap());
    }
    senders.sort_unstable();
    assert!(senders.into_iter().eq(0..1000));
    for client in &mut waiting {
        assert_eq!(client.sync(), [Value::Null; 0]);
    }
    drop((waiting, late));
    loaded.finish(BASELINE_BYTES + 12 * MIB);
}

/// Clients hold as much as they may, and leave. Nothing stays.
#[test]
fn held_messages_are_limited_and_released() {
    let mut loaded = LoadedServer::start("--peerjs --max-rate 0");
    let payload = "x".repeat(60 * KIB);
    const CLIENTS: usize = 20;
    for round in 0..2 {
        let mut clients = loaded.connect_many(CLIENTS, |address, i| open(address, &format!("{round}-{i}")));
        for client in &mut clients {
            for number in 0..8 {
                client.send_json(offer(&format!("absent{number}"), &payload));
            }
        }
        let offers = (round + 1) * CLIENTS * 8;
        loaded.wait_for_metric("messages_total{type=\"OFFER\"}", offers);
        // Four of eight fit. The others are told nevertheless, or leave before that.
        for client in &mut clients[CLIENTS / 2..] {
            for _ in 0..8 {
                assert_eq!(client.receive_json()["type"], "EXPIRE");
            }
        }
        drop(clients);
        loaded.wait_for_metric("connections", 2);
    }
    assert_eq!(loaded.server.metric("errors_total{code=\"hold_full\"}") as usize, 2 * CLIENTS * 4);
    loaded.finish(BASELINE_BYTES + CLIENTS * (HELD_BYTES_MAX_FLOOR + 2 * 64 * KIB) + 4 * MIB);
}

#[test]
fn memory_budget_applies_to_held_messages() {
    let mut loaded = LoadedServer::start("--peerjs --max-rate 0 --max-memory 8M");
    // So small that a message is handled without a buffer, which would be counted too.
    let payload = "x".repeat(3 * KIB);
    let mut clients = loaded.connect_many(100, |address, i| open(address, &i.to_string()));
    for round in 0..20 {
        loaded.exchange_candidates();
        for client in &mut clients {
            // The connection may already be closed.
            let text = offer(&format!("absent{round}"), &payload).to_string();
            let _ = client.try_send(&frame(TEXT, text.as_bytes()));
        }
    }
    loaded.run_for(Duration::from_secs(1));
    assert!(loaded.server.metric("errors_total{code=\"hold_full\"}") > 0.0);
    drop(clients);
    loaded.finish(8 * MIB + BASELINE_BYTES);
}

/// Each EXPIRE was caused by a message that its receiver has paid for, and goes to nobody else.
#[test]
fn expire_storm_is_paid_by_its_sender() {
    let mut loaded = LoadedServer::start("--peerjs --max-rate 20");
    let mut victim = open(loaded.address(), "victim");
    let mut attacker = open(loaded.address(), "attacker");
    let mut sent = 0;
    loaded.wait_until("the attacker is closed", |server| {
        for _ in 0..100 {
            let text = offer(&format!("absent{sent}"), "").to_string();
            // The connection may already be closed.
            let _ = attacker.try_send(&frame(TEXT, text.as_bytes()));
            sent += 1;
        }
        server.metric("closings_total{reason=\"rate_limited\"}") == 1.0
    });
    let handled = loaded.server.metric("messages_total{type=\"OFFER\"}");
    // The burst of ten seconds, and what the rate adds until the connection is closed.
    assert!((200.0..=20.0 * 40.0).contains(&handled), "{handled} of {sent} messages were handled");
    assert!(sent > HELD_PAIRS_MAX && f64::from(sent as u32) > handled);
    assert_eq!(victim.sync(), [Value::Null; 0]);
    drop((victim, attacker));
    loaded.finish(BASELINE_BYTES + 4 * MIB);
}

#[test]
fn stalled_receiver_is_closed_and_its_callers_are_told() {
    let mut loaded = LoadedServer::start("--peerjs --max-rate 0");
    let mut stalled =
        Client::with_buffer(loaded.address(), 4 * KIB).upgrade_at("/peerjs?key=peerjs&id=stalled&token=t");
    assert_eq!(stalled.receive_json(), json!({"type": "OPEN"}));
    let mut caller = open(loaded.address(), "caller");
    let payload = "x".repeat(60 * KIB);
    for _ in 0..12 {
        loaded.exchange_candidates();
        caller.send_json(offer("stalled", &payload));
    }
    // The queue is full: the caller is told at once.
    assert_eq!(caller.receive_json(), expire("stalled", "caller"));
    // The kernel may still accept bytes, after which the queue has space again. So the caller repeats its offer.
    loaded.wait_until("the stalled client is closed", |server| {
        caller.send_json(offer("stalled", &payload));
        server.metric("closings_total{reason=\"slow\"}") == 1.0
    });
    // The id is free again. Offers since the departure were held.
    let mut next = open(loaded.address(), "stalled");
    caller.send_json(offer("stalled", "hello"));
    while next.receive_json()["payload"] != "hello" {}
    drop((stalled, caller, next));
    loaded.finish(BASELINE_BYTES + 2 * (QUEUE_BYTES_MAX_FLOOR + 64 * KIB) + 2 * MIB);
}

/// A hundred connections claim the id of a client that does not answer.
#[test]
fn claimants_cause_one_ping_and_the_first_gets_the_id() {
    let mut loaded = LoadedServer::start("--peerjs");
    let mut holder = open(loaded.address(), "holder");
    let mut claimants = loaded.connect_many(100, |address, i| connect(address, "holder", &format!("t{i}")));
    holder.receive_ping();
    // The pong is only sent when the client reads again, which it does not.
    let (first, others) = claimants.split_first_mut().unwrap();
    let id_taken = json!({"type": "ID-TAKEN", "payload": {"msg": "ID is taken"}});
    for claimant in others {
        assert_eq!(claimant.receive_json(), id_taken);
        assert_eq!(claimant.receive_close(), 1000);
    }
    let outcome = first.receive_json();
    assert!(outcome == json!({"type": "OPEN"}) || outcome == id_taken, "{outcome}");
    drop((holder, claimants));
    loaded.finish(BASELINE_BYTES + 4 * MIB);
}

#[test]
fn invalid_messages_and_deep_payloads_are_handled() {
    let mut loaded = LoadedServer::start("--peerjs");
    let mut peer = open(loaded.address(), "peer");
    let mut other = open(loaded.address(), "other");
    for text in ["", "{", "null", "[]", "17", "{\"type\":7}", "{\"type\":\"OFFER\",\"dst\":\"\\ud800\"}"] {
        loaded.exchange_candidates();
        peer.send_text(text);
        peer.send(&frame(0x82, text.as_bytes()));
        assert_eq!(peer.sync(), [Value::Null; 0], "{text}");
    }
    peer.send_text(&"[".repeat(10_000));
    let deep = format!("{}0{}", "[".repeat(20_000), "]".repeat(20_000));
    peer.send_text(&format!(r#"{{"type":"OFFER","dst":"other","payload":{deep}}}"#));
    let received = other.receive();
    assert_eq!(
        received,
        Received::Text(format!(r#"{{"type":"OFFER","src":"peer","dst":"other","payload":{deep}}}"#))
    );
    drop((peer, other));
    loaded.finish(BASELINE_BYTES + 2 * MIB);
}

/// Keys and ids cannot forge a log line. Tokens and payloads are not logged.
#[test]
fn log_has_quoted_ids_and_no_secrets() {
    let loaded = LoadedServer::start_script(r#"exec "$0" --log trace --peerjs"#);
    let id = "x%0a2026-01-01%20ERROR%20forged";
    let path = format!("/peerjs?key=k%0a2&id={id}&token=a-secret-token");
    let mut client = Client::connect(loaded.address()).upgrade_at(&path);
    assert_eq!(client.receive_json(), json!({"type": "OPEN"}));
    client.send_json(offer("absent", "a secret payload"));
    let mut refused =
        Client::connect(loaded.address()).upgrade_at("/peerjs?key=k&token=another-secret-token");
    assert_eq!(refused.receive_json()["type"], "ERROR");
    assert_eq!(refused.receive_close(), 1000);
    drop((client, refused));
    let log = loaded.finish(BASELINE_BYTES);
    let line = log.lines().find(|line| line.contains("; peerjs room")).unwrap();
    assert!(log.contains(r#"; peerjs room "k\n2", id "x\n2026-01-01 ERROR forged""#), "{line}");
    assert!(log.contains(r#"finished; peerjs room "k", no id"#), "{log}");
    assert!(!log.contains("secret"), "{log}");
    assert!(log.lines().all(|line| !line.starts_with("2026-01-01")), "{log}");
}
