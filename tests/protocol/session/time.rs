//! Ping, silence and registration timeouts.

use super::open_session;
use crate::common::pipe::{CLOSE, PING, PONG, close, frame};
use noroshi::session::CloseReason;

#[test]
fn silent_peer_is_pinged_and_then_closed() {
    let mut test = open_session();
    test.session.on_registered();
    test.advance(24);
    assert!(test.take_frames().is_empty());
    test.advance(1);
    assert_eq!(test.take_frames(), [(PING, vec![])]);
    test.advance(24);
    // Part of a frame is a liveness signal.
    test.feed(&frame(PONG, b"")[..3]);
    test.advance(25);
    assert_eq!(test.take_frames(), [(PING, vec![])]);
    test.advance(24);
    assert!(test.session.is_open() && test.take_frames().is_empty());
    test.advance(1);
    assert_eq!(test.take_frames(), [(CLOSE, close(4001, "no sign of life"))]);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Silent));
    test.advance(2);
    assert!(test.session.is_closed());
}

#[test]
fn peers_are_not_closed_because_the_server_was_suspended() {
    let mut test = open_session();
    test.session.on_registered();
    test.shared.now += std::time::Duration::from_secs(1000);
    test.advance(1);
    assert_eq!(test.take_frames(), [(PING, vec![])]);
    test.advance(24);
    assert!(test.session.is_open());
    test.advance(1);
    assert!(!test.session.is_open());
}

#[test]
fn unregistered_peer_is_closed_after_thirty_seconds() {
    let mut test = open_session();
    test.advance(29);
    test.feed(&frame(PONG, b""));
    assert!(test.session.is_open());
    test.advance(1);
    assert_eq!(test.session.close_reason(), Some(CloseReason::Unregistered));
    let mut test = open_session();
    test.session.on_registered();
    test.advance(40);
    assert!(test.session.is_open());
}
