//! One session on an in-memory stream: input cut at every byte, stalled writes, errors and timeouts.

mod budget;
mod end;
mod http;
mod queue;
mod time;

use crate::common::pipe::{CLOSE, PING, PONG, REQUEST, TEXT, TestSession, close, frame, frames};
use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::limits::{BASE_BYTES, READ_BYTES_MAX};
use noroshi::session::CloseReason;

fn open_session() -> TestSession {
    TestSession::open(Config::default())
}

/// Returns a conversation with everything that RFC 6455 section 5.4 allows: fragments, and control frames between them.
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

fn check_conversation(mut test: TestSession, at: &str) {
    assert_eq!(test.events, ["+tea", "one", "zw\u{f6}lf \u{1f525}", &"binary".repeat(30)], "{at}");
    let sent = test.take_output();
    let end = sent.windows(4).position(|window| window == b"\r\n\r\n").expect(at) + 4;
    let (frames, rest) = frames(&sent[end..]);
    assert!(rest.is_empty(), "{at}");
    assert_eq!(frames, [(PONG, b"are you there".to_vec()), (CLOSE, close(1000, "bye"))], "{at}");
    assert!(test.session.is_closed(), "{at}");
    assert_eq!(test.session.close_reason(), Some(CloseReason::Left), "{at}");
    check_budget(test, at);
}

/// Asserts that a freed session leaves nothing charged to the memory budget.
fn check_budget(mut test: TestSession, at: &str) {
    test.session.free(&mut test.shared);
    assert_eq!(test.shared.budget.used(), BASE_BYTES, "{at}");
}

/// Returns the status of a complete response. Asserts that the write side is shut down and that input is discarded
/// until the peer closes.
fn status(test: &mut TestSession) -> String {
    let sent = String::from_utf8(test.take_output()).unwrap();
    let (head, body) = sent.split_once("\r\n\r\n").expect(&sent);
    assert!(head.contains("\r\nConnection: close") || head.contains(", close\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(test.pipe().is_write_shut && !test.session.is_closed());
    test.feed(b"more that nobody wants");
    assert!(test.pipe().input.is_empty());
    test.pipe().is_eof = true;
    test.process();
    assert!(test.session.is_closed());
    assert_eq!(test.session.close_reason(), Some(CloseReason::Http));
    head[9..12].to_owned()
}

#[test]
fn conversation_may_be_cut_at_every_byte() {
    let bytes = conversation();
    for cut in 0..=bytes.len() {
        let mut test = TestSession::new(ListenerKind::Main, Config::default());
        test.feed(&bytes[..cut]);
        test.feed(&bytes[cut..]);
        check_conversation(test, &format!("cut at {cut}"));
    }
}

#[test]
fn conversation_may_arrive_byte_by_byte() {
    let mut test = TestSession::new(ListenerKind::Main, Config::default());
    for byte in conversation() {
        test.feed(&[byte]);
    }
    check_conversation(test, "byte by byte");
}

#[test]
fn conversation_may_be_written_byte_by_byte() {
    for cut in [0, 50, REQUEST.len(), REQUEST.len() + 20] {
        let mut test = TestSession::new(ListenerKind::Main, Config::default());
        test.pipe().writable_bytes = 0;
        let bytes = conversation();
        test.feed(&bytes[..cut]);
        test.feed(&bytes[cut..]);
        for _ in 0..1000 {
            test.pipe().writable_bytes = 1;
            test.process();
        }
        check_conversation(test, &format!("cut at {cut}"));
    }
}

#[test]
fn burst_takes_one_read_and_one_write() {
    let mut test = open_session();
    test.pipe().reads = 0;
    test.pipe().writes = 0;
    let burst: Vec<u8> = (0..16).flat_map(|i| frame(TEXT, format!("{i}").as_bytes())).collect();
    test.pipe().input.extend(burst);
    // A short read shows that no more input is available.
    assert_eq!(test.session.read(&mut test.scratch, &mut test.shared), noroshi::session::ReadOutcome::Short);
    let mut received = 0;
    while test.session.next_event(&mut test.scratch, &mut test.shared).is_some() {
        received += 1;
        test.session.send("reply".into(), &mut test.shared);
    }
    test.session.flush(&mut test.shared);
    assert_eq!((received, test.pipe().reads, test.pipe().writes), (16, 1, 1));
    assert_eq!(test.take_frames().len(), 16);
}

#[test]
fn binary_messages_are_sent_as_binary_frames() {
    let mut test = open_session();
    test.session.send("text".into(), &mut test.shared);
    test.session.send_binary(b"\xff", &mut test.shared);
    test.process();
    assert_eq!(test.take_frames(), [(TEXT, b"text".to_vec()), (0x82, vec![0xff])]);
}

#[test]
fn large_message_takes_several_reads() {
    let mut test = open_session();
    let text = "x".repeat(3 * READ_BYTES_MAX);
    test.feed(&frame(TEXT, text.as_bytes()));
    assert_eq!(test.events, [text]);
}

#[test]
fn idle_session_has_no_codec() {
    let mut test = open_session();
    assert!(test.session.is_idle());
    for payload in [0, 1, 125, 126, 4096, 0xffff, 0x10000] {
        for first in [TEXT, 0x82] {
            test.feed(&frame(first, &vec![b'x'; payload]));
            test.session.send("x".repeat(payload), &mut test.shared);
            test.session.flush(&mut test.shared);
            assert!(test.session.is_idle(), "{payload}");
        }
    }
    test.feed(&[frame(TEXT, b"a"), frame(PING, b"b"), frame(PONG, b"c"), frame(TEXT, b"d")].concat());
    assert!(test.session.is_idle());
    for payload in [0, 1, 0xffff] {
        test.events.clear();
        let payload = vec![b'x'; payload];
        test.feed(&[frame(0x01, b""), frame(0x00, b""), frame(PING, b""), frame(0x80, &payload)].concat());
        assert_eq!(test.events[0].len(), payload.len());
        assert!(test.session.is_idle());
    }
}

#[test]
fn session_keeps_its_codec_during_a_partial_message() {
    let bytes = frame(TEXT, b"message");
    for cut in 1..bytes.len() {
        let mut test = open_session();
        test.feed(&bytes[..cut]);
        assert!(!test.session.is_idle(), "{cut} bytes of a frame are buffered");
        test.feed(&bytes[cut..]);
        assert_eq!(test.events, ["message"]);
        assert!(test.session.is_idle());
    }
    let mut test = open_session();
    test.feed(&frame(0x01, b"mess"));
    assert!(!test.session.is_idle(), "a fragment is buffered");
    test.feed(&frame(0x80, b"age"));
    assert_eq!(test.events, ["message"]);

    let mut test = open_session();
    test.pipe().writable_bytes = 0;
    test.feed(&frame(PING, b""));
    assert!(!test.session.is_idle(), "a pong is queued");
    test.pipe().writable_bytes = 100;
    test.process();
    assert!(test.session.is_idle());
}
