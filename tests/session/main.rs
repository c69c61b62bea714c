//! One connection on memory: cut at every byte, stalled, broken, and late.

mod budget;
#[path = "../common/mod.rs"]
mod common;
mod end;
mod http;
mod queue;
mod time;

use common::pipe::{CLOSE, Line, PING, PONG, REQUEST, TEXT, close, frame, frames};
use noroshi::config::{BASE_BYTES, Config, READ_BYTES_MAX};
use noroshi::http::ListenerKind;
use noroshi::session::CloseReason;

fn line() -> Line {
    Line::open(Config::default())
}

/// A conversation with all that RFC 6455 section 5.4 allows: fragments, and control frames between them.
fn conversation() -> Vec<u8> {
    [
        REQUEST.as_bytes(),
        &frame(TEXT, b"one"),
        &frame(0x01, "zw\u{f6}".as_bytes()),
        &frame(PING, b"are you there"),
        &frame(0x00, b""),
        &frame(0x80, "lf \u{1f525}".as_bytes()),
        &frame(0x82, "binary".repeat(30).as_bytes()),
        &frame(PONG, b"unasked"),
        &frame(CLOSE, &close(1000, "bye")),
    ]
    .concat()
}

fn check_conversation(mut line: Line, at: &str) {
    assert_eq!(line.events, ["+tea", "one", "zw\u{f6}lf \u{1f525}", &"binary".repeat(30)], "{at}");
    let sent = line.sent();
    let end = sent.windows(4).position(|window| window == b"\r\n\r\n").expect(at) + 4;
    let (frames, rest) = frames(&sent[end..]);
    assert!(rest.is_empty(), "{at}");
    assert_eq!(frames, [(PONG, b"are you there".to_vec()), (CLOSE, close(1000, "bye"))], "{at}");
    assert!(line.session.is_closed(), "{at}");
    assert_eq!(line.session.close_reason(), Some(CloseReason::Left), "{at}");
    check_budget(line, at);
}

/// When a session is gone, nothing is charged for it.
fn check_budget(mut line: Line, at: &str) {
    line.session.free(&mut line.shared);
    assert_eq!(line.shared.budget.used(), BASE_BYTES, "{at}");
}

/// The status of a whole answer, after which the write side is shut and the peer is read until it closes.
fn status(line: &mut Line) -> String {
    let sent = String::from_utf8(line.sent()).unwrap();
    let (head, body) = sent.split_once("\r\n\r\n").expect(&sent);
    assert!(head.contains("\r\nConnection: close") || head.contains(", close\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(line.pipe().shut && !line.session.is_closed());
    line.feed(b"more that nobody wants");
    assert!(line.pipe().input.is_empty());
    line.pipe().ended = true;
    line.turn();
    assert!(line.session.is_closed());
    assert_eq!(line.session.close_reason(), Some(CloseReason::Http));
    head[9..12].to_owned()
}

#[test]
fn cut_at_every_byte() {
    let bytes = conversation();
    for cut in 0..=bytes.len() {
        let mut line = Line::new(ListenerKind::Main, Config::default());
        line.feed(&bytes[..cut]);
        line.feed(&bytes[cut..]);
        check_conversation(line, &format!("cut at {cut}"));
    }
}

#[test]
fn byte_by_byte() {
    let mut line = Line::new(ListenerKind::Main, Config::default());
    for byte in conversation() {
        line.feed(&[byte]);
    }
    check_conversation(line, "byte by byte");
}

#[test]
fn with_one_byte_of_write_room() {
    for cut in [0, 50, REQUEST.len(), REQUEST.len() + 20] {
        let mut line = Line::new(ListenerKind::Main, Config::default());
        line.pipe().room = 0;
        let bytes = conversation();
        line.feed(&bytes[..cut]);
        line.feed(&bytes[cut..]);
        for _ in 0..1000 {
            line.pipe().room = 1;
            line.turn();
        }
        check_conversation(line, &format!("cut at {cut}"));
    }
}

#[test]
fn one_read_and_one_write_for_a_burst() {
    let mut line = line();
    line.pipe().reads = 0;
    line.pipe().writes = 0;
    let burst: Vec<u8> = (0..16).flat_map(|i| frame(TEXT, format!("{i}").as_bytes())).collect();
    line.pipe().input.extend(burst);
    // A short read needs no second one to know that there is no more.
    assert_eq!(line.session.read(&mut line.scratch, &mut line.shared), noroshi::session::ReadOutcome::Short);
    let mut heard = 0;
    while line.session.next_event(&mut line.scratch, &mut line.shared).is_some() {
        heard += 1;
        line.session.send("reply".into(), &mut line.shared);
    }
    line.session.flush(&mut line.shared);
    assert_eq!((heard, line.pipe().reads, line.pipe().writes), (16, 1, 1));
    assert_eq!(line.frames().len(), 16);
}

#[test]
fn bytes_go_out_as_bytes() {
    let mut line = line();
    line.session.send("text".into(), &mut line.shared);
    line.session.send_binary(b"\xff", &mut line.shared);
    line.turn();
    assert_eq!(line.frames(), [(TEXT, b"text".to_vec()), (0x82, vec![0xff])]);
}

#[test]
fn a_large_message_takes_several_turns_of_reading() {
    let mut line = line();
    let text = "x".repeat(3 * READ_BYTES_MAX);
    line.feed(&frame(TEXT, text.as_bytes()));
    assert_eq!(line.events, [text]);
}

#[test]
fn a_session_at_rest_has_no_codec() {
    let mut line = line();
    assert!(line.session.is_idle());
    for payload in [0, 1, 125, 126, 4096, 0xffff, 0x10000] {
        for first in [TEXT, 0x82] {
            line.feed(&frame(first, &vec![b'x'; payload]));
            line.session.send("x".repeat(payload), &mut line.shared);
            line.session.flush(&mut line.shared);
            assert!(line.session.is_idle(), "{payload}");
        }
    }
    line.feed(&[frame(TEXT, b"a"), frame(PING, b"b"), frame(PONG, b"c"), frame(TEXT, b"d")].concat());
    assert!(line.session.is_idle());
    for payload in [0, 1, 0xffff] {
        line.events.clear();
        let payload = vec![b'x'; payload];
        line.feed(&[frame(0x01, b""), frame(0x00, b""), frame(PING, b""), frame(0x80, &payload)].concat());
        assert_eq!(line.events[0].len(), payload.len());
        assert!(line.session.is_idle());
    }
}

#[test]
fn a_session_with_something_in_its_codec_keeps_it() {
    let bytes = frame(TEXT, b"message");
    for cut in 1..bytes.len() {
        let mut line = line();
        line.feed(&bytes[..cut]);
        assert!(!line.session.is_idle(), "{cut} bytes of a frame are inside");
        line.feed(&bytes[cut..]);
        assert_eq!(line.events, ["message"]);
        assert!(line.session.is_idle());
    }
    let mut line = line();
    line.feed(&frame(0x01, b"mess"));
    assert!(!line.session.is_idle(), "a fragment is inside");
    line.feed(&frame(0x80, b"age"));
    assert_eq!(line.events, ["message"]);

    let mut line = self::line();
    line.pipe().room = 0;
    line.feed(&frame(PING, b""));
    assert!(!line.session.is_idle(), "a pong waits to go out");
    line.pipe().room = 100;
    line.turn();
    assert!(line.session.is_idle());
}
