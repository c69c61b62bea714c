//! The listing of rooms at `/rooms`.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use noroshi::http::ListenerKind;
use noroshi::limits::ROOMS_BYTES_MAX;
use noroshi::protocols::{ayame, matchbox};
use serde_json::{Value, json};
use tungstenite::Message;

use super::metrics::metrics;
use super::sockets::{net, receive_json, with};
use crate::common::sockets::Net;
use crate::common::transcript::Transport;

pub fn ask_rooms(net: &mut Net, query: &str) -> (Value, usize) {
    let answer =
        net.request(ListenerKind::Operator, &format!("GET /rooms{query} HTTP/1.1\r\nHost: h\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("Content-Type: application/json"), "{head}");
    (serde_json::from_str(body).unwrap(), body.len())
}

/// Returns the listing without values that differ from run to run, sorted.
fn rooms(net: &mut Net, query: &str) -> Vec<Value> {
    let (mut page, _) = ask_rooms(net, query);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(page["next"], Value::Null);
    let rooms = page["rooms"].as_array_mut().unwrap();
    for member in rooms.iter_mut().flat_map(|room| room["members"].as_array_mut().unwrap()) {
        let member = member.as_object_mut().unwrap();
        let address = member.remove("address").unwrap();
        assert!(address.as_str().unwrap().starts_with("127.0.0.1:"), "{address}");
        let since = member.remove("since").unwrap().as_u64().unwrap();
        assert!((now - 60..=now).contains(&since), "{since} {now}");
    }
    rooms.sort_by_key(Value::to_string);
    rooms.clone()
}

#[test]
fn rooms_lists_all_members_and_their_states() {
    let mut net = with(|config| {
        config.mount(&ayame::DESCRIPTOR.endpoint, "/signaling".to_owned());
        config.mount(&matchbox::DESCRIPTOR.endpoint, String::new());
    });
    assert_eq!(rooms(&mut net, ""), Vec::<Value>::new());
    for (peer, path) in [
        ("A", "/ws/tea"),
        ("B", "/ws/tea"),
        ("C", "/ws/tea"),
        ("D", "/ws"),
        ("E", "/signaling"),
        ("F", "/signaling"),
        ("G", "/%22tea"),
    ] {
        net.open_at(peer, path);
    }
    let mut send = |peer: &str, message: Value| net.send(peer, Message::text(message.to_string()));
    send("A", json!({"type": "connect", "id": "A"}));
    send("B", json!({"type": "connect", "id": "B"}));
    send("C", json!({"type": "join", "id": "C\"é"}));
    send("E", json!({"type": "register", "roomId": "tea", "clientId": "E"}));
    let uuid =
        |net: &mut Net, peer: &str, key: &str| receive_json(net, peer)[key].as_str().unwrap().to_owned();
    let ayame = uuid(&mut net, "E", "connectionId");
    let matchbox = uuid(&mut net, "G", "IdAssigned");
    let member =
        |connection: u64, id: Value, state: &str| json!({"connection": connection, "id": id, "state": state});
    let tea = json!({"protocol": "noroshi", "room": "tea", "members": [
        member(2, json!("A"), "offerer"),
        member(3, json!("B"), "waiting"),
        member(4, json!("C\"é"), "joined"),
    ]});
    let ayame = json!({"protocol": "ayame", "room": "tea", "members": [member(6, json!(ayame), "seated")]});
    let all = [
        json!({"protocol": "ayame", "room": "", "members": [member(7, Value::Null, "nameless")]}),
        ayame.clone(),
        json!({"protocol": "matchbox", "room": "\"tea", "members": [member(8, json!(matchbox), "joined")]}),
        json!({"protocol": "noroshi", "room": "", "members": [member(5, Value::Null, "nameless")]}),
        tea.clone(),
    ];
    let sorted = |mut rooms: Vec<Value>| {
        rooms.sort_by_key(Value::to_string);
        rooms
    };
    assert_eq!(rooms(&mut net, ""), sorted(all.to_vec()));
    assert_eq!(rooms(&mut net, "?room=tea"), sorted(vec![ayame, tea]));
    assert_eq!(rooms(&mut net, "?room=%22tea"), all[2..3]);
    assert_eq!(rooms(&mut net, "?room=nowhere"), Vec::<Value>::new());
    for request in ["POST /rooms", "GET /rooms?after=x", "GET /rooms/tea"] {
        let answer = net.request(ListenerKind::Operator, &format!("{request} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    while ["A", "B", "C", "E", "F", "G"].iter().any(|peer| net.next_received(peer).is_some()) {}
    net.finish();
}

#[test]
fn rooms_is_paged() {
    let mut net = net();
    assert!(
        net.request(ListenerKind::Main, "GET /rooms HTTP/1.1\r\nHost: h\r\n\r\n")
            .starts_with("HTTP/1.1 404 ")
    );
    // Each quotation mark takes two bytes in JSON.
    let ids: Vec<String> = (0..400).map(|i| format!("{}{i:03}", "\"".repeat(125))).collect();
    let mut sockets = Vec::new();
    for (i, id) in ids.iter().enumerate() {
        let mut socket = net.websocket(if i % 2 == 0 { "large" } else { &id[125..] });
        socket.send(Message::text(json!({"type": "leave", "id": id}).to_string())).unwrap();
        sockets.push(socket);
    }
    let peers = |net: &mut Net| metrics(net)["noroshi_peers{protocol=\"noroshi\"}"] as usize;
    while peers(&mut net) < ids.len() {}
    let mut seen = BTreeSet::new();
    let mut query = String::new();
    let mut pages = 0;
    loop {
        let (page, bytes) = ask_rooms(&mut net, &query);
        pages += 1;
        assert!(bytes < ROOMS_BYTES_MAX + 4000, "{bytes}");
        let mut names = BTreeSet::new();
        for room in page["rooms"].as_array().unwrap() {
            assert!(names.insert(room["room"].as_str().unwrap()), "each room is listed once per page");
            for member in room["members"].as_array().unwrap() {
                assert!(
                    seen.insert(member["id"].as_str().unwrap().to_owned()),
                    "every member is listed once"
                );
            }
        }
        let Some(next) = page["next"].as_str() else { break };
        query = format!("?after={next}");
    }
    assert_eq!(seen, ids.into_iter().collect());
    assert_eq!(pages, 3);
    drop(sockets);
    net.finish();
}
