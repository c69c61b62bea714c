//! The other protocols, where transcripts are not enough: tokens, limits and timeouts. `simulation.rs` tests all of
//! them with random input.

use std::time::Duration;

use crate::common::memory::{Memory, remaining_state};
use crate::common::sockets::Net;
use crate::common::transcript::{Received, SECRET, Transcript, Transport};
use noroshi::config::{Config, Secret};
use noroshi::http::ListenerKind;
use noroshi::http::token::{Claims, Secrets};
use noroshi::protocols::{ayame, matchbox};
use serde_json::{Value, json};

fn both(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.mount(&ayame::DESCRIPTOR.endpoint, "/signaling".to_owned());
    config.mount(&matchbox::DESCRIPTOR.endpoint, String::new());
    change(&mut config);
    config
}

fn receive_json(transport: &mut dyn Transport, peer: &str) -> Value {
    match transport.next_received(peer) {
        Some(Received::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("{peer} received {other:?}"),
    }
}

fn register(transport: &mut dyn Transport, peer: &str, more: Value) -> Value {
    transport.open_at(peer, "/signaling");
    let mut message = json!({"type": "register", "roomId": "tea", "clientId": peer});
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    transport.send(peer, message.to_string().as_bytes(), false);
    receive_json(transport, peer)
}

#[test]
fn protocols_share_a_port_and_have_separate_rooms() {
    let mut net = Box::new(Net::new(&both(|_| ())));
    net.open("ours", "tea");
    Transport::send(&mut *net, "ours", br#"{"type":"join","id":"ours"}"#, false);
    assert_eq!(receive_json(&mut *net, "ours")["peers"], json!([]));
    net.open_at("game", "/tea");
    assert!(receive_json(&mut *net, "game")["IdAssigned"].is_string());
    assert_eq!(register(&mut *net, "board", json!({}))["isExistUser"], false);
    // `/` is a matchbox room for WebSocket requests and the page for all others.
    net.open_at("top", "/");
    assert!(receive_json(&mut *net, "top")["IdAssigned"].is_string());
    assert_eq!(net.status("/noroshi.js", false), Some(200));
    assert!(net.request(ListenerKind::Main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").contains("<!doctype html>"));
    for (path, is_upgrade, status) in [
        ("/healthz", true, 200),
        ("/health", true, 200),
        ("/.ok", true, 200),
        ("/signaling", false, 426),
        ("/signaling/", true, 400),
        ("/ws/a,b", true, 400),
        ("/%ff", true, 400),
    ] {
        assert_eq!(net.status(path, is_upgrade), Some(status), "{path}");
    }
    let counts = net
        .server
        .dispatcher()
        .each()
        .map(|(dialect, protocol)| (dialect, protocol.counts(std::time::Duration::ZERO).peers));
    let counts: Vec<_> = counts.collect();
    assert_eq!(counts, [("noroshi", 1), ("ayame", 1), ("matchbox", 2)]);
    net.finish();
}

#[test]
fn protocols_are_disabled_without_their_flags() {
    let mut net = Box::new(Net::new(&Config::default()));
    for (path, status) in [("/signaling", 404), ("/tea", 404), ("/.ok", 404), ("/health", 404)] {
        assert_eq!(net.status(path, true), Some(status), "{path}");
    }
    net.finish();
    let mounts = vec![(&matchbox::DESCRIPTOR.endpoint, "/games".to_owned())];
    let mut net = Box::new(Net::new(&Config { mounts, page: false, ..Config::default() }));
    for (peer, path) in [("a", "/games"), ("b", "/games/"), ("c", "/games/tea")] {
        net.open_at(peer, path);
        assert!(receive_json(&mut *net, peer)["IdAssigned"].is_string());
    }
    assert!(receive_json(&mut *net, "a")["NewPeer"].is_string(), "both paths are the default room");
    for (path, status) in [("/tea", 404), ("/", 404), ("/gamesome", 404)] {
        assert_eq!(net.status(path, true), Some(status), "{path}");
    }
    net.finish();
}

#[test]
fn matchbox_room_has_the_limit_of_a_mesh() {
    let mut net = Box::new(Net::new(&both(|config| config.mesh_peers_max = 2)));
    net.open_at("a", "/tea");
    net.open_at("b", "/tea");
    assert_eq!(net.status("/tea", true), Some(503));
    net.open_at("c", "/tea?next=3");
    net.open_at("d", "/tea?next=3");
    assert_eq!(net.status("/tea?next=3", true), Some(503));
    net.close("b");
    net.open_at("e", "/tea");
    for peer in ["a", "b", "c", "d", "e"] {
        while net.next_received(peer).is_some() {}
    }
    net.finish();
}

#[test]
fn vanished_clients_free_their_slots() {
    let text = r#"
A + tea?next=3
A < {"IdAssigned":"$a"}
B + tea?next=3
B < {"IdAssigned":"$b"}
A < {"NewPeer":"$b"}
B !
A ~ 40
A <0
A > "KeepAlive"
A ~ 15
A < {"PeerLeft":"$b"}
C + tea?next=3
C < {"IdAssigned":"$c"}
A < {"NewPeer":"$c"}
D + tea?next=3
D < {"IdAssigned":"$d"}
A < {"NewPeer":"$d"}
C < {"NewPeer":"$d"}
"#;
    let transcript = Transcript::parse("matchbox/vanished".to_owned(), text);
    transcript.play(Box::new(Net::new(&transcript.config)));
}

#[test]
fn waiting_client_stays_and_unregistered_client_is_closed() {
    let text = r#"
A +
A > {"type":"register","roomId":"tea","standalone":true}
A < {"type":"accept","connectionId":"$a","isExistClient":false,"isExistUser":false}
B +
C + ?a
C > {"type":"pong"}
A ~ 29
B <0
C <0
A ~ 2
B x 1008
C x 1008
A ~ 600
A <0
D +
D > {"type":"register","roomId":"tea"}
D < {"type":"accept","connectionId":"$d","isExistClient":true,"isExistUser":true}
D > {"type":"offer"}
A < {"type":"offer"}
"#;
    let transcript = Transcript::parse("ayame/alone".to_owned(), text);
    transcript.play(Box::new(Net::new(&transcript.config)));
}

/// Returns a token for this room and id that expires in the year 2096.
fn token(room: &str, id: Option<&str>) -> String {
    let room = Some(room.into());
    let id = id.map(Box::from);
    let claims = Claims { expires_at: Duration::from_secs(4_000_000_000), room, room_prefix: None, id };
    Secrets::parse(SECRET).unwrap().sign(&claims)
}

#[test]
fn ayame_token_is_in_the_signaling_key() {
    let mut net = Box::new(Net::new(&both(|config| {
        config.token_secrets = Some(Secrets::parse(SECRET).unwrap());
    })));
    for (peer, more, reason) in [
        ("A", json!({}), "missing token"),
        (
            "B",
            json!({"key": "x"}),
            "the token is invalid: expected a JWT with exp, signed with HS256, HS384 or HS512",
        ),
        ("C", json!({"key": token("coffee", None)}), "the token is for another room"),
        ("D", json!({"key": token("tea", Some("X"))}), "the token is for another id"),
        ("X", json!({"key": token("t*", None)}), "the token is for another room"),
        ("E", json!({"key": token("tea", None), "signalingKey": ""}), "missing token"),
    ] {
        assert_eq!(register(&mut *net, peer, more), json!({"type": "reject", "reason": reason}));
        assert_eq!(net.next_received(peer), Some(Received::Closed(1000)));
    }
    assert_eq!(register(&mut *net, "F", json!({"key": token("tea", Some("F"))}))["type"], "accept");
    let claims = Claims {
        expires_at: Duration::from_secs(4_000_000_000),
        room_prefix: Some("t".into()),
        ..Claims::default()
    };
    let more = json!({"key": "x", "signalingKey": Secrets::parse(SECRET).unwrap().sign(&claims)});
    assert_eq!(register(&mut *net, "G", more)["isExistUser"], true);
    net.finish();
}

#[test]
fn matchbox_token_is_in_the_query() {
    let mut net = Box::new(Net::new(&both(|config| {
        config.token_secrets = Some(Secrets::parse(SECRET).unwrap());
    })));
    assert_eq!(net.status("/tea", true), Some(401));
    let coffee = token("coffee", None);
    assert_eq!(net.status(&format!("/tea?token={coffee}"), true), Some(403));
    net.open_at("A", &format!("/%63offee?next=2&token={coffee}"));
    assert!(receive_json(&mut *net, "A")["IdAssigned"].is_string());
    net.finish();
}

#[test]
fn ayame_client_receives_the_ice_servers() {
    let mut transport = Memory::new(&both(|config| {
        config.ice_servers = vec!["stun:s.example".into(), "turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    }));
    transport.epoch = Duration::from_secs(1_000_000_000);
    let accepted = register(&mut transport, "A", json!({}));
    assert_eq!(accepted["iceServers"][0], json!({"urls": ["stun:s.example"]}));
    let turn = &accepted["iceServers"][1];
    assert_eq!(turn["urls"], json!(["turn:t.example"]));
    assert!(turn["username"].as_str().unwrap().starts_with("1000043200:"));
    assert!(turn["credential"].is_string());
    Box::new(transport).finish();
    let mut transport = Memory::new(&both(|_| ()));
    let accepted = register(&mut transport, "A", json!({}));
    assert_eq!(accepted.as_object().unwrap().len(), 4, "there is no field for no servers: {accepted}");
    Box::new(transport).finish();
}

#[test]
fn flooding_client_is_closed_and_messages_to_a_full_queue_are_dropped() {
    let mut transport = Memory::new(&both(|config| config.rate_max = 2));
    register(&mut transport, "A", json!({}));
    register(&mut transport, "B", json!({}));
    transport.open_at("G", "/tea");
    transport.open_at("H", "/tea");
    let b = transport.conn("B");
    transport.outbox.full.insert(b);
    transport.send("A", br#"{"type":"offer"}"#, false);
    assert_eq!((transport.next_received("B"), transport.count("peer_busy")), (None, 1));
    transport.outbox.full.clear();
    for second in 0..7 {
        for _ in 0..30 {
            transport.send("A", br#"{"type":"offer"}"#, false);
            transport.send("G", br#""KeepAlive""#, false);
        }
        while let Some(Received::Text(_)) = transport.next_received("A") {}
        while let Some(Received::Text(text)) = transport.next_received("B") {
            assert!(text.contains("offer") || text.contains("bye"));
        }
        if second < 5 {
            transport.advance(1);
        }
    }
    assert!(transport.count("rate_limited") > 100);
    assert_eq!(transport.count("KeepAlive"), 20 + 5 * 2);
    assert_eq!(remaining_state(&transport.dispatcher).0, 1, "only H is left");
    Box::new(transport).finish();
}
