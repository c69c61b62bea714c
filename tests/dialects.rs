//! The protocols of others, as far as their transcripts cannot show it: tokens, limits, time, and all of them at once.

mod common;

use std::hash::RandomState;
use std::time::Duration;

use common::dice::Dice;
use common::memory::{Memory, Recorded, Recorder, left};
use common::sockets::Net;
use common::transcript::{Heard, SECRET, Transcript, Wire};
use noroshi::ayame::Ayame;
use noroshi::config::{Config, Secret};
use noroshi::gate::Gate;
use noroshi::http::Door;
use noroshi::matchbox::Matchbox;
use noroshi::protocol::{Conn, Dialect, Input, Target};
use noroshi::query::Query;
use noroshi::token::{Claims, Secrets};
use serde_json::{Value, json};

fn both(change: impl FnOnce(&mut Config)) -> Config {
    let ayame = Some("/signaling".to_owned());
    let mut config = Config { ayame, matchbox: Some(String::new()), ..Config::default() };
    change(&mut config);
    config
}

fn heard(wire: &mut dyn Wire, who: &str) -> Value {
    match wire.next(who) {
        Some(Heard::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("{who} heard {other:?}"),
    }
}

fn register(wire: &mut dyn Wire, who: &str, more: Value) -> Value {
    wire.open_at(who, "/signaling");
    let mut message = json!({"type": "register", "roomId": "tea", "clientId": who});
    message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    wire.say(who, message.to_string().as_bytes(), false);
    heard(wire, who)
}

#[test]
fn all_protocols_are_on_one_port_and_their_rooms_do_not_meet() {
    let mut net = Box::new(Net::new(&both(|_| ())));
    net.open("ours", "tea");
    Wire::say(&mut *net, "ours", br#"{"type":"join","id":"ours"}"#, false);
    assert_eq!(heard(&mut *net, "ours")["peers"], json!([]));
    net.open_at("game", "/tea");
    assert!(heard(&mut *net, "game")["IdAssigned"].is_string());
    assert_eq!(register(&mut *net, "board", json!({}))["isExistUser"], false);
    // At the top is a room of matchbox, for who asks for a WebSocket; for all others there is the page.
    net.open_at("top", "/");
    assert!(heard(&mut *net, "top")["IdAssigned"].is_string());
    assert_eq!(net.status("/noroshi.js", false), Some(200));
    assert!(net.ask(Door::Main, "GET / HTTP/1.1\r\nHost: h\r\n\r\n").contains("<!doctype html>"));
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
        .gate()
        .each()
        .map(|(dialect, protocol)| (dialect, protocol.counts(std::time::Duration::ZERO).peers));
    let counts: Vec<_> = counts.collect();
    assert_eq!(counts, [(Dialect::Noroshi, 1), (Dialect::Ayame, 1), (Dialect::Matchbox, 2)]);
    net.finish();
}

#[test]
fn without_their_flags_they_are_not_there() {
    let mut net = Box::new(Net::new(&Config::default()));
    for (path, status) in [("/signaling", 404), ("/tea", 404), ("/.ok", 404), ("/health", 404)] {
        assert_eq!(net.status(path, true), Some(status), "{path}");
    }
    net.finish();
    let matchbox = Some("/games".to_owned());
    let mut net = Box::new(Net::new(&Config { matchbox, page: false, ..Config::default() }));
    for (who, path) in [("a", "/games"), ("b", "/games/"), ("c", "/games/tea")] {
        net.open_at(who, path);
        assert!(heard(&mut *net, who)["IdAssigned"].is_string());
    }
    assert!(heard(&mut *net, "a")["NewPeer"].is_string(), "both are the room without a name");
    for (path, status) in [("/tea", 404), ("/", 404), ("/gamesome", 404)] {
        assert_eq!(net.status(path, true), Some(status), "{path}");
    }
    net.finish();
}

#[test]
fn a_room_of_matchbox_is_full_when_a_mesh_is() {
    let mut net = Box::new(Net::new(&both(|config| config.mesh_peers_max = 2)));
    net.open_at("a", "/tea");
    net.open_at("b", "/tea");
    assert_eq!(net.status("/tea", true), Some(503));
    net.open_at("c", "/tea?next=3");
    net.open_at("d", "/tea?next=3");
    assert_eq!(net.status("/tea?next=3", true), Some(503));
    net.leave("b");
    net.open_at("e", "/tea");
    for who in ["a", "b", "c", "d", "e"] {
        while net.next(who).is_some() {}
    }
    net.finish();
}

#[test]
fn the_vanished_are_noticed_and_give_their_places_back() {
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
fn who_waits_alone_is_not_forgotten_and_who_never_registers_goes() {
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

/// A token for this room and id, which ends in the year 2096.
fn token(room: &str, id: Option<&str>) -> String {
    let (room, id) = (Some(room.into()), id.map(Box::from));
    let claims = Claims { until: Duration::from_secs(4_000_000_000), room, room_prefix: None, id };
    Secrets::parse(SECRET).unwrap().sign(&claims)
}

#[test]
fn an_ayame_client_has_its_token_in_its_key() {
    let mut net = Box::new(Net::new(&both(|config| {
        config.token_secrets = Some(Secrets::parse(SECRET).unwrap());
    })));
    for (who, more, reason) in [
        ("A", json!({}), "a token is needed here"),
        ("B", json!({"key": "x"}), "that is no token (a JWT with exp, signed with HS256, HS384 or HS512)"),
        ("C", json!({"key": token("coffee", None)}), "the token is for another room"),
        ("D", json!({"key": token("tea", Some("X"))}), "the token is for another id"),
        ("X", json!({"key": token("t*", None)}), "the token is for another room"),
        ("E", json!({"key": token("tea", None), "signalingKey": ""}), "a token is needed here"),
    ] {
        assert_eq!(register(&mut *net, who, more), json!({"type": "reject", "reason": reason}));
        assert_eq!(net.next(who), Some(Heard::Closed(1000)));
    }
    assert_eq!(register(&mut *net, "F", json!({"key": token("tea", Some("F"))}))["type"], "accept");
    let claims = Claims {
        until: Duration::from_secs(4_000_000_000),
        room_prefix: Some("t".into()),
        ..Claims::default()
    };
    let more = json!({"key": "x", "signalingKey": Secrets::parse(SECRET).unwrap().sign(&claims)});
    assert_eq!(register(&mut *net, "G", more)["isExistUser"], true);
    net.finish();
}

#[test]
fn a_matchbox_client_has_its_token_in_the_query() {
    let mut net = Box::new(Net::new(&both(|config| {
        config.token_secrets = Some(Secrets::parse(SECRET).unwrap());
    })));
    assert_eq!(net.status("/tea", true), Some(401));
    let coffee = token("coffee", None);
    assert_eq!(net.status(&format!("/tea?token={coffee}"), true), Some(403));
    net.open_at("A", &format!("/%63offee?next=2&token={coffee}"));
    assert!(heard(&mut *net, "A")["IdAssigned"].is_string());
    net.finish();
}

#[test]
fn an_ayame_client_is_told_the_servers() {
    let mut wire = Memory::new(&both(|config| {
        config.ice_servers = vec!["stun:s.example".into(), "turn:t.example".into()];
        config.turn_secret = Some(Secret("north".into()));
    }));
    wire.epoch = Duration::from_secs(1_000_000_000);
    let told = register(&mut wire, "A", json!({}));
    assert_eq!(told["iceServers"][0], json!({"urls": ["stun:s.example"]}));
    let turn = &told["iceServers"][1];
    assert_eq!(turn["urls"], json!(["turn:t.example"]));
    assert!(turn["username"].as_str().unwrap().starts_with("1000043200:"));
    assert!(turn["credential"].is_string());
    Box::new(wire).finish();
    let mut wire = Memory::new(&both(|_| ()));
    let told = register(&mut wire, "A", json!({}));
    assert_eq!(told.as_object().unwrap().len(), 4, "there is no field for no servers: {told}");
    Box::new(wire).finish();
}

#[test]
fn who_says_too_much_is_closed_and_what_finds_no_room_is_dropped() {
    let mut wire = Memory::new(&both(|config| config.rate_max = 2));
    register(&mut wire, "A", json!({}));
    register(&mut wire, "B", json!({}));
    wire.open_at("G", "/tea");
    wire.open_at("H", "/tea");
    let b = wire.conn("B");
    wire.outbox.full.insert(b);
    wire.say("A", br#"{"type":"offer"}"#, false);
    assert_eq!((wire.next("B"), wire.count("peer_busy")), (None, 1));
    wire.outbox.full.clear();
    for second in 0..7 {
        for _ in 0..30 {
            wire.say("A", br#"{"type":"offer"}"#, false);
            wire.say("G", br#""KeepAlive""#, false);
        }
        while let Some(Heard::Text(_)) = wire.next("A") {}
        while let Some(Heard::Text(text)) = wire.next("B") {
            assert!(text.contains("offer") || text.contains("bye"));
        }
        if second < 5 {
            wire.pass(1);
        }
    }
    assert!(wire.count("rate_limited") > 100);
    assert_eq!(wire.count("KeepAlive"), 20 + 5 * 2);
    assert_eq!(left(&wire.gate).0, 1, "only H is left");
    Box::new(wire).finish();
}

// ---- At random ----

/// What somebody may say, sensible or not. `ids` are those that anybody was ever told.
fn message(dice: &mut Dice, dialect: Dialect, ids: &[String]) -> String {
    let id = match ids.len() {
        0 => "00000000-0000-4000-8000-000000000000",
        n => &ids[dice.roll(n as u64) as usize],
    };
    if dialect == Dialect::Matchbox {
        return match dice.roll(8) {
            0 => r#""KeepAlive""#.to_owned(),
            1 => "{".to_owned(),
            2 => format!(r#"{{"Signal":{{"receiver":"{id}"}}}}"#),
            _ => format!(r#"{{"Signal":{{"receiver":"{id}","data":[{}]}}}}"#, dice.roll(10)),
        };
    }
    match dice.roll(20) {
        0..10 => {
            let room = *dice.pick(&["tea", "coffee"]);
            let standalone = *dice.pick(&["true", "false", "null", "false"]);
            format!(r#"{{"type":"register","roomId":"{room}","standalone":{standalone}}}"#)
        }
        10 => r#"{"type":"connected"}"#.to_owned(),
        11 => dice.pick(&["{", r#"{"type":"x"}"#, r#"{"type":"register"}"#]).to_string(),
        12..15 => r#"{"type":"pong"}"#.to_owned(),
        _ => format!(r#"{{"type":"{}"}}"#, dice.pick(&["offer", "answer", "candidate"])),
    }
}

#[test]
fn whatever_happens_they_are_consistent_and_end_empty() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut dice = Dice((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let config = both(|config| config.mesh_peers_max = 5);
        let mut gate = Gate::new(&config)
            .to(Dialect::Ayame, Ayame::new(&config, RandomState::new()))
            .to(Dialect::Matchbox, Matchbox::new(&config, RandomState::new()));
        let (mut out, mut now, mut number) = (Recorder::default(), Duration::ZERO, 0);
        let (mut ids, mut deaf) = (Vec::new(), Vec::new());
        let mut here: Vec<(Conn, Dialect)> = Vec::new();
        for step in 0..600 {
            let who = here.get(dice.roll(here.len().max(1) as u64) as usize).copied();
            let mut inputs = Vec::new();
            let (target, text);
            match (dice.roll(10), who) {
                (0..2, _) | (_, None) if step < 500 => {
                    let slot = (0..).find(|slot| here.iter().all(|(conn, _)| conn.slot() != *slot)).unwrap();
                    let dialect = if dice.roll(2) == 0 { Dialect::Ayame } else { Dialect::Matchbox };
                    let query = Query::new(["", "next=2", "next=3"][dice.roll(3) as usize]);
                    target = Target { dialect, room: dice.pick(&["", "tea"]).to_string(), query };
                    number += 1;
                    let conn = Conn::new(number, slot);
                    if gate.has_place(&target) {
                        here.push((conn, dialect));
                        inputs.push(Input::Connected(conn, &target, None));
                    }
                }
                (2, Some((conn, _))) => inputs.push(Input::Disconnected(conn)),
                (3, Some((conn, _))) => deaf.push(conn),
                (4, _) => {
                    now += Duration::from_millis(dice.roll(8000));
                    inputs.push(Input::Time);
                }
                (_, Some((conn, dialect))) => {
                    text = message(&mut dice, dialect, &ids);
                    inputs.push(Input::Alive(conn));
                    inputs.push(Input::Text(conn, &text));
                }
                (_, None) => {}
            }
            for input in inputs {
                gate.handle(now, now, input, &mut out);
                gate.each().for_each(|(_, protocol)| protocol.check());
                while let Some(effect) = out.effects.pop_front() {
                    let is_here = |conn: &Conn| here.iter().any(|(it, _)| it == conn);
                    match effect {
                        Recorded::Send(to, text) => {
                            assert!(is_here(&to), "{text} is sent to somebody who is gone");
                            let said: Value = serde_json::from_str(&text).unwrap();
                            ids.extend(said["IdAssigned"].as_str().map(str::to_owned));
                        }
                        Recorded::Ping(to) if deaf.contains(&to) => {}
                        Recorded::Ping(to) => gate.handle(now, now, Input::Alive(to), &mut out),
                        Recorded::Close(conn, _) => assert!(is_here(&conn)),
                        Recorded::Registered(conn) => assert!(is_here(&conn)),
                        Recorded::Left(conn) => {
                            assert!(is_here(&conn), "it left twice");
                            here.retain(|(it, _)| *it != conn);
                        }
                    }
                }
            }
        }
        for (conn, _) in here {
            gate.handle(now, now, Input::Disconnected(conn), &mut out);
        }
        assert_eq!(left(&gate), (0, 0, None));
    }
}
