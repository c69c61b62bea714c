//! What a signaling protocol is told, and what it can do: the words between the loop and the rules.
//!
//! A protocol is pure. One [`Input`] goes in, with the time as an argument; [`Effect`]s come out into the [`Outbox`] that
//! is handed in with it.

use crate::token::Claims;

/// A connection: a number that is never used again, and a slot of a table, which is. The two share 64 bits, so
/// that a long-lived reference costs eight bytes and can never reach the successor in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conn(u64);

impl Conn {
    const SLOT_BITS: u32 = 24;

    /// The connection of this number (below 2^40: thirty years at a thousand a second) in this slot.
    ///
    /// # Panics
    /// If the slot is 2^24 or more; `--max-connections` stays far below.
    pub fn new(number: u64, slot: usize) -> Conn {
        assert!(slot < 1 << Self::SLOT_BITS);
        Conn(number << Self::SLOT_BITS | slot as u64)
    }

    /// Counted from the start of the server.
    pub fn number(self) -> u64 {
        self.0 >> Self::SLOT_BITS
    }

    /// Its place in the tables.
    pub fn slot(self) -> usize {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as usize
    }
}

/// All that can happen.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A connection to the room of this name (empty: the default room) is open, of whom its token, where one is needed,
    /// says this.
    Connected(Conn, &'a str, Option<&'a Claims>),
    /// It sent a message of text. A holder of an id that is probed is not alive by this alone.
    Text(Conn, &'a str),
    /// It sent a message of bytes, which are taken for text.
    Binary(Conn, &'a [u8]),
    /// Something arrived from it, be it a pong or half a frame.
    Alive(Conn),
    /// It is gone, or about to be: nothing more is sent to it.
    Disconnected(Conn),
    /// Time has passed. Due when the protocol has said so, allowed at any time.
    Time,
}

/// All that the hub can do.
#[derive(Debug)]
pub enum Effect<'a> {
    /// Send this message.
    Send(Conn, String),
    /// Send a WebSocket ping, so that a living peer shows life.
    Ping(Conn),
    /// Close the connection. The hub has forgotten it but for its name; `Disconnected` is still to be told.
    Close(Conn, Close),
    /// The connection has an id from now on. For the log.
    Registered {
        /// The connection.
        conn: Conn,
        /// Its room.
        room: &'a str,
        /// Its id.
        id: &'a str,
    },
}

/// Why the hub closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It showed no life while another claimed its id.
    Replaced,
    /// It went on sending too much.
    RateLimited,
}

/// Where effects go, in order.
pub trait Outbox {
    /// Whether all of these can still be queued for the peer. Asked before an offer, an answer or candidates are
    /// forwarded; what the server itself has to say is sent in any case.
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool;
    /// Whether the hub may keep so many bytes more than it does. Asked before an offer, candidates or what a claimant
    /// sends are kept.
    fn may_keep(&mut self, bytes: usize) -> bool;
    /// Takes an effect.
    fn push(&mut self, effect: Effect<'_>);
}
