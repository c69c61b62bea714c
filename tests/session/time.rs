//! Silence, and what is to be said in time.

use super::line;
use crate::common::pipe::{CLOSE, PING, PONG, close, frame};
use noroshi::session::CloseReason;

#[test]
fn silence_is_met_with_a_ping_and_then_the_end() {
    let mut line = line();
    line.session.on_registered();
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
    assert_eq!(line.session.close_reason(), Some(CloseReason::Silent));
    line.pass(2);
    assert!(line.session.is_closed());
}

#[test]
fn nobody_is_cut_because_the_server_itself_stood_still() {
    let mut line = line();
    line.session.on_registered();
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
    assert_eq!(line.session.close_reason(), Some(CloseReason::Unregistered));
    let mut line = self::line();
    line.session.on_registered();
    line.pass(40);
    assert!(line.session.is_open());
}
