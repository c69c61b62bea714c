//! A planned stop: rooms that exist go on for a while, and are told to go elsewhere one after another.

use super::*;

const DRAIN: Duration = Duration::from_secs(60);

#[test]
fn a_drain_serves_the_rooms_that_there_are_and_ends_them_one_by_one() {
    let mut net = with(|config| config.drain = DRAIN);
    let rooms: Vec<String> = (0..30).map(|i| format!("room-{i}")).collect();
    for room in &rooms {
        for who in ["a", "b"] {
            let name = format!("{room}{who}");
            Wire::open(&mut *net, &name, room);
            net.say(&name, Message::text(format!(r#"{{"type":"leave","id":"{who}"}}"#)));
        }
    }
    assert_eq!(net.status("/healthz", false), Some(200));
    net.server.drain();
    assert_eq!(net.status("/healthz", false), Some(503));
    assert!(net.ask(ListenerKind::Main, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").ends_with("draining"));
    assert_eq!(net.status("/ws/new", true), Some(503));
    assert_eq!(net.status("/ws", true), Some(503), "the default room is one too");
    // Whoever is late for its room comes in.
    Wire::open(&mut *net, "late", &rooms[0]);
    net.say("late", Message::text(r#"{"type":"join","id":"late"}"#));
    assert!(matches!(net.next("late"), Some(Heard::Text(text)) if text.contains("joined")));
    // Real time passes too, on a slow machine.
    net.pass(DRAIN.as_secs() / 2 - 10);
    for room in &rooms {
        assert_eq!(["a", "b"].map(|who| net.next(&format!("{room}{who}"))), [None, None]);
    }
    let mut told = Vec::new();
    while !net.server.is_stopped() {
        net.pass(1);
        let mut count = 0;
        for room in &rooms {
            let heard = ["a", "b"].map(|who| net.next(&format!("{room}{who}")));
            assert_eq!(heard[0], heard[1], "a room goes as a whole");
            count += usize::from(heard[0] == Some(Heard::Closed(1001)));
        }
        told.push(count);
    }
    assert_eq!(told.iter().sum::<usize>(), rooms.len());
    assert!(told.len() >= 25, "{told:?}");
    assert!(told.iter().all(|count| *count <= 5), "not all at once: {told:?}");
}

#[test]
fn a_drain_ends_with_the_last_connection() {
    let mut net = with(|config| config.drain = DRAIN);
    Wire::open(&mut *net, "a", "tea");
    net.server.drain();
    net.pass(2);
    assert!(!net.server.is_stopped());
    net.leave("a");
    net.server.advance(Duration::from_secs(1));
    net.until(|net| net.server.is_stopped().then_some(()));
}
