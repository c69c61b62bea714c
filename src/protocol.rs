//! The vocabulary between connections and signaling protocols: events, and effects.

use std::borrow::Cow;

use crate::memory_budget::Reservation;
use crate::named_enum::named_enum;
use crate::query::Query;
use crate::token::Claims;

/// Identifies a connection: a number that is never reused, and a slot that is.
///
/// The two share 64 bits, so that a long-lived reference takes eight bytes and never reaches the next connection in the
/// same slot. Tables of connections are indexed by slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conn(u64);

impl Conn {
    const SLOT_BITS: u32 = 24;

    /// Creates the id of the connection with this number (below 2^40: 34 years at 1,000 a second) in this slot.
    ///
    /// # Panics
    /// The slot is 2^24 or more. `--max-connections` is at most 1,000,000.
    pub fn new(number: u64, slot: usize) -> Conn {
        assert!(slot < 1 << Self::SLOT_BITS);
        Conn(number << Self::SLOT_BITS | slot as u64)
    }

    /// Restores an id from its bits, see [`Conn::bits`].
    pub fn from_bits(bits: u64) -> Conn {
        Conn(bits)
    }

    /// Returns number and slot in one integer.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Returns the number, counted from the start of the server.
    pub fn number(self) -> u64 {
        self.0 >> Self::SLOT_BITS
    }

    /// Returns the index into tables of connections.
    pub fn slot(self) -> usize {
        (self.0 & ((1 << Self::SLOT_BITS) - 1)) as usize
    }
}

named_enum! {
    /// A signaling protocol.
    pub enum ProtocolId {
        /// Noroshi's protocol, which `protocols/noroshi/PROTOCOL.md` specifies.
        Noroshi = "noroshi",
        /// The protocol of OpenAyame.
        Ayame = "ayame",
        /// The protocol of matchbox.
        Matchbox = "matchbox",
    }
}

/// What an upgrade asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The protocol, by the path.
    pub protocol: ProtocolId,
    /// The room, by the path. Empty: the default room, or the protocol names rooms in messages.
    pub room: String,
    /// The query of the request target.
    pub query: Query,
}

/// The membership of a connection, for the log and for `GET /rooms`.
#[derive(Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The room.
    pub room: &'a str,
    /// The id, once it is registered.
    pub id: Option<Cow<'a, str>>,
    /// What it is doing, in a word of its protocol.
    pub state: &'static str,
}

/// An event for a protocol.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A connection is open. With what it asked for, and the claims of its token if tokens are required at the upgrade.
    Connected(Conn, &'a Target, Option<&'a Claims>),
    /// A text message came. This alone does not end a probe.
    Text(Conn, &'a str),
    /// A binary message came.
    Binary(Conn, &'a [u8]),
    /// A message was dropped because its sender is over the rate.
    Dropped {
        /// The sender.
        conn: Conn,
        /// Whether to tell the sender. At most once a second.
        tell: bool,
    },
    /// A probed connection showed life: bytes came, or its TCP acknowledged bytes of a full queue.
    Alive(Conn),
    /// A probed connection showed no life in time.
    Silent(Conn),
    /// A connection has ended, or is closing: nothing further is sent to it.
    Disconnected(Conn),
    /// A timer may be due, see [`Protocol::wake_at`](crate::protocols::Protocol::wake_at). Allowed at any time.
    Time,
}

impl Input<'_> {
    /// Returns the connection that the event is about.
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
    /// It showed no life while another connection claimed its id or seat.
    Replaced,
    /// It stayed over the rate for too long.
    RateLimited,
    /// Its protocol has finished with it.
    Finished,
}

/// Carries out the effects of a protocol, in order.
pub trait Outbox {
    /// Returns whether the queue of this peer has room to forward all of these.
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool;
    /// Queues a message for which [`Outbox::has_room`] was asked.
    fn forward(&mut self, to: Conn, text: String);
    /// Returns whether more than half of the queue of this peer is used. Large messages of the server itself, which another
    /// peer has caused, wait then.
    fn is_congested(&self, to: Conn) -> bool;
    /// Returns whether a connection has input that the server had no time to read yet.
    fn has_unread_input(&self, conn: Conn) -> bool;
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
