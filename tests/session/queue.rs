//! What waits for a peer that does not take it.

use super::line;
use crate::common::pipe::{CLOSE, Line, PING, PONG, TEXT, close, frame};
use noroshi::config::{Config, QUEUE_BYTES_MAX, QUEUE_BYTES_RESERVE};
use noroshi::protocols::noroshi::message::Reply;
use noroshi::session::{CloseReason, Event, ReadOutcome};

/// A peer whose queue is full of forwarded messages, and how many of 1,004 bytes these are.
fn full(line: &mut Line) -> usize {
    line.session.on_registered();
    line.pipe().room = 0;
    let texts = ["x".repeat(1000)];
    let mut queued = 0;
    while line.session.has_room(&texts, &line.shared) {
        line.session.send(texts[0].clone(), &mut line.shared);
        queued += 1;
    }
    queued
}

#[test]
fn forwarded_messages_leave_a_reserve_for_the_server() {
    let mut line = line();
    let mut queued = full(&mut line);
    assert_eq!(queued, QUEUE_BYTES_MAX / 1004);
    assert!(line.session.is_open());
    // A peer that reads slowly is not cut: each byte buys ten seconds.
    for _ in 0..10 {
        line.pass(9);
        assert!(!line.session.has_room(&["x".repeat(1000)], &line.shared));
        line.feed(&frame(PONG, b""));
        line.pipe().room = 1;
        line.turn();
        assert!(line.session.is_open());
    }
    // The reserve is for the server's own messages. A peer that takes bytes may be sent as much again as a burst of one
    // sender can cause, and one message more.
    let config = &line.shared.config;
    let max = QUEUE_BYTES_MAX + QUEUE_BYTES_RESERVE + config.queue_bytes_owed_max();
    while line.session.is_open() {
        line.session.send("y".repeat(1000), &mut line.shared);
        queued += usize::from(line.session.is_open());
        assert!(queued * 1004 <= max + 2 * 1004);
    }
    assert!(queued * 1004 > max - 2 * 1004);
    assert_eq!(line.session.close_reason(), Some(CloseReason::Slow));
    // What was queued is still sent to a peer that reads after all, and the reason after it.
    line.pipe().room = usize::MAX;
    line.turn();
    let frames = line.frames();
    assert_eq!(frames.len(), queued + 1);
    assert_eq!(frames[queued], (CLOSE, close(1013, "reads too slowly")));
}

#[test]
fn a_peer_that_takes_nothing_is_cut_by_the_message_that_does_not_fit() {
    let mut line = line();
    full(&mut line);
    line.session.send("y".repeat(60 * 1024), &mut line.shared);
    assert!(line.session.is_open());
    for _ in 0..5 {
        line.pass(2);
        line.feed(&frame(PONG, b""));
    }
    line.session.send("y".repeat(10 * 1024), &mut line.shared);
    assert_eq!(line.session.close_reason(), Some(CloseReason::Slow));
}

#[test]
fn a_peer_that_takes_bytes_from_a_full_queue_shows_life() {
    let mut line = line();
    full(&mut line);
    // It sends nothing, and answers no ping, because it has not read that far.
    for _ in 0..20 {
        line.pass(9);
        line.pipe().room = 1;
        line.turn();
        assert!(line.session.is_open());
    }
    // When it takes nothing any more, it is cut.
    assert!(!line.session.has_room(&["x".repeat(1000)], &line.shared));
    line.pass(11);
    assert_eq!(line.session.close_reason(), Some(CloseReason::Slow));
}

#[test]
fn a_ping_is_sent_ahead_of_a_full_queue() {
    let mut line = line();
    full(&mut line);
    line.pipe().room = 1;
    line.turn();
    line.session.ping(&mut line.shared);
    line.pipe().room = 1003 + 2;
    line.turn();
    let frames = line.frames();
    assert_eq!(frames.iter().map(|(first, _)| *first).collect::<Vec<_>>(), [TEXT, PING]);
}

/// The pause lasts longer than two ping intervals: the peer's pongs are not read, and its silence does not count.
#[test]
fn a_paused_session_is_not_silent() {
    let mut line = line();
    line.session.on_registered();
    line.session.pause();
    line.pass(60);
    assert!(line.session.is_open());
    line.session.resume(line.shared.now);
    line.pass(49);
    assert!(line.session.is_open());
    line.pass(2);
    assert_eq!(line.session.close_reason(), Some(CloseReason::Silent));
}

/// What was read and not handled is handled later, in order, and its memory is counted meanwhile.
#[test]
fn held_input_is_handled_later_and_counted() {
    let mut line = line();
    line.session.on_registered();
    let before = line.shared.budget.used();
    line.pipe().input.extend([frame(TEXT, b"1"), frame(TEXT, b"2"), frame(PING, b"3")].concat());
    assert_eq!(line.session.read(&mut line.scratch, &mut line.shared), ReadOutcome::Short);
    let first = line.session.next_event(&mut line.scratch, &mut line.shared);
    assert!(matches!(first, Some(Event::Text("1"))));
    assert!(line.session.defer_input(&mut line.scratch, &mut line.shared));
    assert!(line.session.next_event(&mut line.scratch, &mut line.shared).is_none());
    line.session.flush(&mut line.shared);
    assert!(line.shared.budget.used() > before);
    line.turn();
    assert_eq!(line.events, ["2"]);
    assert_eq!(line.frames(), [(PONG, b"3".to_vec())]);
    assert_eq!(line.shared.budget.used(), before);
}

/// Input of one session is never taken for that of another.
#[test]
fn a_read_discards_what_another_session_has_left() {
    let mut line = line();
    line.session.on_registered();
    line.pipe().input.extend(frame(TEXT, b"mine"));
    line.session.read(&mut line.scratch, &mut line.shared);
    let mut other = Line::open(Config::default());
    // The server clears the scratch when it leaves a session early.
    line.scratch.clear();
    assert_eq!(other.session.read(&mut line.scratch, &mut other.shared), ReadOutcome::WouldBlock);
    assert!(other.session.next_event(&mut line.scratch, &mut other.shared).is_none());
}

#[test]
fn who_takes_nothing_from_a_full_queue_for_ten_seconds_is_cut() {
    let mut line = line();
    line.session.on_registered();
    line.pipe().room = 0;
    line.session.send("x".repeat(200 * 1024), &mut line.shared);
    line.pass(15);
    assert!(line.session.is_open(), "the queue is not full");
    assert!(!line.session.has_room(&["x".repeat(100 * 1024)], &line.shared));
    line.pass(1);
    assert_eq!(line.session.close_reason(), Some(CloseReason::Slow));
    line.pass(2);
    assert!(line.session.is_closed());
}

#[test]
fn pings_from_a_peer_that_does_not_read_cost_no_more_than_the_queue() {
    let mut line = line();
    line.session.on_registered();
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

#[test]
fn a_close_finds_room_where_pongs_have_taken_it_all() {
    for ours in [true, false] {
        let mut line = line();
        line.session.on_registered();
        line.pipe().room = 0;
        for _ in 0..3000 {
            line.feed(&frame(PING, &[7; 125]));
        }
        if ours {
            line.session.close(CloseReason::GoingAway, &mut line.shared);
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
    line.session.on_registered();
    line.pipe().room = 0;
    let before = line.shared.budget.used();
    for _ in 0..20_000 {
        line.feed(&frame(PING, &[7; 125]));
    }
    assert!(line.shared.budget.used() - before < 8 * 1024);
    assert!(line.session.has_room(&["x".repeat(QUEUE_BYTES_MAX - 200)], &line.shared));
}

#[test]
fn who_has_taken_all_is_not_slow_whatever_does_not_fit() {
    let mut line = line();
    line.session.on_registered();
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
        let reply = Reply::Candidate { candidate: &candidate, id: &id }.to_json();
        assert!(line.session.has_room(&vec![reply; 64], &line.shared));
        let offer = format!("\"{}\"", "\\\"".repeat(message_bytes_max / 2));
        let reply = Reply::Offer { sdp: &offer, target: &id, id: Some(&id) }.to_json();
        assert!(line.session.has_room(&[reply], &line.shared));
    }
}
