//! One connection on memory: cut at every byte, stalled, broken, and late.

mod common;

use common::pipe::{CLOSE, Line, PING, PONG, REQUEST, TEXT, close, frame, frames};
use noroshi::config::{
    ALWAYS_HELD_BYTES, BASE_BYTES, CONNECTION_BYTES, Config, DRAIN_BYTES_MAX, HEAD_BYTES_MAX, READ_BYTES_MAX,
};
use noroshi::http::Door;
use noroshi::message::Reply;
use noroshi::session::End;

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
    assert!(line.session.is_over(), "{at}");
    assert_eq!(line.session.end(), Some(End::Left), "{at}");
    check_budget(line, at);
}

/// When a session is gone, nothing is charged for it.
fn check_budget(mut line: Line, at: &str) {
    line.session.free(&mut line.shared);
    assert_eq!(line.shared.budget.used(), BASE_BYTES, "{at}");
}

#[test]
fn cut_at_every_byte() {
    let bytes = conversation();
    for cut in 0..=bytes.len() {
        let mut line = Line::new(Door::Main, Config::default());
        line.feed(&bytes[..cut]);
        line.feed(&bytes[cut..]);
        check_conversation(line, &format!("cut at {cut}"));
    }
}

#[test]
fn byte_by_byte() {
    let mut line = Line::new(Door::Main, Config::default());
    for byte in conversation() {
        line.feed(&[byte]);
    }
    check_conversation(line, "byte by byte");
}

#[test]
fn with_one_byte_of_write_room() {
    for cut in [0, 50, REQUEST.len(), REQUEST.len() + 20] {
        let mut line = Line::new(Door::Main, Config::default());
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
    assert_eq!(line.session.fill(&mut line.scratch, &mut line.shared), noroshi::session::Fill::Drained);
    let mut heard = 0;
    while line.session.next(&mut line.scratch, &mut line.shared).is_some() {
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

// ---- The end, with a reason ----

/// After these bytes the peer is told this code, then all that it still sends is read until it closes.
fn fails(bytes: &[u8], code: u16, end: End) {
    for cut in 0..bytes.len().min(64) {
        let mut line = line();
        line.feed(&bytes[..cut]);
        line.feed(&bytes[cut..]);
        let frames = line.frames();
        assert_eq!(frames.len(), 1, "{code}: {frames:?}");
        assert_eq!((frames[0].0, &frames[0].1[..2]), (CLOSE, &code.to_be_bytes()[..]));
        assert_eq!(line.session.end(), Some(end));
        assert!(line.pipe().shut && !line.session.is_open() && !line.session.is_over());
        line.feed(&frame(TEXT, b"what else I had to say"));
        assert!(line.events.is_empty() && line.pipe().input.is_empty());
        line.pipe().ended = true;
        line.turn();
        assert!(line.session.is_over());
    }
}

#[test]
fn broken_frames_are_told_1002() {
    for first in [0xc1, 0xa1, 0x91, 0xf1] {
        fails(&frame(first, b"reserved bit"), 1002, End::Protocol);
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        fails(&frame(0x80 | opcode, b"opcode"), 1002, End::Protocol);
    }
    fails(&[TEXT, 2, b'h', b'i'], 1002, End::Protocol);
    fails(&frame(0x80, b"continues nothing"), 1002, End::Protocol);
    fails(&[frame(0x01, b"begun"), frame(TEXT, b"anew")].concat(), 1002, End::Protocol);
    fails(&frame(0x09, b"fragmented ping"), 1002, End::Protocol);
    fails(&frame(0x08, b""), 1002, End::Protocol);
    fails(&frame(PING, &[0; 126]), 1002, End::Protocol);
    fails(&frame(CLOSE, &[3]), 1002, End::Protocol);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535] {
        fails(&frame(CLOSE, &close(code, "no such code")), 1002, End::Protocol);
    }
}

#[test]
fn what_a_header_says_is_not_waited_for() {
    for (header, code, end) in [
        (&[0x83][..], 1002, End::Protocol),
        (&[0x0a], 1002, End::Protocol),
        (&[PING, 0xfe], 1002, End::Protocol),
        (&[TEXT, 0x05], 1002, End::Protocol),
        (&[TEXT, 0xfe, 0, 125], 1002, End::Protocol),
        (&[TEXT, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002, End::Protocol),
        (&[TEXT, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], 1002, End::Protocol),
        (&[TEXT, 0xff, 0, 0, 0, 0, 0, 1, 0, 1], 1009, End::TooBig),
        (&[0x80, 0x85, 1, 2, 3, 4], 1002, End::Protocol),
    ] {
        fails(header, code, end);
    }
    fails(&[&frame(0x01, b"begun")[..], &[TEXT, 0x85, 1, 2, 3, 4]].concat(), 1002, End::Protocol);
    let max = Config::default().message_bytes_max;
    fails(&[&frame(0x02, &vec![0; max])[..], &[0x80, 0x81, 1, 2, 3, 4]].concat(), 1009, End::TooBig);
}

#[test]
fn broken_text_is_told_1007() {
    for text in [&b"\xff"[..], b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"cut \xe7\x8b"] {
        fails(&frame(TEXT, text), 1007, End::NotUtf8);
        fails(&[frame(0x01, b"in "), frame(0x80, text)].concat(), 1007, End::NotUtf8);
    }
    fails(&frame(CLOSE, b"\x03\xe8\xff"), 1007, End::NotUtf8);
    // Known before the message is whole.
    fails(&frame(0x01, b"\xff"), 1007, End::NotUtf8);
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
    line.session.fill(&mut line.scratch, &mut line.shared);
    assert!(line.session.next(&mut line.scratch, &mut line.shared).is_none());
    assert_eq!(other.session.fill(&mut line.scratch, &mut line.shared), noroshi::session::Fill::Empty);
    assert!(other.session.next(&mut line.scratch, &mut line.shared).is_none());
}

#[test]
fn too_much_is_told_1009() {
    let max = Config::default().message_bytes_max;
    fails(&frame(TEXT, &vec![b'x'; max + 1]), 1009, End::TooBig);
    fails(&[frame(0x01, &vec![b'x'; max]), frame(0x80, b"x")].concat(), 1009, End::TooBig);
    // Known from the header, before anything of it came.
    fails(&[TEXT, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4], 1009, End::TooBig);
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
        assert!(line.session.is_over() && !line.pipe().shut);
        assert_eq!(line.session.end(), Some(End::Left));
    }
}

#[test]
fn the_server_closes() {
    for (end, code) in [
        (End::GoingAway, 1001),
        (End::RateLimited, 1008),
        (End::Unregistered, 1008),
        (End::Slow, 1013),
        (End::Replaced, 4000),
        (End::Silent, 4001),
    ] {
        let mut line = line();
        line.session.close(end, &mut line.shared);
        line.session.close(End::GoingAway, &mut line.shared);
        line.session.send("too late".into(), &mut line.shared);
        line.feed(&frame(TEXT, b"on its way"));
        let frames = line.frames();
        assert_eq!((frames.len(), frames[0].0, &frames[0].1[..2]), (1, CLOSE, &u16::to_be_bytes(code)[..]));
        assert!(line.events.is_empty() && !line.session.is_open() && !line.session.is_over());
        line.feed(&frame(CLOSE, &close(code, "")));
        assert!(line.session.is_over());
        assert_eq!(line.session.end(), Some(end));
    }
}

#[test]
fn a_peer_that_does_not_answer_a_close_is_dropped() {
    let mut line = line();
    line.session.close(End::Replaced, &mut line.shared);
    line.turn();
    line.pass(1);
    assert!(!line.session.is_over());
    line.pass(1);
    assert!(line.session.is_over());
}

#[test]
fn a_broken_frame_after_our_close_ends_it() {
    let mut line = line();
    line.session.close(End::Replaced, &mut line.shared);
    line.feed(&frame(0x83, b""));
    assert_eq!(line.frames().len(), 1);
    assert!(line.pipe().shut);
    assert_eq!(line.session.end(), Some(End::Replaced));
    line.pass(2);
    assert!(line.session.is_over());
}

#[test]
fn draining_is_bounded_in_bytes_and_time() {
    let mut line = line();
    let broken = frame(0x83, b"");
    line.feed(&broken);
    line.feed(&vec![0; DRAIN_BYTES_MAX - broken.len()]);
    assert!(!line.session.is_over());
    line.feed(&vec![0; READ_BYTES_MAX]);
    assert!(line.session.is_over());

    let mut line = self::line();
    line.feed(&frame(0x83, b""));
    line.pass(1);
    assert!(!line.session.is_over());
    line.pass(1);
    assert!(line.session.is_over());
}

#[test]
fn tcp_ends_without_a_goodbye() {
    for broken in [false, true] {
        for bytes in [&b""[..], b"GET", REQUEST.as_bytes(), &conversation()[..REQUEST.len() + 3]] {
            let mut line = Line::new(Door::Main, Config::default());
            line.feed(bytes);
            line.pipe().broken = broken;
            line.pipe().ended = true;
            line.turn();
            assert!(line.session.is_over());
            let upgraded = line.events.len() == 1;
            assert_eq!(line.session.end(), Some(if upgraded { End::Lost } else { End::Http }));
        }
    }
}

#[test]
fn tcp_ends_in_the_middle_of_a_goodbye() {
    // The peer's Close is awaited; or all is said, and what still comes is thrown away.
    let goodbyes: [fn(&mut Line); 2] = [
        |line| line.session.close(End::Replaced, &mut line.shared),
        |line| line.pipe().input.extend(frame(0x83, b"no such frame")),
    ];
    for broken in [false, true] {
        for goodbye in goodbyes {
            let mut line = line();
            goodbye(&mut line);
            line.turn();
            assert!(!line.session.is_open() && !line.session.is_over());
            line.pipe().broken = broken;
            line.pipe().ended = true;
            line.turn();
            assert!(line.session.is_over());
        }
    }
}

#[test]
fn a_write_that_fails_ends_it() {
    let mut line = line();
    line.session.send("x".into(), &mut line.shared);
    line.pipe().broken = true;
    line.session.flush(&mut line.shared);
    assert!(line.session.is_over());
    assert_eq!(line.session.end(), Some(End::Lost));
}

// ---- HTTP ----

/// The status of a whole answer, after which the write side is shut and the peer is read until it closes.
fn status(line: &mut Line) -> String {
    let sent = String::from_utf8(line.sent()).unwrap();
    let (head, body) = sent.split_once("\r\n\r\n").expect(&sent);
    assert!(head.contains("\r\nConnection: close") || head.contains(", close\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(line.pipe().shut && !line.session.is_over());
    line.feed(b"more that nobody wants");
    assert!(line.pipe().input.is_empty());
    line.pipe().ended = true;
    line.turn();
    assert!(line.session.is_over());
    assert_eq!(line.session.end(), Some(End::Http));
    head[9..12].to_owned()
}

#[test]
fn plain_answers() {
    for (request, expected) in [
        ("GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /pipelined HTTP/1.1\r\n\r\n", "200"),
        ("POST /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody", "405"),
        ("GET /ws HTTP/1.1\r\nHost: h\r\n\r\n", "426"),
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n", "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        for cut in 0..request.len() {
            let mut line = Line::new(Door::Main, Config::default());
            line.feed(&request.as_bytes()[..cut]);
            line.feed(&request.as_bytes()[cut..]);
            assert_eq!(status(&mut line), expected, "{request}");
        }
    }
}

#[test]
fn a_head_has_a_size_and_a_time() {
    let mut line = Line::new(Door::Main, Config::default());
    let head = format!("GET /healthz HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
    line.feed(&head.as_bytes()[head.len() - HEAD_BYTES_MAX..]);
    assert_eq!(status(&mut line), "400");
    let mut line = Line::new(Door::Main, Config::default());
    line.feed(&head.as_bytes()[..=HEAD_BYTES_MAX]);
    assert_eq!(status(&mut line), "431");

    // A byte a second does not help.
    let mut line = Line::new(Door::Main, Config::default());
    for byte in &REQUEST.as_bytes()[..4] {
        line.pass(1);
        line.feed(&[*byte]);
    }
    assert!(line.sent().is_empty());
    line.pass(1);
    assert_eq!(status(&mut line), "408");
}

#[test]
fn what_every_proxy_lets_through_is_heard() {
    let cookies = format!("Cookie: a={}\r\nCookie: b={}\r\n", "x".repeat(4096), "y".repeat(4096));
    let mut line = Line::new(Door::Main, Config::default());
    line.feed(REQUEST.replace("\r\n\r\n", &format!("\r\n{cookies}\r\n")).as_bytes());
    assert_eq!(line.events, ["+tea"]);
    let mut line = Line::new(Door::Main, Config::default());
    line.feed(&REQUEST.as_bytes()[..REQUEST.len() - 2]);
    line.feed(format!("X: {}\r\n", "x".repeat(HEAD_BYTES_MAX)).as_bytes());
    assert_eq!(status(&mut line), "431");
    assert_eq!(line.refused.unwrap().0, 431);
}

#[test]
fn what_cannot_begin_a_request_is_answered_at_once() {
    for (bytes, needed) in [
        (&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], 1),
        (b"SSH-2.0-OpenSSH_10.0\r\n", 21),
        (b"\r\n\0", 3),
        (b" GET / HTTP/1.1", 1),
        (b"{\"type\":\"connect\"}", 1),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", 33),
    ] {
        let mut line = Line::new(Door::Main, Config::default());
        for (i, byte) in bytes.iter().enumerate().take(needed) {
            assert!(line.sent().is_empty(), "{i} of {bytes:?}");
            line.feed(&[*byte]);
        }
        assert_eq!(status(&mut line), "400", "{bytes:?}");
        assert_eq!(line.refused, None);
    }
}

#[test]
fn a_refused_upgrade_says_why() {
    let refused = |request: &str| {
        let mut line = Line::new(Door::Main, Config::default());
        line.feed(request.as_bytes());
        line.refused.map(|(status, why)| format!("{status} {why}"))
    };
    let with = |header: &str| REQUEST.replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"));
    assert_eq!(refused(REQUEST), None);
    assert_eq!(refused("GET /ws HTTP/1.1\r\nHost: h\r\n\r\n"), None);
    assert_eq!(refused("GET /nowhere HTTP/1.1\r\nHost: h\r\n\r\n"), None);
    // Whatever is in it, a line is not longer than a pipe has room for.
    let long = refused(&with(&format!("Origin: {}", "\u{85}".repeat(4000)))).unwrap();
    assert!(long.starts_with("403 ") && long.len() < 1024, "{} bytes", long.len());
    for (request, why) in [
        (
            with("Origin: https://a\" is of Host \"h\u{85}"),
            r#"403 Origin "https://a\" is of Host \"h\u{85}" is not of Host "h"; see --allow-origin"#,
        ),
        (
            REQUEST.replace("/ws/tea", "/nowhere"),
            "404 nothing is here; WebSockets connect to /ws or /ws/ROOM",
        ),
        (REQUEST.replace("/ws/tea", "/ws/a b"), "400 that is no HTTP request"),
        (REQUEST.replace("/ws/tea", "/ws/%61"), "400 a room is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -"),
        (with("Host: i"), "400 a request has one Host header"),
        (REQUEST.replace("Version: 13", "Version: 8"), "426 this address speaks WebSocket, version 13"),
    ] {
        assert_eq!(refused(&request).as_deref(), Some(why), "{request}");
    }
}

#[test]
fn who_shuts_its_write_side_still_gets_its_answer() {
    let mut line = Line::new(Door::Main, Config::default());
    line.pipe().room = 0;
    line.pipe().ended = true;
    line.feed(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
    line.turn();
    assert!(!line.session.is_over());
    line.pipe().room = 1000;
    line.turn();
    assert!(line.sent().ends_with(b"ok"));
    assert!(line.session.is_over());
}

// ---- Time ----

#[test]
fn silence_is_met_with_a_ping_and_then_the_end() {
    let mut line = line();
    line.session.registered();
    line.pass(24);
    assert!(line.frames().is_empty());
    line.pass(1);
    assert_eq!(line.frames(), [(PING, vec![])]);
    line.pass(24);
    // Half a frame is life enough.
    line.feed(&frame(PONG, b"")[..3]);
    line.pass(25);
    assert_eq!(line.frames(), [(PING, vec![])]);
    line.pass(24);
    assert!(line.session.is_open() && line.frames().is_empty());
    line.pass(1);
    assert_eq!(line.frames(), [(CLOSE, close(4001, "no sign of life"))]);
    assert_eq!(line.session.end(), Some(End::Silent));
    line.pass(2);
    assert!(line.session.is_over());
}

#[test]
fn nobody_is_cut_because_the_server_itself_stood_still() {
    let mut line = line();
    line.session.registered();
    line.shared.now += std::time::Duration::from_secs(1000);
    line.pass(1);
    assert_eq!(line.frames(), [(PING, vec![])]);
    line.pass(24);
    assert!(line.session.is_open());
    line.pass(1);
    assert!(!line.session.is_open());
}

#[test]
fn who_registers_nothing_has_thirty_seconds() {
    let mut line = line();
    line.pass(29);
    line.feed(&frame(PONG, b""));
    assert!(line.session.is_open());
    line.pass(1);
    assert_eq!(line.session.end(), Some(End::Unregistered));
    let mut line = self::line();
    line.session.registered();
    line.pass(40);
    assert!(line.session.is_open());
}

// ---- The queue ----

#[test]
fn a_full_queue_refuses_what_is_forwarded_and_ends_by_what_is_not() {
    let mut line = line();
    line.session.registered();
    line.pipe().room = 0;
    let text = "x".repeat(1000);
    let texts = [text.clone()];
    let mut queued = 0;
    while line.session.has_room(&texts, &line.shared) {
        line.session.send(text.clone(), &mut line.shared);
        queued += 1;
    }
    assert_eq!(queued, 256 * 1024 / 1004);
    assert!(line.session.is_open());
    // A slow reader is a reader: each byte buys ten seconds.
    for _ in 0..10 {
        line.pass(9);
        assert!(!line.session.has_room(&texts, &line.shared));
        line.feed(&frame(PONG, b""));
        line.pipe().room = 1;
        line.turn();
        assert!(line.session.is_open());
    }
    line.session.send(text, &mut line.shared);
    assert_eq!(line.session.end(), Some(End::Slow));
    // What was queued is still sent to who reads after all, and the reason after it.
    line.pipe().room = usize::MAX;
    line.turn();
    let frames = line.frames();
    assert_eq!(frames.len(), queued + 1);
    assert_eq!(frames[queued], (CLOSE, close(1013, "reads too slowly")));
}

#[test]
fn who_takes_nothing_from_a_full_queue_for_ten_seconds_is_cut() {
    let mut line = line();
    line.session.registered();
    line.pipe().room = 0;
    line.session.send("x".repeat(200 * 1024), &mut line.shared);
    line.pass(15);
    assert!(line.session.is_open(), "the queue is not full");
    assert!(!line.session.has_room(&["x".repeat(100 * 1024)], &line.shared));
    line.pass(1);
    assert_eq!(line.session.end(), Some(End::Slow));
    line.pass(2);
    assert!(line.session.is_over());
}

#[test]
fn pings_from_a_peer_that_does_not_read_cost_no_more_than_the_queue() {
    let mut line = line();
    line.session.registered();
    line.pipe().room = 0;
    for _ in 0..20_000 {
        line.feed(&frame(PING, &[7; 125]));
    }
    assert!(line.session.is_open());
    line.feed(&frame(PING, b"the last"));
    line.pipe().room = usize::MAX;
    line.turn();
    let frames = line.frames();
    // RFC 6455 section 5.5.3: the most recent ping is answered.
    assert_eq!(frames.last(), Some(&(PONG, b"the last".to_vec())));
    assert!(frames.len() * 127 < 259 * 1024);
    line.feed(&frame(PING, b"and now"));
    assert_eq!(line.frames().last(), Some(&(PONG, b"and now".to_vec())));
    // Who reads has every ping answered.
    line.feed(&frame(PING, &[7; 125]).repeat(100));
    assert_eq!(line.frames().len(), 100);
}

// ---- Rest ----

#[test]
fn a_session_at_rest_has_no_codec() {
    let mut line = line();
    assert!(line.session.is_at_rest());
    for payload in [0, 1, 125, 126, 4096, 0xffff, 0x10000] {
        for first in [TEXT, 0x82] {
            line.feed(&frame(first, &vec![b'x'; payload]));
            line.session.send("x".repeat(payload), &mut line.shared);
            line.session.flush(&mut line.shared);
            assert!(line.session.is_at_rest(), "{payload}");
        }
    }
    line.feed(&[frame(TEXT, b"a"), frame(PING, b"b"), frame(PONG, b"c"), frame(TEXT, b"d")].concat());
    assert!(line.session.is_at_rest());
    for payload in [0, 1, 0xffff] {
        line.events.clear();
        let payload = vec![b'x'; payload];
        line.feed(&[frame(0x01, b""), frame(0x00, b""), frame(PING, b""), frame(0x80, &payload)].concat());
        assert_eq!(line.events[0].len(), payload.len());
        assert!(line.session.is_at_rest());
    }
}

#[test]
fn a_session_with_something_in_its_codec_keeps_it() {
    let bytes = frame(TEXT, b"message");
    for cut in 1..bytes.len() {
        let mut line = line();
        line.feed(&bytes[..cut]);
        assert!(!line.session.is_at_rest(), "{cut} bytes of a frame are inside");
        line.feed(&bytes[cut..]);
        assert_eq!(line.events, ["message"]);
        assert!(line.session.is_at_rest());
    }
    let mut line = line();
    line.feed(&frame(0x01, b"mess"));
    assert!(!line.session.is_at_rest(), "a fragment is inside");
    line.feed(&frame(0x80, b"age"));
    assert_eq!(line.events, ["message"]);

    let mut line = self::line();
    line.pipe().room = 0;
    line.feed(&frame(PING, b""));
    assert!(!line.session.is_at_rest(), "a pong waits to go out");
    line.pipe().room = 100;
    line.turn();
    assert!(line.session.is_at_rest());
}

#[test]
fn a_close_finds_room_where_pongs_have_taken_it_all() {
    for ours in [true, false] {
        let mut line = line();
        line.session.registered();
        line.pipe().room = 0;
        for _ in 0..3000 {
            line.feed(&frame(PING, &[7; 125]));
        }
        if ours {
            line.session.close(End::GoingAway, &mut line.shared);
        } else {
            line.feed(&frame(CLOSE, &close(1000, "")));
        }
        line.pipe().room = usize::MAX;
        line.turn();
        let code = if ours { 1001u16 } else { 1000 };
        let frames = line.frames();
        let last = frames.last().unwrap();
        assert_eq!((last.0, &last.1[..2]), (CLOSE, &code.to_be_bytes()[..]));
    }
}

#[test]
fn pongs_that_were_left_out_take_no_room() {
    let mut line = line();
    line.session.registered();
    line.pipe().room = 0;
    for _ in 0..20_000 {
        line.feed(&frame(PING, &[7; 125]));
    }
    // All is taken but a little.
    line.pipe().room = 256 * 1024;
    line.turn();
    assert!(!line.session.is_at_rest());
    assert!(line.session.has_room(&["x".repeat(1000)], &line.shared));
}

#[test]
fn who_has_taken_all_is_not_slow_whatever_does_not_fit() {
    let mut line = line();
    line.session.registered();
    line.pass(12);
    assert!(!line.session.has_room(&["x".repeat(300 * 1024)], &line.shared));
    line.pass(12);
    assert!(line.session.is_open());
}

#[test]
fn the_largest_message_fits_an_empty_queue_when_it_goes_out() {
    for message_bytes_max in [64 << 10, 128 << 10, 16 << 20] {
        let mut line = Line::open(Config { message_bytes_max, ..Config::default() });
        let id = "\u{1}".repeat(128);
        let candidate = format!("\"{}\"", "\\\"".repeat(message_bytes_max / 128 - 8));
        let reply = Reply::Candidate { candidate: &candidate, id: &id }.text();
        assert!(line.session.has_room(&vec![reply; 64], &line.shared));
        let offer = format!("\"{}\"", "\\\"".repeat(message_bytes_max / 2));
        let reply = Reply::Offer { sdp: &offer, target: &id, id: Some(&id) }.text();
        assert!(line.session.has_room(&[reply], &line.shared));
    }
}

// ---- The budget ----

fn with_memory(bytes: usize) -> Line {
    let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES + bytes);
    let mut line = Line::open(Config { memory_bytes_max, ..Config::default() });
    line.session.registered();
    line
}

#[test]
fn a_queue_takes_no_more_memory_than_there_is() {
    let mut line = with_memory(100_000);
    line.pipe().room = 0;
    let texts = ["x".repeat(10_000)];
    let mut queued = 0;
    while line.session.has_room(&texts, &line.shared) {
        line.session.send(texts[0].clone(), &mut line.shared);
        queued += 1;
        assert!(line.shared.budget.allows(0));
    }
    assert!(line.session.is_open() && (3..10).contains(&queued), "{queued}");
    // What the server itself has to say cannot be left out.
    line.session.send(texts[0].clone(), &mut line.shared);
    assert_eq!(line.session.end(), Some(End::NoMemory));
    line.pipe().room = usize::MAX;
    line.turn();
    assert_eq!(line.frames()[queued], (CLOSE, close(1013, "server out of memory")));
    line.feed(&frame(CLOSE, b""));
    check_budget(line, "");
}

#[test]
fn without_memory_only_those_who_need_much_are_disturbed() {
    let mut line = with_memory(0);
    for _ in 0..1000 {
        line.feed(&[frame(PING, b"a"), frame(TEXT, b"b"), frame(PING, b"c")].concat());
        line.session.send("x".repeat(ALWAYS_HELD_BYTES - 10), &mut line.shared);
        line.turn();
        assert_eq!(line.frames().len(), 3);
    }
    line.feed(&frame(PING, b"comes in two")[..9]);
    line.feed(&frame(PING, b"comes in two")[9..]);
    assert_eq!(line.frames(), [(PONG, b"comes in two".to_vec())]);
    line.feed(&frame(0x01, b"fragment"));
    assert_eq!(line.session.end(), Some(End::NoMemory));
    assert_eq!(line.frames(), [(CLOSE, close(1013, "server out of memory"))]);
    check_budget(line, "");
}

#[test]
fn what_is_announced_is_charged_before_it_comes() {
    let mut line = with_memory(100_000);
    line.feed(&frame(TEXT, &[b'x'; 30_000])[..100]);
    assert!(line.session.is_open());
    assert!(!line.shared.budget.allows(40_000));
    line.feed(&frame(TEXT, &[b'x'; 30_000])[100..]);
    assert_eq!(line.events.len(), 1);
    assert!(line.session.is_at_rest() && line.shared.budget.allows(100_000));
    line.feed(&frame(TEXT, &[b'x'; 60_000])[..100]);
    assert_eq!(line.session.end(), Some(End::NoMemory));
}

#[test]
fn the_room_for_a_close_is_charged() {
    let mut line = with_memory(1_000_000);
    line.pipe().room = 0;
    line.session.send("x".repeat(60_000), &mut line.shared);
    let used = line.shared.budget.used();
    // The queue had no room left, and has doubled.
    line.session.close(End::GoingAway, &mut line.shared);
    assert!(line.shared.budget.used() > used + 60_000);
    check_budget(line, "");
}

#[test]
fn an_answer_takes_no_more_memory_than_there_is_and_none_once_it_is_sent() {
    for (bytes, expected) in [(10_000, "503"), (100_000, "200")] {
        let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES + bytes);
        let mut line = Line::new(Door::Main, Config { memory_bytes_max, ..Config::default() });
        line.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(line.shared.budget.used(), BASE_BYTES + CONNECTION_BYTES);
        assert_eq!(status(&mut line), expected);
        check_budget(line, expected);
    }
}

#[test]
fn a_head_takes_no_more_memory_than_there_is() {
    let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES);
    let mut line = Line::new(Door::Main, Config { memory_bytes_max, ..Config::default() });
    line.feed(b"GET /ws HT");
    assert!(line.sent().is_empty());
    line.feed(&[b'x'; ALWAYS_HELD_BYTES]);
    assert_eq!(status(&mut line), "503");
    check_budget(line, "");
    // What comes at once needs no memory while it waits.
    check_budget(with_memory(0), "");
}
