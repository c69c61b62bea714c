//! What `--max-memory` allows a session.

use super::{check_budget, status};
use crate::common::pipe::{CLOSE, Line, PING, PONG, TEXT, close, frame};
use noroshi::config::{ALWAYS_HELD_BYTES, BASE_BYTES, CONNECTION_BYTES, Config};
use noroshi::http::ListenerKind;
use noroshi::session::CloseReason;

fn with_memory(bytes: usize) -> Line {
    let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES + bytes);
    let mut line = Line::open(Config { memory_bytes_max, ..Config::default() });
    line.session.on_registered();
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
    assert_eq!(line.session.close_reason(), Some(CloseReason::NoMemory));
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
    assert_eq!(line.session.close_reason(), Some(CloseReason::NoMemory));
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
    assert!(line.session.is_idle() && line.shared.budget.allows(100_000));
    line.feed(&frame(TEXT, &[b'x'; 60_000])[..100]);
    assert_eq!(line.session.close_reason(), Some(CloseReason::NoMemory));
}

#[test]
fn the_room_for_a_close_is_charged() {
    let mut line = with_memory(1_000_000);
    line.pipe().room = 0;
    line.session.send("x".repeat(60_000), &mut line.shared);
    let used = line.shared.budget.used();
    // The queue had no room left, and has doubled.
    line.session.close(CloseReason::GoingAway, &mut line.shared);
    assert!(line.shared.budget.used() > used + 60_000);
    check_budget(line, "");
}

#[test]
fn an_answer_takes_no_more_memory_than_there_is_and_none_once_it_is_sent() {
    for (bytes, expected) in [(10_000, "503"), (100_000, "200")] {
        let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES + bytes);
        let mut line = Line::new(ListenerKind::Main, Config { memory_bytes_max, ..Config::default() });
        line.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(line.shared.budget.used(), BASE_BYTES + CONNECTION_BYTES);
        assert_eq!(status(&mut line), expected);
        check_budget(line, expected);
    }
}

#[test]
fn a_head_takes_no_more_memory_than_there_is() {
    let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES);
    let mut line = Line::new(ListenerKind::Main, Config { memory_bytes_max, ..Config::default() });
    line.feed(b"GET /ws HT");
    assert!(line.sent().is_empty());
    line.feed(&[b'x'; ALWAYS_HELD_BYTES]);
    assert_eq!(status(&mut line), "503");
    check_budget(line, "");
    // What comes at once needs no memory while it waits.
    check_budget(with_memory(0), "");
}

/// Messages for which the queue had room do not close their receiver, however little memory is left.
#[test]
fn messages_that_may_be_forwarded_do_not_close_the_receiver() {
    let mut forwarded = 0;
    for bytes in (20_000..100_000).step_by(500) {
        let mut line = with_memory(bytes);
        line.pipe().room = 0;
        // A queue without spare capacity.
        line.session.send("x".repeat(10_000), &mut line.shared);
        let texts = vec!["y".repeat(300); 8];
        if line.session.is_open() && line.session.has_room(&texts, &line.shared) {
            for text in texts {
                line.session.forward(text, &mut line.shared);
            }
            assert!(line.session.is_open(), "with {bytes} bytes of memory");
            forwarded += 1;
        }
    }
    assert!(forwarded > 10);
}
