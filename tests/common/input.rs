//! Events of connections as values, so that tests can generate, record and replay them.

use noroshi::http::token::Claims;
use noroshi::message::Message;
use noroshi::protocol::{Conn, Outbox, Target, Times};
use noroshi::protocols::Dispatcher;

/// An event that the server reports to the dispatcher.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    Connected(Conn, &'a Target, Option<&'a Claims>),
    Text(Conn, &'a str),
    Binary(Conn, &'a [u8]),
    Alive(Conn),
    Disconnected(Conn),
    Time,
}

impl Input<'_> {
    /// Returns the connection that the event is about.
    pub fn conn(&self) -> Option<Conn> {
        match self {
            Input::Connected(conn, ..)
            | Input::Text(conn, _)
            | Input::Binary(conn, _)
            | Input::Alive(conn)
            | Input::Disconnected(conn) => Some(*conn),
            Input::Time => None,
        }
    }

    /// Reports the event to a dispatcher.
    pub fn deliver(self, dispatcher: &mut Dispatcher, times: Times, out: &mut dyn Outbox) {
        match self {
            Input::Connected(conn, target, claims) => dispatcher.connect(times, conn, target, claims, out),
            Input::Text(conn, text) => dispatcher.message(times, conn, Message::Text(text), out),
            Input::Binary(conn, bytes) => dispatcher.message(times, conn, Message::Binary(bytes), out),
            Input::Alive(conn) => dispatcher.alive(times, conn, out),
            Input::Disconnected(conn) => dispatcher.disconnect(times, conn, out),
            Input::Time => dispatcher.fire_timers(times, out),
        }
    }
}
