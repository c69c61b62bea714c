//! What waits for a peer that does not take it.

use super::line;
use crate::common::pipe::{CLOSE, Line, PING, PONG, close, frame};
use noroshi::config::Config;
use noroshi::message::Reply;
use noroshi::session::End;

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
