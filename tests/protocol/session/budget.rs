//! The memory budget of a session (`--max-memory`).

use super::{check_budget, status};
use crate::common::pipe::{CLOSE, PING, PONG, TEXT, TestSession, close, frame};
use noroshi::config::Config;
use noroshi::http::ListenerKind;
use noroshi::limits::{
    ALWAYS_HELD_BYTES, BASE_BYTES, CONNECTION_BYTES, CONTROL_QUEUE_BYTES_MAX, SHARED_FRAME_OVERHEAD_BYTES,
};
use noroshi::session::{CloseReason, SharedFrame};

fn with_memory(bytes: usize) -> TestSession {
    let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES + bytes);
    let mut test = TestSession::open(Config { memory_bytes_max, ..Config::default() });
    test.session.on_registered();
    test
}

#[test]
fn queue_stays_within_the_memory_budget() {
    let mut test = with_memory(100_000);
    test.pipe().writable_bytes = 0;
    let texts = ["x".repeat(10_000)];
    let mut queued = 0;
    while test.session.can_queue(&texts, &test.shared) {
        test.session.send(texts[0].clone(), &mut test.shared);
        queued += 1;
        assert!(test.shared.budget.allows(0));
    }
    assert!(test.session.is_open() && (3..10).contains(&queued), "{queued}");
    // The server's own messages cannot be dropped, so the session is closed.
    test.session.send(texts[0].clone(), &mut test.shared);
    assert_eq!(test.session.close_reason(), Some(CloseReason::NoMemory));
    test.pipe().writable_bytes = usize::MAX;
    test.process();
    assert_eq!(test.take_frames()[queued], (CLOSE, close(1013, "server out of memory")));
    test.feed(&frame(CLOSE, b""));
    check_budget(test, "");
}

#[test]
fn without_memory_only_sessions_that_need_buffers_are_closed() {
    let mut test = with_memory(0);
    for _ in 0..1000 {
        test.feed(&[frame(PING, b"a"), frame(TEXT, b"b"), frame(PING, b"c")].concat());
        test.session.send("x".repeat(ALWAYS_HELD_BYTES - 10), &mut test.shared);
        test.process();
        assert_eq!(test.take_frames().len(), 3);
    }
    test.feed(&frame(PING, b"comes in two")[..9]);
    test.feed(&frame(PING, b"comes in two")[9..]);
    assert_eq!(test.take_frames(), [(PONG, b"comes in two".to_vec())]);
    test.feed(&frame(0x01, b"fragment"));
    assert_eq!(test.session.close_reason(), Some(CloseReason::NoMemory));
    assert_eq!(test.take_frames(), [(CLOSE, close(1013, "server out of memory"))]);
    check_budget(test, "");
}

#[test]
fn announced_frame_length_is_charged_before_the_payload_arrives() {
    let mut test = with_memory(100_000);
    test.feed(&frame(TEXT, &[b'x'; 30_000])[..100]);
    assert!(test.session.is_open());
    assert!(!test.shared.budget.allows(40_000));
    test.feed(&frame(TEXT, &[b'x'; 30_000])[100..]);
    assert_eq!(test.events.len(), 1);
    assert!(test.session.is_idle() && test.shared.budget.allows(100_000));
    test.feed(&frame(TEXT, &[b'x'; 60_000])[..100]);
    assert_eq!(test.session.close_reason(), Some(CloseReason::NoMemory));
}

#[test]
fn queue_growth_for_a_close_frame_is_charged() {
    let mut test = with_memory(1_000_000);
    test.pipe().writable_bytes = 0;
    test.session.send("x".repeat(60_000), &mut test.shared);
    let used = test.shared.budget.used();
    // The full queue does not double its capacity for the Close frame.
    test.session.close(CloseReason::GoingAway, &mut test.shared);
    assert_eq!(test.shared.budget.used(), used + CONTROL_QUEUE_BYTES_MAX);
    check_budget(test, "");
}

#[test]
fn response_stays_within_the_memory_budget_and_is_released_once_sent() {
    for (bytes, expected) in [(10_000, "503"), (100_000, "200")] {
        let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES + bytes);
        let mut test = TestSession::new(ListenerKind::Main, Config { memory_bytes_max, ..Config::default() });
        test.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(test.shared.budget.used(), BASE_BYTES + CONNECTION_BYTES);
        assert_eq!(status(&mut test), expected);
        check_budget(test, expected);
    }
}

#[test]
fn request_head_stays_within_the_memory_budget() {
    let memory_bytes_max = Some(BASE_BYTES + CONNECTION_BYTES);
    let mut test = TestSession::new(ListenerKind::Main, Config { memory_bytes_max, ..Config::default() });
    test.feed(b"GET /ws HT");
    assert!(test.take_output().is_empty());
    test.feed(&[b'x'; ALWAYS_HELD_BYTES]);
    assert_eq!(status(&mut test), "503");
    check_budget(test, "");
    // A head that arrives complete needs no buffer.
    check_budget(with_memory(0), "");
}

/// Messages for which the queue had room do not close their receiver, however little memory is left.
#[test]
fn messages_that_may_be_forwarded_do_not_close_the_receiver() {
    let mut forwarded = 0;
    for bytes in (20_000..100_000).step_by(500) {
        let mut test = with_memory(bytes);
        test.pipe().writable_bytes = 0;
        // A queue without spare capacity.
        test.session.send("x".repeat(10_000), &mut test.shared);
        let texts = vec!["y".repeat(300); 8];
        if test.session.is_open() && test.session.can_queue(&texts, &test.shared) {
            for text in texts {
                test.session.push_forwarded(text, &mut test.shared);
            }
            assert!(test.session.is_open(), "with {bytes} bytes of memory");
            forwarded += 1;
        }
    }
    assert!(forwarded > 10);
}

#[test]
fn frame_that_queues_share_is_charged_once() {
    let mut test = with_memory(100_000);
    test.pipe().writable_bytes = 0;
    let used = test.shared.budget.used();
    let text = "x".repeat(10_000);
    let frame = SharedFrame::text(&text, &test.shared);
    let charged = 10_000 + 4 + SHARED_FRAME_OVERHEAD_BYTES;
    assert_eq!(test.shared.budget.used(), used + charged);
    for _ in 0..20 {
        assert!(test.session.forward_shared(&frame, &mut test.shared), "200,000 bytes take 10,000");
    }
    // Its places in the queue, and the buffer of the response to the upgrade.
    let others = test.shared.budget.used() - used - charged;
    assert!((20 * 16..=40 * 16 + 256).contains(&others), "{others}");
    // A further frame that exceeds the limit is not queued, and its memory is released.
    let before = test.shared.budget.used();
    let large = SharedFrame::text(&"x".repeat(90_000), &test.shared);
    assert!(!test.shared.budget.allows(0));
    assert!(!test.session.forward_shared(&large, &mut test.shared));
    drop(large);
    assert_eq!(test.shared.budget.used(), before);
    drop(frame);
    assert_eq!(test.shared.budget.used(), before, "the queue still refers to it");
    test.pipe().writable_bytes = usize::MAX;
    test.process();
    assert_eq!(test.take_frames(), vec![(TEXT, text.into_bytes()); 20]);
    assert_eq!(test.shared.budget.used(), used);
    check_budget(test, "");
}

#[test]
fn small_shared_frames_are_queued_without_memory() {
    let mut test = with_memory(0);
    test.pipe().writable_bytes = 0;
    let mut queued = 0;
    loop {
        let frame = SharedFrame::text(&"x".repeat(100), &test.shared);
        if !test.session.forward_shared(&frame, &mut test.shared) {
            break;
        }
        queued += 1;
    }
    assert_eq!(queued, ALWAYS_HELD_BYTES / (102 + SHARED_FRAME_OVERHEAD_BYTES));
    assert!(test.session.is_open());
    test.pipe().writable_bytes = usize::MAX;
    test.process();
    assert_eq!(test.take_frames().len(), queued);
    check_budget(test, "");
}
