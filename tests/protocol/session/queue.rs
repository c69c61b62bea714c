//! The outbound queue of a slow reader, and paused input.

use super::open_session;
use crate::common::pipe::{CLOSE, PING, PONG, TEXT, TestSession, close, frame};
use noroshi::config::Config;
use noroshi::limits::{LARGE_QUEUE_BYTES_MAX_FLOOR, QUEUE_BYTES_MAX_FLOOR, QUEUE_BYTES_RESERVE};
use noroshi::message::Message;
use noroshi::protocols::noroshi::message::ServerMessage;
use noroshi::session::{CloseReason, Event, ReadOutcome, SharedFrame};

/// Fills the queue with forwarded messages of 1,004 bytes. Returns their number.
fn fill_queue(test: &mut TestSession) -> usize {
    test.session.on_registered();
    test.pipe().writable_bytes = 0;
    let texts = ["x".repeat(1000)];
    let mut queued = 0;
    while test.session.can_queue(&texts, &test.shared) {
        test.session.send(texts[0].clone(), &mut test.shared);
        queued += 1;
    }
    queued
}

#[test]
fn forwarded_messages_leave_a_reserve_for_the_server() {
    let mut test = open_session();
    let mut queued = fill_queue(&mut test);
    assert_eq!(queued, QUEUE_BYTES_MAX_FLOOR / 1004);
    assert!(test.session.is_open());
    // A slow reader is not closed: each byte that it reads buys ten seconds.
    for _ in 0..10 {
        test.advance(9);
        assert!(!test.session.can_queue(&["x".repeat(1000)], &test.shared));
        test.feed(&frame(PONG, b""));
        test.pipe().writable_bytes = 1;
        test.process();
        assert!(test.session.is_open());
    }
    // The reserve is for the server's own messages. A peer that reads bytes may be sent as much again as a burst of one
    // sender can cause, and one message more.
    let config = &test.shared.config;
    let max = QUEUE_BYTES_MAX_FLOOR + QUEUE_BYTES_RESERVE + config.queue_bytes_burst_max();
    while test.session.is_open() {
        test.session.send("y".repeat(1000), &mut test.shared);
        queued += usize::from(test.session.is_open());
        assert!(queued * 1004 <= max + 2 * 1004);
    }
    assert!(queued * 1004 > max - 2 * 1004);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Slow));
    // Queued messages are still sent to a peer that resumes reading, followed by the reason.
    test.pipe().writable_bytes = usize::MAX;
    test.process();
    let frames = test.take_frames();
    assert_eq!(frames.len(), queued + 1);
    assert_eq!(frames[queued], (CLOSE, close(1013, "reads too slowly")));
}

#[test]
fn peer_that_reads_nothing_is_closed_by_the_message_that_does_not_fit() {
    let mut test = open_session();
    fill_queue(&mut test);
    test.session.send("y".repeat(60 * 1024), &mut test.shared);
    assert!(test.session.is_open());
    for _ in 0..5 {
        test.advance(2);
        test.feed(&frame(PONG, b""));
    }
    test.session.send("y".repeat(10 * 1024), &mut test.shared);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Slow));
}

#[test]
fn reading_from_a_full_queue_is_a_liveness_signal() {
    let mut test = open_session();
    fill_queue(&mut test);
    // It sends nothing and answers no ping because it has not read that far.
    for _ in 0..20 {
        test.advance(9);
        test.pipe().writable_bytes = 1;
        test.process();
        assert!(test.session.is_open());
    }
    // It is closed once it stops reading.
    assert!(!test.session.can_queue(&["x".repeat(1000)], &test.shared));
    test.advance(11);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Slow));
}

#[test]
fn ping_overtakes_a_full_queue() {
    let mut test = open_session();
    fill_queue(&mut test);
    test.pipe().writable_bytes = 1;
    test.process();
    test.session.ping(&mut test.shared);
    test.pipe().writable_bytes = 1003 + 2;
    test.process();
    let frames = test.take_frames();
    assert_eq!(frames.iter().map(|(first, _)| *first).collect::<Vec<_>>(), [TEXT, PING]);
}

/// The pause lasts longer than two ping intervals. Pongs are not read during it, so silence does not count.
#[test]
fn paused_session_is_not_closed_as_silent() {
    let mut test = open_session();
    test.session.on_registered();
    test.session.pause();
    test.advance(60);
    assert!(test.session.is_open());
    test.session.resume(test.shared.now);
    test.advance(49);
    assert!(test.session.is_open());
    test.advance(2);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Silent));
}

/// Held input is handled in order after the pause, and its memory is counted until then.
#[test]
fn held_input_is_handled_later_and_counted() {
    let mut test = open_session();
    test.session.on_registered();
    let before = test.shared.budget.used();
    test.pipe().input.extend([frame(TEXT, b"1"), frame(TEXT, b"2"), frame(PING, b"3")].concat());
    assert_eq!(test.session.read(&mut test.scratch, &mut test.shared), ReadOutcome::Short);
    let first = test.session.next_event(&mut test.scratch, &mut test.shared);
    assert!(matches!(first, Some(Event::Message(Message::Text("1")))));
    assert!(test.session.defer_input(&mut test.scratch, &mut test.shared));
    assert!(test.session.next_event(&mut test.scratch, &mut test.shared).is_none());
    test.session.flush(&mut test.shared);
    assert!(test.shared.budget.used() > before);
    test.process();
    assert_eq!(test.events, ["2"]);
    assert_eq!(test.take_frames(), [(PONG, b"3".to_vec())]);
    assert_eq!(test.shared.budget.used(), before);
}

/// Input of one session never reaches another session.
#[test]
fn read_discards_input_left_by_another_session() {
    let mut test = open_session();
    test.session.on_registered();
    test.pipe().input.extend(frame(TEXT, b"mine"));
    test.session.read(&mut test.scratch, &mut test.shared);
    let mut other = TestSession::open(Config::default());
    // The server clears the scratch buffer when it leaves a session early.
    test.scratch.clear();
    assert_eq!(other.session.read(&mut test.scratch, &mut other.shared), ReadOutcome::WouldBlock);
    assert!(other.session.next_event(&mut test.scratch, &mut other.shared).is_none());
}

#[test]
fn stalled_reader_is_closed_after_ten_seconds() {
    let mut test = open_session();
    test.session.on_registered();
    test.pipe().writable_bytes = 0;
    test.session.send("x".repeat(200 * 1024), &mut test.shared);
    test.advance(15);
    assert!(test.session.is_open(), "the queue is not full");
    assert!(!test.session.can_queue(&["x".repeat(100 * 1024)], &test.shared));
    test.advance(1);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Slow));
    test.advance(2);
    assert!(test.session.is_closed());
}

#[test]
fn pings_from_a_stalled_reader_use_no_more_than_the_queue() {
    let mut test = open_session();
    test.session.on_registered();
    test.pipe().writable_bytes = 0;
    for _ in 0..20_000 {
        test.feed(&frame(PING, &[7; 125]));
    }
    assert!(test.session.is_open());
    test.feed(&frame(PING, b"the last"));
    test.pipe().writable_bytes = usize::MAX;
    test.process();
    let frames = test.take_frames();
    // RFC 6455 section 5.5.3: the most recent ping is answered.
    assert_eq!(frames.last(), Some(&(PONG, b"the last".to_vec())));
    assert!(frames.len() * 127 < 259 * 1024);
    test.feed(&frame(PING, b"and now"));
    assert_eq!(test.take_frames().last(), Some(&(PONG, b"and now".to_vec())));
    // Every ping of a peer that reads is answered.
    test.feed(&frame(PING, &[7; 125]).repeat(100));
    assert_eq!(test.take_frames().len(), 100);
}

#[test]
fn close_frame_fits_a_queue_full_of_pongs() {
    for ours in [true, false] {
        let mut test = open_session();
        test.session.on_registered();
        test.pipe().writable_bytes = 0;
        for _ in 0..3000 {
            test.feed(&frame(PING, &[7; 125]));
        }
        if ours {
            test.session.close(CloseReason::GoingAway, &mut test.shared);
        } else {
            test.feed(&frame(CLOSE, &close(1000, "")));
        }
        test.pipe().writable_bytes = usize::MAX;
        test.process();
        let code = if ours { 1001u16 } else { 1000 };
        let frames = test.take_frames();
        let last = frames.last().unwrap();
        assert_eq!((last.0, &last.1[..2]), (CLOSE, &code.to_be_bytes()[..]));
    }
}

#[test]
fn dropped_pongs_use_no_memory() {
    let mut test = open_session();
    test.session.on_registered();
    test.pipe().writable_bytes = 0;
    let before = test.shared.budget.used();
    for _ in 0..20_000 {
        test.feed(&frame(PING, &[7; 125]));
    }
    assert!(test.shared.budget.used() - before < 8 * 1024);
    assert!(test.session.can_queue(&["x".repeat(QUEUE_BYTES_MAX_FLOOR - 200)], &test.shared));
}

#[test]
fn reader_with_an_empty_queue_is_not_slow() {
    let mut test = open_session();
    test.session.on_registered();
    test.advance(12);
    assert!(!test.session.can_queue(&["x".repeat(300 * 1024)], &test.shared));
    test.advance(12);
    assert!(test.session.is_open());
}

/// A message of the server that is larger than the queue and its reserve is sent if nothing is queued before it, however
/// long ago the peer last took bytes.
#[test]
fn message_larger_than_the_queue_is_sent_through_an_empty_queue() {
    for partial_input in [&b""[..], &frame(TEXT, b"partial")[..3]] {
        let mut test = open_session();
        test.session.on_registered();
        test.feed(partial_input);
        test.advance(11);
        let bytes = QUEUE_BYTES_MAX_FLOOR + QUEUE_BYTES_RESERVE + 1;
        test.session.send("x".repeat(bytes), &mut test.shared);
        assert!(test.session.is_open(), "{partial_input:?}");
        test.process();
        assert_eq!(test.take_frames()[0].1.len(), bytes);
    }
}

#[test]
fn largest_message_fits_an_empty_queue() {
    for message_bytes_max in [64 << 10, 128 << 10, 16 << 20] {
        let mut test = TestSession::open(Config { message_bytes_max, ..Config::default() });
        let id = "\u{1}".repeat(128);
        let candidate = format!("\"{}\"", "\\\"".repeat(message_bytes_max / 128 - 8));
        let reply = ServerMessage::Candidate { candidate: &candidate, id: &id }.to_json();
        assert!(test.session.can_queue(&vec![reply; 64], &test.shared));
        let offer = format!("\"{}\"", "\\\"".repeat(message_bytes_max / 2));
        let reply = ServerMessage::Offer { sdp: &offer, target: &id, id: Some(&id) }.to_json();
        assert!(test.session.can_queue(&[reply], &test.shared));
    }
}

/// Forwards shared messages of 1,004 bytes until the queue is full. Returns their number.
fn fill_with_shared_frames(test: &mut TestSession) -> usize {
    test.session.on_registered();
    test.pipe().writable_bytes = 0;
    let mut queued = 0;
    loop {
        let frame = SharedFrame::text(&"x".repeat(1000), &test.shared);
        if !test.session.forward_shared(&frame, &mut test.shared) {
            return queued;
        }
        queued += 1;
    }
}

#[test]
fn queue_has_the_same_limit_for_shared_frames() {
    let mut test = open_session();
    assert_eq!(fill_with_shared_frames(&mut test), QUEUE_BYTES_MAX_FLOOR / 1004);
    assert!(!test.session.can_queue(&["x".repeat(1000)], &test.shared));
    // Messages of the server have their reserve behind them.
    test.session.send("y".repeat(60 * 1024), &mut test.shared);
    assert!(test.session.is_open());
    test.advance(11);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Slow));
    test.pipe().writable_bytes = usize::MAX;
    test.process();
    let frames = test.take_frames();
    let expected = QUEUE_BYTES_MAX_FLOOR / 1004;
    assert!(frames[..expected].iter().all(|frame| *frame == (TEXT, "x".repeat(1000).into_bytes())));
    assert_eq!(frames[expected], (TEXT, "y".repeat(60 * 1024).into_bytes()));
    assert_eq!(frames.last(), Some(&(CLOSE, close(1013, "reads too slowly"))));
    test.feed(&frame(CLOSE, b""));
    super::check_budget(test, "");
}

#[test]
fn large_queue_holds_two_mebibytes() {
    let mut test = open_session();
    test.session.enlarge_queue();
    assert_eq!(fill_with_shared_frames(&mut test), LARGE_QUEUE_BYTES_MAX_FLOOR / 1004);
    test.pipe().is_broken = true;
    test.process();
    super::check_budget(test, "");
}
