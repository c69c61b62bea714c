//! How a session ends: with a reason, in time, and with all that was said before.

use super::{conversation, line};
use crate::common::pipe::{CLOSE, Line, PING, REQUEST, TEXT, close, frame};
use noroshi::config::{Config, LINGER_BYTES_MAX, READ_BYTES_MAX};
use noroshi::http::ListenerKind;
use noroshi::session::CloseReason;

/// After these bytes the peer is told this code, then all that it still sends is read until it closes.
fn fails(bytes: &[u8], code: u16, end: CloseReason) {
    for cut in 0..bytes.len().min(64) {
        let mut line = line();
        line.feed(&bytes[..cut]);
        line.feed(&bytes[cut..]);
        let frames = line.frames();
        assert_eq!(frames.len(), 1, "{code}: {frames:?}");
        assert_eq!((frames[0].0, &frames[0].1[..2]), (CLOSE, &code.to_be_bytes()[..]));
        assert_eq!(line.session.close_reason(), Some(end));
        assert!(line.pipe().shut && !line.session.is_open() && !line.session.is_closed());
        line.feed(&frame(TEXT, b"what else I had to say"));
        assert!(line.events.is_empty() && line.pipe().input.is_empty());
        line.pipe().ended = true;
        line.turn();
        assert!(line.session.is_closed());
    }
}

#[test]
fn broken_frames_are_told_1002() {
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
fn what_a_header_says_is_not_waited_for() {
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
fn broken_text_is_told_1007() {
    for text in [&b"\xff"[..], b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"cut \xe7\x8b"] {
        fails(&frame(TEXT, text), 1007, CloseReason::NotUtf8);
        fails(&[frame(0x01, b"in "), frame(0x80, text)].concat(), 1007, CloseReason::NotUtf8);
    }
    fails(&frame(CLOSE, b"\x03\xe8\xff"), 1007, CloseReason::NotUtf8);
    // Known before the message is whole.
    fails(&frame(0x01, b"\xff"), 1007, CloseReason::NotUtf8);
    // A character may be cut by fragments.
    let text = "\u{f6}\u{72fc}\u{1f525}";
    for cut in 0..=text.len() {
        let mut line = line();
        line.feed(&[frame(0x01, &text.as_bytes()[..cut]), frame(0x80, &text.as_bytes()[cut..])].concat());
        assert_eq!(line.events, [text]);
    }
}

#[test]
fn what_follows_broken_text_is_nobody_elses() {
    let (mut line, mut other) = (line(), self::line());
    line.pipe().input.extend([frame(TEXT, b"\xff"), frame(TEXT, b"not theirs")].concat());
    line.session.read(&mut line.scratch, &mut line.shared);
    assert!(line.session.next_event(&mut line.scratch, &mut line.shared).is_none());
    assert_eq!(
        other.session.read(&mut line.scratch, &mut line.shared),
        noroshi::session::ReadOutcome::WouldBlock
    );
    assert!(other.session.next_event(&mut line.scratch, &mut line.shared).is_none());
}

#[test]
fn too_much_is_told_1009() {
    let max = Config::default().message_bytes_max;
    fails(&frame(TEXT, &vec![b'x'; max + 1]), 1009, CloseReason::TooBig);
    fails(&[frame(0x01, &vec![b'x'; max]), frame(0x80, b"x")].concat(), 1009, CloseReason::TooBig);
    // Known from the header, before anything of it came.
    fails(&[TEXT, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4], 1009, CloseReason::TooBig);
    let mut line = line();
    line.feed(&frame(TEXT, &vec![b'x'; max]));
    assert_eq!(line.events[0].len(), max);
}

#[test]
fn the_peer_closes() {
    for (said, answered) in [
        (close(1000, "bye"), close(1000, "bye")),
        (close(3999, ""), close(3999, "")),
        (close(4999, ""), close(4999, "")),
        (vec![], vec![]),
        (close(1014, ""), close(1014, "")),
    ] {
        let mut line = line();
        line.feed(&[frame(TEXT, b"last words"), frame(CLOSE, &said), frame(TEXT, b"after")].concat());
        assert_eq!(line.events, ["last words"]);
        assert_eq!(line.frames(), [(CLOSE, answered)]);
        // Nothing lies unread, so nothing stands against closing TCP at once.
        assert!(line.session.is_closed() && !line.pipe().shut);
        assert_eq!(line.session.close_reason(), Some(CloseReason::Left));
    }
}

#[test]
fn the_server_closes() {
    for (end, code) in [
        (CloseReason::GoingAway, 1001),
        (CloseReason::RateLimited, 1008),
        (CloseReason::Unregistered, 1008),
        (CloseReason::Slow, 1013),
        (CloseReason::Replaced, 4000),
        (CloseReason::Silent, 4001),
    ] {
        let mut line = line();
        line.session.close(end, &mut line.shared);
        line.session.close(CloseReason::GoingAway, &mut line.shared);
        line.session.send("too late".into(), &mut line.shared);
        line.feed(&frame(TEXT, b"on its way"));
        let frames = line.frames();
        assert_eq!((frames.len(), frames[0].0, &frames[0].1[..2]), (1, CLOSE, &u16::to_be_bytes(code)[..]));
        assert!(line.events.is_empty() && !line.session.is_open() && !line.session.is_closed());
        line.feed(&frame(CLOSE, &close(code, "")));
        assert!(line.session.is_closed());
        assert_eq!(line.session.close_reason(), Some(end));
    }
}

#[test]
fn a_peer_that_does_not_answer_a_close_is_dropped() {
    let mut line = line();
    line.session.close(CloseReason::Replaced, &mut line.shared);
    line.turn();
    line.pass(1);
    assert!(!line.session.is_closed());
    line.pass(1);
    assert!(line.session.is_closed());
}

#[test]
fn a_broken_frame_after_our_close_ends_it() {
    let mut line = line();
    line.session.close(CloseReason::Replaced, &mut line.shared);
    line.feed(&frame(0x83, b""));
    assert_eq!(line.frames().len(), 1);
    assert!(line.pipe().shut);
    assert_eq!(line.session.close_reason(), Some(CloseReason::Replaced));
    line.pass(2);
    assert!(line.session.is_closed());
}

#[test]
fn draining_is_bounded_in_bytes_and_time() {
    let mut line = line();
    let broken = frame(0x83, b"");
    line.feed(&broken);
    line.feed(&vec![0; LINGER_BYTES_MAX - broken.len()]);
    assert!(!line.session.is_closed());
    line.feed(&vec![0; READ_BYTES_MAX]);
    assert!(line.session.is_closed());

    let mut line = self::line();
    line.feed(&frame(0x83, b""));
    line.pass(1);
    assert!(!line.session.is_closed());
    line.pass(1);
    assert!(line.session.is_closed());
}

#[test]
fn tcp_ends_without_a_goodbye() {
    for broken in [false, true] {
        for bytes in [&b""[..], b"GET", REQUEST.as_bytes(), &conversation()[..REQUEST.len() + 3]] {
            let mut line = Line::new(ListenerKind::Main, Config::default());
            line.feed(bytes);
            line.pipe().broken = broken;
            line.pipe().ended = true;
            line.turn();
            assert!(line.session.is_closed());
            let upgraded = line.events.len() == 1;
            assert_eq!(
                line.session.close_reason(),
                Some(if upgraded { CloseReason::Lost } else { CloseReason::Http })
            );
        }
    }
}

#[test]
fn tcp_ends_in_the_middle_of_a_goodbye() {
    // The peer's Close is awaited; or all is said, and what still comes is thrown away.
    let goodbyes: [fn(&mut Line); 2] = [
        |line| line.session.close(CloseReason::Replaced, &mut line.shared),
        |line| line.pipe().input.extend(frame(0x83, b"no such frame")),
    ];
    for broken in [false, true] {
        for goodbye in goodbyes {
            let mut line = line();
            goodbye(&mut line);
            line.turn();
            assert!(!line.session.is_open() && !line.session.is_closed());
            line.pipe().broken = broken;
            line.pipe().ended = true;
            line.turn();
            assert!(line.session.is_closed());
        }
    }
}

#[test]
fn a_write_that_fails_ends_it() {
    let mut line = line();
    line.session.send("x".into(), &mut line.shared);
    line.pipe().broken = true;
    line.session.flush(&mut line.shared);
    assert!(line.session.is_closed());
    assert_eq!(line.session.close_reason(), Some(CloseReason::Lost));
}
