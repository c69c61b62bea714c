//! The words between connections and signaling protocols: what can happen, and what a protocol can do.

use std::borrow::Cow;

use crate::memory_budget::Reservation;
use crate::named_enum::named_enum;
use crate::query::Query;
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

    /// The connection of these bits, as [`Conn::bits`] gives them.
    pub fn from_bits(bits: u64) -> Conn {
        Conn(bits)
    }

    /// Number and slot in one.
    pub fn bits(self) -> u64 {
        self.0
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

named_enum! {
    /// A signaling protocol. The first is our own.
    pub enum ProtocolId {
        /// The README's.
        Noroshi = "noroshi",
        /// OpenAyame's.
        Ayame = "ayame",
        /// matchbox's.
        Matchbox = "matchbox",
    }
}

/// What the upgrade of a connection asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The protocol, by the path.
    pub protocol: ProtocolId,
    /// The room, by the path; empty: the default room, or none is named there.
    pub room: String,
    /// What was behind the `?`.
    pub query: Query,
}

/// Where a connection is, and what it does there. For the operator.
#[derive(Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its room.
    pub room: &'a str,
    /// Its id, if it has one.
    pub id: Option<Cow<'a, str>>,
    /// A word of its protocol's.
    pub state: &'static str,
}

/// All that can happen.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A connection is open, which asked for this, and of whom its token, where one is needed, says this.
    Connected(Conn, &'a Target, Option<&'a Claims>),
    /// It sent a message of text. This alone is no sign of life.
    Text(Conn, &'a str),
    /// It sent a message of bytes.
    Binary(Conn, &'a [u8]),
    /// It sent a message that was dropped, because there were too many.
    Dropped {
        /// The connection.
        conn: Conn,
        /// Whether it is to be told, which it is at most once a second.
        tell: bool,
    },
    /// Something arrived from it, be it a pong or half a frame. A protocol hears of this only from whom it had probed.
    Alive(Conn),
    /// Whom the protocol had probed did not show life in time.
    Silent(Conn),
    /// It is gone, or about to be: nothing more is sent to it.
    Disconnected(Conn),
    /// Time has passed. Due when the protocol has said so, allowed at any time.
    Time,
}

impl Input<'_> {
    /// The connection that something happened to.
    pub fn conn(&self) -> Option<Conn> {
        match self {
            Input::Connected(conn, ..)
            | Input::Text(conn, _)
            | Input::Binary(conn, _)
            | Input::Dropped { conn, .. }
            | Input::Alive(conn)
            | Input::Silent(conn)
            | Input::Disconnected(conn) => Some(*conn),
            Input::Time => None,
        }
    }
}

/// Why a protocol closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It showed no life while another claimed its place.
    Replaced,
    /// It went on sending too much.
    RateLimited,
    /// There is nothing more to say.
    Finished,
}

/// Carries out the effects of a protocol, in order.
pub trait Outbox {
    /// Returns whether the queue of this peer has room to forward all of these.
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool;
    /// Reserves memory for something that a protocol stores, if `--max-memory` allows it.
    fn reserve(&mut self, bytes: usize) -> Option<Reservation>;
    /// Queues a text message.
    fn send(&mut self, to: Conn, text: String);
    /// Queues a binary message.
    fn send_binary(&mut self, to: Conn, bytes: &[u8]);
    /// Queues a WebSocket ping. A peer that lives answers it.
    fn ping(&mut self, to: Conn);
    /// Stops reading from a connection. What the peer sends stays in the kernel's buffers, so that TCP holds it back.
    fn pause_reading(&mut self, conn: Conn);
    /// Reads from a connection again.
    fn resume_reading(&mut self, conn: Conn);
    /// Closes a connection. Its protocol has forgotten it.
    fn close(&mut self, conn: Conn, why: Close);
    /// Records that a connection has registered an id in a room: its time for that no longer runs. For the log, too.
    fn registered(&mut self, conn: Conn, room: &str, id: &str);
    /// Records that a protocol has forgotten a connection, which was this member. Called once for each. For the log.
    fn disconnected(&mut self, conn: Conn, protocol: ProtocolId, member: &Member<'_>);
}
