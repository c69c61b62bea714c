//! All connections: their sessions, and how a service reaches them.

use std::io;
use std::mem;
use std::net::Shutdown;

use log::{debug, info};
use mio::net::TcpStream;
use slab::Slab;

use crate::config::REFUSALS_LOGGED_MAX;
use crate::http::Refusal;
use crate::protocol::{Close, Conn, Effect, Outbox};
use crate::session::{self, End, Event, Scratch, Session, Shared};
use crate::stamp::Stamp;

/// All connections, as far as a service reaches them.
pub struct Connections {
    pub(super) entries: Slab<Entry>,
    pub(super) shared: Shared,
    /// Slots that something happened to in this turn.
    pub(super) touched: Vec<usize>,
    /// WebSockets, closing ones included.
    pub(super) upgraded: usize,
    /// Upgrades that were refused since the last sweep began.
    pub(super) refusals: usize,
}

pub(super) struct Entry {
    pub session: Session<TcpStream>,
    pub conn: Conn,
    pub since: Stamp,
    /// Whether it was counted as a WebSocket.
    pub upgraded: bool,
    /// Whether the service knows it.
    pub served: bool,
    /// Whether it is in `touched`.
    pub touched: bool,
    /// Whether it is in `ready`.
    pub ready: bool,
    /// Whether an event said that the peer sends no more: then a short read proves nothing.
    pub half_closed: bool,
}

impl Connections {
    /// Sends a message of bytes, for which the signaling has no use.
    pub fn send_binary(&mut self, to: Conn, bytes: &[u8]) {
        self.reach(to.slot(), |session, shared| session.send_binary(bytes, shared));
    }

    /// Does something with a session, which is flushed at the end of the turn, and parted with if it has ended.
    pub(super) fn reach<T>(
        &mut self,
        slot: usize,
        work: impl FnOnce(&mut Session<TcpStream>, &mut Shared) -> T,
    ) -> T {
        let entry = &mut self.entries[slot];
        if !mem::replace(&mut entry.touched, true) {
            self.touched.push(slot);
        }
        work(&mut entry.session, &mut self.shared)
    }

    /// What a session that was just reached has to say next.
    pub(super) fn next<'a>(&mut self, slot: usize, scratch: &'a mut Scratch) -> Option<Event<'a>> {
        self.entries[slot].session.next(scratch, &mut self.shared)
    }

    /// A request for a WebSocket was refused.
    pub(super) fn refuse(&mut self, slot: usize, status: u16, refusal: &Refusal) {
        let metrics = &mut self.shared.metrics;
        *metrics.refused_upgrades.entry(status).or_default() += 1;
        if let Some(fault) = refusal.fault {
            *metrics.refused_tokens.entry(fault.name()).or_default() += 1;
        }
        self.refusals += 1;
        if self.refusals <= REFUSALS_LOGGED_MAX {
            info!(
                "an upgrade from {} was refused: {status}, {}",
                self.entries[slot].session.address(),
                refusal.why
            );
        }
    }

    /// Says what was not said since the last time.
    pub(super) fn tell_refusals(&mut self) {
        let refusals = mem::take(&mut self.refusals);
        if let Some(more @ 1..) = refusals.checked_sub(REFUSALS_LOGGED_MAX) {
            info!("and {more} more upgrades were refused");
        }
    }

    pub(super) fn upgrade(&mut self, slot: usize) {
        let entry = &mut self.entries[slot];
        entry.upgraded = true;
        entry.served = true;
        self.upgraded += 1;
        self.shared.metrics.connections_total += 1;
    }
}

impl Outbox for Connections {
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool {
        self.entries[to.slot()].session.has_room(texts, &self.shared)
    }

    fn may_keep(&mut self, bytes: usize) -> bool {
        self.shared.budget.allows(bytes)
    }

    fn push(&mut self, effect: Effect<'_>) {
        match effect {
            Effect::Send(to, text) => self.reach(to.slot(), |session, shared| session.send(text, shared)),
            Effect::Ping(to) => self.reach(to.slot(), |session, shared| session.ping(shared)),
            Effect::Close(to, why) => self.reach(to.slot(), |session, shared| {
                let end = match why {
                    Close::Replaced => End::Replaced,
                    Close::RateLimited => End::RateLimited,
                };
                session.close(end, shared);
            }),
            Effect::Registered { conn, room, id } => {
                let entry = &mut self.entries[conn.slot()];
                entry.session.registered();
                debug!(
                    "connection {} from {} registered: room {room:?}, id {id:?}",
                    conn.number(),
                    entry.session.address()
                );
            }
        }
    }
}

impl session::Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}
