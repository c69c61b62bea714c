//! Graceful shutdown: existing rooms are served for a while and then closed one after another.

use std::time::Duration;

use noroshi::http::ListenerKind;
use tungstenite::Message;

use super::sockets::with;
use crate::common::transcript::{Received, Transport};

const DRAIN: Duration = Duration::from_secs(60);

#[test]
fn drain_serves_existing_rooms_and_closes_them_one_by_one() {
    let mut net = with(|config| config.drain = DRAIN);
    let rooms: Vec<String> = (0..30).map(|i| format!("room-{i}")).collect();
    for room in &rooms {
        for peer in ["a", "b"] {
            let name = format!("{room}{peer}");
            Transport::open(&mut *net, &name, room);
            net.send(&name, Message::text(format!(r#"{{"type":"leave","id":"{peer}"}}"#)));
        }
    }
    assert_eq!(net.status("/healthz", false), Some(200));
    net.server.drain();
    assert_eq!(net.status("/healthz", false), Some(503));
    assert!(
        net.request(ListenerKind::Main, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").ends_with("draining")
    );
    assert_eq!(net.status("/ws/new", true), Some(503));
    assert_eq!(net.status("/ws", true), Some(503), "the default room is one too");
    // A peer that joins an existing room late is accepted.
    Transport::open(&mut *net, "late", &rooms[0]);
    net.send("late", Message::text(r#"{"type":"join","id":"late"}"#));
    assert!(matches!(net.next_received("late"), Some(Received::Text(text)) if text.contains("joined")));
    // On a slow machine real time passes, too.
    net.advance(DRAIN.as_secs() / 2 - 10);
    for room in &rooms {
        assert_eq!(["a", "b"].map(|peer| net.next_received(&format!("{room}{peer}"))), [None, None]);
    }
    let mut notices = Vec::new();
    while !net.server.is_stopped() {
        net.advance(1);
        let mut count = 0;
        for room in &rooms {
            let received = ["a", "b"].map(|peer| net.next_received(&format!("{room}{peer}")));
            assert_eq!(received[0], received[1], "a room goes as a whole");
            count += usize::from(received[0] == Some(Received::Closed(1001)));
        }
        notices.push(count);
    }
    assert_eq!(notices.iter().sum::<usize>(), rooms.len());
    assert!(notices.len() >= 25, "{notices:?}");
    assert!(notices.iter().all(|count| *count <= 5), "not all at once: {notices:?}");
}

#[test]
fn drain_ends_with_the_last_connection() {
    let mut net = with(|config| config.drain = DRAIN);
    Transport::open(&mut *net, "a", "tea");
    net.server.drain();
    net.advance(2);
    assert!(!net.server.is_stopped());
    net.close("a");
    net.server.advance(Duration::from_secs(1));
    net.wait_until(|net| net.server.is_stopped().then_some(()));
}
