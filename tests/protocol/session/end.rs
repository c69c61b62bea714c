//! The end of a session: close code, timeouts, and delivery of queued messages.

use super::{check_budget, conversation, open_session};
use crate::common::pipe::{CLOSE, PING, REQUEST, TEXT, TestSession, close, frame};
use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::limits::{LINGER_BYTES_MAX, READ_BYTES_MAX};
use noroshi::session::CloseReason;

/// Asserts that these bytes close the session with this code and that further input is discarded until the peer closes.
fn fails(bytes: &[u8], code: u16, end: CloseReason) {
    for cut in 0..bytes.len().min(64) {
        let mut test = open_session();
        test.feed(&bytes[..cut]);
        test.feed(&bytes[cut..]);
        let frames = test.take_frames();
        assert_eq!(frames.len(), 1, "{code}: {frames:?}");
        assert_eq!((frames[0].0, &frames[0].1[..2]), (CLOSE, &code.to_be_bytes()[..]));
        assert_eq!(test.session.close_reason(), Some(end));
        assert!(test.pipe().is_write_shut && !test.session.is_open() && !test.session.is_closed());
        test.feed(&frame(TEXT, b"what else I had to say"));
        assert!(test.events.is_empty() && test.pipe().input.is_empty());
        test.pipe().is_eof = true;
        test.process();
        assert!(test.session.is_closed());
    }
}

#[test]
fn invalid_frames_are_closed_with_1002() {
    for first in [0xc1, 0xa1, 0x91, 0xf1] {
        fails(&frame(first, b"reserved bit"), 1002, CloseReason::Protocol);
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        fails(&frame(0x80 | opcode, b"opcode"), 1002, CloseReason::Protocol);
    }
    fails(&[TEXT, 2, b'h', b'i'], 1002, CloseReason::Protocol);
    fails(&frame(0x80, b"continues nothing"), 1002, CloseReason::Protocol);
    fails(&[frame(0x01, b"begun"), frame(TEXT, b"anew")].concat(), 1002, CloseReason::Protocol);
    fails(&frame(0x09, b"fragmented ping"), 1002, CloseReason::Protocol);
    fails(&frame(0x08, b""), 1002, CloseReason::Protocol);
    fails(&frame(PING, &[0; 126]), 1002, CloseReason::Protocol);
    fails(&frame(CLOSE, &[3]), 1002, CloseReason::Protocol);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        fails(&frame(CLOSE, &close(code, "no such code")), 1002, CloseReason::Protocol);
    }
}

#[test]
fn invalid_header_is_rejected_before_the_payload_arrives() {
    for (header, code, end) in [
        (&[0x83][..], 1002, CloseReason::Protocol),
        (&[0x0a], 1002, CloseReason::Protocol),
        (&[PING, 0xfe], 1002, CloseReason::Protocol),
        (&[TEXT, 0x05], 1002, CloseReason::Protocol),
        (&[TEXT, 0xfe, 0, 125], 1002, CloseReason::Protocol),
        (&[TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002, CloseReason::Protocol),
        (&[TEXT, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002, CloseReason::Protocol),
        (&[TEXT, 0xff, 0, 0, 0, 0, 0, 1, 0, 1], 1009, CloseReason::TooBig),
        (&[0x80, 0x85, 1, 2, 3, 4], 1002, CloseReason::Protocol),
    ] {
        fails(header, code, end);
    }
    fails(&[&frame(0x01, b"begun")[..], &[TEXT, 0x85, 1, 2, 3, 4]].concat(), 1002, CloseReason::Protocol);
    let max = Config::default().message_bytes_max;
    fails(&[&frame(0x02, &vec![0; max])[..], &[0x80, 0x81, 1, 2, 3, 4]].concat(), 1009, CloseReason::TooBig);
}

#[test]
fn invalid_utf8_is_closed_with_1007() {
    for text in [&b"\xff"[..], b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"cut \xe7\x8b"] {
        fails(&frame(TEXT, text), 1007, CloseReason::NotUtf8);
        fails(&[frame(0x01, b"in "), frame(0x80, text)].concat(), 1007, CloseReason::NotUtf8);
    }
    fails(&frame(CLOSE, b"\x03\xe8\xff"), 1007, CloseReason::NotUtf8);
    // Detected before the message is complete.
    fails(&frame(0x01, b"\xff"), 1007, CloseReason::NotUtf8);
    // A fragment boundary may split a character.
    let text = "\u{f6}\u{72fc}\u{1f525}";
    for cut in 0..=text.len() {
        let mut test = open_session();
        test.feed(&[frame(0x01, &text.as_bytes()[..cut]), frame(0x80, &text.as_bytes()[cut..])].concat());
        assert_eq!(test.events, [text]);
    }
}

#[test]
fn input_after_invalid_text_does_not_reach_another_session() {
    let mut test = open_session();
    let mut other = open_session();
    test.pipe().input.extend([frame(TEXT, b"\xff"), frame(TEXT, b"not theirs")].concat());
    test.session.read(&mut test.scratch, &mut test.shared);
    assert!(test.session.next_event(&mut test.scratch, &mut test.shared).is_none());
    assert_eq!(
        other.session.read(&mut test.scratch, &mut test.shared),
        noroshi::session::ReadOutcome::WouldBlock
    );
    assert!(other.session.next_event(&mut test.scratch, &mut test.shared).is_none());
}

#[test]
fn oversized_message_is_closed_with_1009() {
    let max = Config::default().message_bytes_max;
    fails(&frame(TEXT, &vec![b'x'; max + 1]), 1009, CloseReason::TooBig);
    fails(&[frame(0x01, &vec![b'x'; max]), frame(0x80, b"x")].concat(), 1009, CloseReason::TooBig);
    // Detected in the header, before the payload arrives.
    fails(&[TEXT, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4], 1009, CloseReason::TooBig);
    let mut test = open_session();
    test.feed(&frame(TEXT, &vec![b'x'; max]));
    assert_eq!(test.events[0].len(), max);
}

#[test]
fn close_of_the_peer_is_answered() {
    for (sent, expected) in [
        (close(1000, "bye"), close(1000, "bye")),
        (close(3999, ""), close(3999, "")),
        (close(4999, ""), close(4999, "")),
        (vec![], vec![]),
        (close(1014, ""), close(1014, "")),
    ] {
        let mut test = open_session();
        test.feed(&[frame(TEXT, b"last words"), frame(CLOSE, &sent), frame(TEXT, b"after")].concat());
        assert_eq!(test.events, ["last words"]);
        assert_eq!(test.take_frames(), [(CLOSE, expected)]);
        // No input is unread, so TCP is closed immediately.
        assert!(test.session.is_closed() && !test.pipe().is_write_shut);
        assert_eq!(test.session.close_reason(), Some(CloseReason::Left));
    }
}

#[test]
fn close_of_the_server_has_its_code() {
    for (end, code) in [
        (CloseReason::GoingAway, 1001),
        (CloseReason::RateLimited, 1008),
        (CloseReason::Unregistered, 1008),
        (CloseReason::Slow, 1013),
        (CloseReason::Replaced, 4000),
        (CloseReason::Silent, 4001),
    ] {
        let mut test = open_session();
        test.session.close(end, &mut test.shared);
        test.session.close(CloseReason::GoingAway, &mut test.shared);
        test.session.send("too late".into(), &mut test.shared);
        test.feed(&frame(TEXT, b"on its way"));
        let frames = test.take_frames();
        assert_eq!((frames.len(), frames[0].0, &frames[0].1[..2]), (1, CLOSE, &u16::to_be_bytes(code)[..]));
        assert!(test.events.is_empty() && !test.session.is_open() && !test.session.is_closed());
        test.feed(&frame(CLOSE, &close(code, "")));
        assert!(test.session.is_closed());
        assert_eq!(test.session.close_reason(), Some(end));
    }
}

#[test]
fn peer_that_does_not_answer_a_close_is_dropped() {
    let mut test = open_session();
    test.session.close(CloseReason::Replaced, &mut test.shared);
    test.process();
    test.advance(1);
    assert!(!test.session.is_closed());
    test.advance(1);
    assert!(test.session.is_closed());
}

#[test]
fn invalid_frame_after_a_close_ends_the_session() {
    let mut test = open_session();
    test.session.close(CloseReason::Replaced, &mut test.shared);
    test.feed(&frame(0x83, b""));
    assert_eq!(test.take_frames().len(), 1);
    assert!(test.pipe().is_write_shut);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Replaced));
    test.advance(2);
    assert!(test.session.is_closed());
}

#[test]
fn discarding_input_is_bounded_in_bytes_and_time() {
    let mut test = open_session();
    let broken = frame(0x83, b"");
    test.feed(&broken);
    test.feed(&vec![0; LINGER_BYTES_MAX - broken.len()]);
    assert!(!test.session.is_closed());
    test.feed(&vec![0; READ_BYTES_MAX]);
    assert!(test.session.is_closed());

    let mut test = open_session();
    test.feed(&frame(0x83, b""));
    test.advance(1);
    assert!(!test.session.is_closed());
    test.advance(1);
    assert!(test.session.is_closed());
}

#[test]
fn tcp_end_without_a_close_frame_ends_the_session() {
    for broken in [false, true] {
        for bytes in [&b""[..], b"GET", REQUEST.as_bytes(), &conversation()[..REQUEST.len() + 3]] {
            let mut test = TestSession::new(ListenerKind::Main, Config::default());
            test.feed(bytes);
            test.pipe().is_broken = broken;
            test.pipe().is_eof = true;
            test.process();
            assert!(test.session.is_closed());
            let upgraded = test.events.len() == 1;
            assert_eq!(
                test.session.close_reason(),
                Some(if upgraded { CloseReason::Lost } else { CloseReason::Http })
            );
        }
    }
}

#[test]
fn tcp_end_during_the_close_handshake_ends_the_session() {
    // The session awaits the peer's Close frame, or has sent everything and discards further input.
    let endings: [fn(&mut TestSession); 2] = [
        |test| test.session.close(CloseReason::Replaced, &mut test.shared),
        |test| test.pipe().input.extend(frame(0x83, b"no such frame")),
    ];
    for broken in [false, true] {
        for ending in endings {
            let mut test = open_session();
            ending(&mut test);
            test.process();
            assert!(!test.session.is_open() && !test.session.is_closed());
            test.pipe().is_broken = broken;
            test.pipe().is_eof = true;
            test.process();
            assert!(test.session.is_closed());
        }
    }
}

#[test]
fn failed_write_ends_the_session() {
    let mut test = open_session();
    test.session.send("x".into(), &mut test.shared);
    test.pipe().is_broken = true;
    test.session.flush(&mut test.shared);
    assert!(test.session.is_closed());
    assert_eq!(test.session.close_reason(), Some(CloseReason::Lost));
}

/// Returns an open session of a protocol whose clients get no Close frame.
fn session_without_close_frame() -> TestSession {
    let mut test = open_session();
    test.session.end_without_close_frame();
    test
}

#[test]
fn session_without_close_frame_flushes_and_ends_tcp() {
    for end in [
        CloseReason::GoingAway,
        CloseReason::RateLimited,
        CloseReason::Slow,
        CloseReason::NoMemory,
        CloseReason::Replaced,
        CloseReason::Silent,
        CloseReason::Finished,
    ] {
        for is_text_queued in [false, true] {
            let mut test = session_without_close_frame();
            test.pipe().writable_bytes = 0;
            if is_text_queued {
                test.session.send("last words".into(), &mut test.shared);
            }
            test.session.close(end, &mut test.shared);
            test.session.close(CloseReason::GoingAway, &mut test.shared);
            test.session.send("too late".into(), &mut test.shared);
            test.process();
            assert_eq!(test.pipe().is_write_shut, !is_text_queued, "the queue is flushed before TCP ends");
            test.pipe().writable_bytes = usize::MAX;
            test.feed(&frame(TEXT, b"on its way"));
            let expected = is_text_queued.then(|| (TEXT, b"last words".to_vec()));
            assert_eq!(test.take_frames(), expected.into_iter().collect::<Vec<_>>());
            assert!(test.events.is_empty() && test.pipe().is_write_shut && !test.session.is_closed());
            test.pipe().is_eof = true;
            test.process();
            assert!(test.session.is_closed());
            assert_eq!(test.session.close_reason(), Some(end));
            check_budget(test, "after the end");
        }
    }
}

#[test]
fn session_without_close_frame_answers_the_close_frame_of_the_peer() {
    let mut test = session_without_close_frame();
    test.feed(&frame(CLOSE, &close(1000, "bye")));
    assert_eq!(test.take_frames(), [(CLOSE, close(1000, "bye"))]);
    assert!(test.session.is_closed());
    assert_eq!(test.session.close_reason(), Some(CloseReason::Left));
    // Also if the server is about to end the connection, and the queue is not empty yet.
    let mut test = session_without_close_frame();
    test.pipe().writable_bytes = 0;
    test.session.send("last words".into(), &mut test.shared);
    test.session.close(CloseReason::GoingAway, &mut test.shared);
    test.feed(&frame(CLOSE, &close(1000, "bye")));
    test.feed(&frame(CLOSE, &close(1000, "again")));
    test.pipe().writable_bytes = usize::MAX;
    test.process();
    assert_eq!(test.take_frames(), [(TEXT, b"last words".to_vec()), (CLOSE, close(1000, "bye"))]);
    test.pipe().is_eof = true;
    test.process();
    assert!(test.session.is_closed());
    assert_eq!(test.session.close_reason(), Some(CloseReason::GoingAway));
}

#[test]
fn session_without_close_frame_sends_none_for_invalid_input() {
    let max = Config::default().message_bytes_max;
    for (bytes, end) in [
        (frame(0x83, b"opcode"), CloseReason::Protocol),
        (frame(TEXT, b"\xff"), CloseReason::NotUtf8),
        (frame(0x01, b"\xff"), CloseReason::NotUtf8),
        (frame(TEXT, &vec![b'x'; max + 1]), CloseReason::TooBig),
        (frame(CLOSE, &close(1005, "")), CloseReason::Protocol),
    ] {
        let mut test = session_without_close_frame();
        test.feed(&bytes);
        assert_eq!(test.take_frames(), []);
        assert!(test.pipe().is_write_shut && !test.session.is_closed());
        assert_eq!(test.session.close_reason(), Some(end));
        test.pipe().is_eof = true;
        test.process();
        assert!(test.session.is_closed());
    }
}

#[test]
fn session_without_close_frame_is_dropped_if_the_peer_keeps_its_side_open() {
    for writable_bytes in [0, usize::MAX] {
        let mut test = session_without_close_frame();
        test.pipe().writable_bytes = writable_bytes;
        test.session.send("x".into(), &mut test.shared);
        test.session.close(CloseReason::GoingAway, &mut test.shared);
        test.process();
        test.advance(1);
        assert!(!test.session.is_closed());
        test.advance(1);
        assert!(test.session.is_closed(), "{writable_bytes}");
    }
}
