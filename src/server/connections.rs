//! All connections: the sessions by their slots, who was touched in this turn, and what is said of each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::net::Shutdown;
use std::time::Duration;

use log::{debug, info};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use slab::Slab;

use crate::address::{Address, PerIpCounts};
use crate::config::Config;
use crate::http::{self, ListenerKind, RejectReason};
use crate::limits::{
    ANSWER_TIME_MIN, CLOSES_PER_ITERATION, CONNECTION_BYTES, EVICTION_CANDIDATES_MAX, HEAD_TIME_FULL_MAX,
    HEAD_TIME_MAX, METRICS_AT_ONCE, PLACE_TIME_MIN, REFUSALS_LOGGED_MAX, REFUSED_AT_ONCE,
    SWEEP_PER_ITERATION,
};
use crate::memory_budget::Reservation;
use crate::protocol::{Close, Conn, Member, Outbox, ProtocolId};
use crate::session::{self, End, Event, Scratch, Session, Shared};
use crate::timestamp::Timestamp;
use crate::token::Fault;

/// All connections.
pub(super) struct Connections {
    pub(super) entries: Slab<Entry>,
    pub(super) shared: Shared,
    /// What time it is, since 1970: tokens and credentials go by the wall clock.
    pub(super) wall: Duration,
    /// Whether the server is about to stop, and begins no new room.
    pub(super) is_draining: bool,
    /// How many connections come from each address.
    pub(super) per_ip: PerIpCounts,
    /// ConnTable that something happened to in this turn.
    pub(super) touched: Vec<usize>,
    /// ConnTable whose session is to be read in the next turn, though no event may say so.
    pub(super) ready: Vec<usize>,
    /// Units of work in this turn: messages that were handled or queued. See
    /// [`WORK_PER_ITERATION`](crate::limits::WORK_PER_ITERATION).
    pub(super) work: usize,
    /// Connections so far.
    numbers: u64,
    /// WebSockets, closing ones included.
    pub(super) upgraded: usize,
    /// Those of the metrics listener.
    metrics_sessions: usize,
    /// ConnTable of connections that are not WebSockets, by their numbers, so that the oldest is the first; for each [`ListenerKind`].
    plain: [BTreeMap<u64, usize>; 2],
    /// Upgrades that were refused since the last sweep began.
    refusals: usize,
}

pub(super) struct Entry {
    pub session: Session<TcpStream>,
    pub conn: Conn,
    /// The listener that it came through.
    pub listener: ListenerKind,
    /// Where the peer is: at the other end of TCP, or where a trusted proxy says.
    pub address: Address,
    /// Whether it counts towards the limit of its address.
    pub is_counted: bool,
    pub since: Timestamp,
    /// Whether it was counted as a WebSocket.
    upgraded: bool,
    /// Whether a protocol knows it.
    pub served: bool,
    /// Whether it is in `touched`.
    pub touched: bool,
    /// Whether it is in `ready`.
    pub ready: bool,
    /// Whether an event said that the peer sends no more: then a short read proves nothing.
    pub half_closed: bool,
}

/// There are as many as connections: that it grows is a decision. In a debug build mio's streams are larger.
#[cfg(not(debug_assertions))]
const _: () = assert!(size_of::<Option<Entry>>() <= 80);

impl Connections {
    pub(super) fn new(config: Config) -> Connections {
        let mut shared = Shared::new(config);
        let ends = End::ALL.iter().filter(|end| **end != End::Http);
        shared.metrics.closings = ends.map(|end| (end.name(), 0)).collect();
        shared.metrics.refused_tokens = Fault::ALL.iter().map(|fault| (fault.name(), 0)).collect();
        shared.metrics.refused_upgrades = http::REJECT_STATUSES.map(|status| (status, 0)).into();
        Connections {
            entries: Slab::new(),
            wall: Duration::ZERO,
            is_draining: false,
            per_ip: PerIpCounts::new(shared.config.connections_per_ip_max),
            shared,
            touched: Vec::new(),
            ready: Vec::new(),
            work: 0,
            numbers: 0,
            upgraded: 0,
            metrics_sessions: 0,
            plain: [BTreeMap::new(), BTreeMap::new()],
            refusals: 0,
        }
    }

    /// Does something with a session, and touches it.
    pub(super) fn reach<T>(
        &mut self,
        slot: usize,
        work: impl FnOnce(&mut Session<TcpStream>, &mut Shared) -> T,
    ) -> T {
        self.touch(slot);
        work(&mut self.entries[slot].session, &mut self.shared)
    }

    /// Has a session flushed at the end of the turn, and parted with if it has ended.
    pub(super) fn touch(&mut self, slot: usize) {
        if !mem::replace(&mut self.entries[slot].touched, true) {
            self.touched.push(slot);
        }
    }

    /// Has a session read in the next turn, unless it is going to be anyway.
    pub(super) fn mark_ready(&mut self, slot: usize) {
        if !mem::replace(&mut self.entries[slot].ready, true) {
            self.ready.push(slot);
        }
    }

    /// What a session that was just reached has to say next.
    pub(super) fn next<'a>(&mut self, slot: usize, scratch: &'a mut Scratch) -> Option<Event<'a>> {
        self.entries[slot].session.next(scratch, &mut self.shared)
    }

    /// When another connection can be accepted: now if there is a place, else when an older one gives way.
    pub(super) fn place_at(&self, door: ListenerKind) -> Option<Duration> {
        if self.have_place(door) {
            return Some(self.shared.now);
        }
        self.next_to_evict(door).map(|(at, _)| at)
    }

    /// Makes a place for a connection that was accepted, if there is none: the oldest that is not a WebSocket gives way.
    ///
    /// A server that is full thus still answers `/healthz`, however many connections say nothing. It is called last in a
    /// turn, when nothing refers to the slot that is freed.
    pub(super) fn make_place(&mut self, door: ListenerKind) {
        if self.have_place(door) {
            return;
        }
        if let Some((_, slot)) = self.next_to_evict(door).filter(|(at, _)| *at <= self.shared.now) {
            let entry = &mut self.entries[slot];
            debug!("{} gives way to a new connection", entry.address);
            entry.session.evict(&mut self.shared);
            self.free(slot);
        }
    }

    /// The slot of the connection that gives way next, and from when on it may.
    fn next_to_evict(&self, door: ListenerKind) -> Option<(Duration, usize)> {
        let oldest = self.plain[door as usize].values().take(EVICTION_CANDIDATES_MAX);
        let candidates = oldest.map(|&slot| {
            let entry = &self.entries[slot];
            let time = if entry.session.is_answering() { ANSWER_TIME_MIN } else { PLACE_TIME_MIN };
            (entry.since.get() + time, slot)
        });
        candidates.min()
    }

    /// Whether there is a place that no connection has.
    fn have_place(&self, door: ListenerKind) -> bool {
        let main = self.entries.len() - self.metrics_sessions;
        let Shared { config, budget, .. } = &self.shared;
        match door {
            // Without memory, too, there is place for some who are told so.
            ListenerKind::Main if !budget.allows(CONNECTION_BYTES) => main < self.upgraded + REFUSED_AT_ONCE,
            ListenerKind::Main => main < config.connections_max + REFUSED_AT_ONCE,
            ListenerKind::Metrics => self.metrics_sessions < METRICS_AT_ONCE,
        }
    }

    /// A connection was accepted.
    pub(super) fn welcome(
        &mut self,
        mut stream: TcpStream,
        address: Address,
        door: ListenerKind,
        registry: &Registry,
    ) -> io::Result<()> {
        let slot = self.entries.vacant_key();
        registry.register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        self.numbers += 1;
        self.plain[door as usize].insert(self.numbers, slot);
        let is_counted = door == ListenerKind::Main && !self.shared.config.is_trusted_proxy(address);
        if is_counted {
            self.per_ip.enter(address);
        }
        let is_short_of_places = door == ListenerKind::Main && self.are_full();
        let head_time = if is_short_of_places { HEAD_TIME_FULL_MAX } else { HEAD_TIME_MAX };
        self.metrics_sessions += usize::from(door == ListenerKind::Metrics);
        self.entries.insert(Entry {
            session: Session::new(stream, head_time, &mut self.shared),
            conn: Conn::new(self.numbers, slot),
            listener: door,
            address,
            is_counted,
            since: self.shared.now.into(),
            upgraded: false,
            served: false,
            touched: false,
            ready: false,
            half_closed: false,
        });
        Ok(())
    }

    /// Whether there is no place for another WebSocket.
    pub(super) fn are_full(&self) -> bool {
        self.upgraded >= self.shared.config.connections_max || !self.shared.budget.allows(0)
    }

    /// Evaluates the deadlines of as many sessions as one turn may, from this slot on, and closes those that are to be
    /// dismissed. Returns where to go on.
    pub(super) fn tick(&mut self, from: usize, is_dismissed: impl Fn(&Entry) -> bool) -> Option<usize> {
        let (slots, next) = self.slice(from, SWEEP_PER_ITERATION);
        for slot in slots {
            if is_dismissed(&self.entries[slot]) {
                self.reach(slot, |session, shared| session.close(End::GoingAway, shared));
            }
            if self.entries[slot].session.tick(&mut self.shared) {
                self.touch(slot);
            }
        }
        next
    }

    /// Closes as many sessions as one turn may, from this slot on. Returns where to go on.
    pub(super) fn close_all(&mut self, from: usize) -> Option<usize> {
        let (slots, next) = self.slice(from, CLOSES_PER_ITERATION);
        for slot in slots {
            self.reach(slot, |session, shared| session.close(End::GoingAway, shared));
        }
        next
    }

    /// Returns the next occupied slots, and where the slice after them begins.
    fn slice(&self, from: usize, max: usize) -> (Vec<usize>, Option<usize>) {
        let occupied = (from..self.entries.capacity()).filter(|slot| self.entries.contains(*slot));
        let slots: Vec<usize> = occupied.take(max).collect();
        let next = slots.last().map(|last| last + 1).filter(|_| slots.len() == max);
        (slots, next)
    }

    /// Sets aside the rest of what a paused session has sent, or disconnects it if there is no memory for that.
    pub(super) fn hold_or_close(&mut self, slot: usize, scratch: &mut Scratch) {
        if !self.reach(slot, |session, shared| session.hold(scratch, shared)) {
            self.reach(slot, |session, shared| session.close(End::NoMemory, shared));
        }
    }

    /// Checks what must be true between any two turns. Looks at everything: for debug builds.
    ///
    /// # Panics
    /// If it is not.
    pub(super) fn check(&self) {
        let count = |is_counted: fn(&Entry) -> bool| {
            self.entries.iter().filter(|(_, entry)| is_counted(entry)).count()
        };
        assert_eq!(count(|entry| entry.upgraded), self.upgraded);
        assert_eq!(count(|entry| entry.listener == ListenerKind::Metrics), self.metrics_sessions);
        let ready: BTreeSet<usize> = self.ready.iter().copied().collect();
        assert!(self.entries.iter().all(|(slot, entry)| !entry.ready || ready.contains(&slot)));
        let touched: BTreeSet<usize> = self.touched.iter().copied().collect();
        assert!(self.entries.iter().all(|(slot, entry)| !entry.touched || touched.contains(&slot)));
        for (_, entry) in &self.entries {
            assert!(entry.upgraded || !entry.served, "only a WebSocket has a protocol");
            assert!(entry.served || !entry.session.is_open(), "an open WebSocket has a protocol");
        }
    }

    /// A connection is a WebSocket now.
    pub(super) fn upgrade(&mut self, slot: usize) {
        let entry = &mut self.entries[slot];
        self.plain[entry.listener as usize].remove(&entry.conn.number());
        entry.upgraded = true;
        entry.served = true;
        self.upgraded += 1;
        self.shared.metrics.connections_total += 1;
    }

    /// A request for a WebSocket was refused.
    pub(super) fn refuse(&mut self, slot: usize, status: u16, reason: &RejectReason) {
        let metrics = &mut self.shared.metrics;
        *metrics.refused_upgrades.entry(status).or_default() += 1;
        if let Some(fault) = reason.token_error {
            *metrics.refused_tokens.entry(fault.name()).or_default() += 1;
        }
        self.refusals += 1;
        if self.refusals <= REFUSALS_LOGGED_MAX {
            info!("an upgrade from {} was refused: {status}, {}", self.entries[slot].address, reason.message);
        }
    }

    /// Whether upgrades were refused since the last sweep, so that another sweep is due.
    pub(super) fn has_refusals_to_report(&self) -> bool {
        self.refusals > 0
    }

    /// Says what was not said since the last time.
    pub(super) fn tell_refusals(&mut self) {
        let refusals = mem::take(&mut self.refusals);
        if let Some(more @ 1..) = refusals.checked_sub(REFUSALS_LOGGED_MAX) {
            info!("and {more} more upgrades were refused");
        }
    }

    /// A WebSocket is one no longer. It was here.
    fn part(&mut self, slot: usize, dialect: ProtocolId, member: &Member) {
        let entry = &mut self.entries[slot];
        entry.served = false;
        let end = entry.session.end().expect("what is no longer open has an end").name();
        *self.shared.metrics.closings.entry(end).or_default() += 1;
        let room = member.room;
        let whose =
            if dialect == ProtocolId::Noroshi { String::new() } else { format!("{} ", dialect.name()) };
        info!(
            "connection {} from {} ended after {:.1} s: {end}; {whose}room {room:?}, {}",
            entry.conn.number(),
            entry.address,
            (self.shared.now - entry.since.get()).as_secs_f64(),
            member.id.as_ref().map_or("no id".to_owned(), |id| format!("id {id:?}")),
        );
    }

    /// A connection is gone.
    pub(super) fn free(&mut self, slot: usize) {
        let entry = self.entries.remove(slot);
        self.plain[entry.listener as usize].remove(&entry.conn.number());
        self.upgraded -= usize::from(entry.upgraded);
        self.metrics_sessions -= usize::from(entry.listener == ListenerKind::Metrics);
        debug!("connection {} from {} is gone", entry.conn.number(), entry.address);
        if entry.is_counted {
            self.per_ip.leave(entry.address);
        }
        entry.session.free(&mut self.shared);
    }
}

impl Outbox for Connections {
    fn has_room(&mut self, to: Conn, texts: &[String]) -> bool {
        self.entries[to.slot()].session.has_room(texts, &self.shared)
    }

    fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        self.shared.budget.reserve(bytes)
    }

    fn send(&mut self, to: Conn, text: String) {
        self.work += 1;
        self.reach(to.slot(), |session, shared| session.send(text, shared));
    }

    fn send_binary(&mut self, to: Conn, bytes: &[u8]) {
        self.work += 1;
        self.reach(to.slot(), |session, shared| session.send_binary(bytes, shared));
    }

    fn ping(&mut self, to: Conn) {
        self.reach(to.slot(), |session, shared| session.ping(shared));
    }

    fn pause_reading(&mut self, conn: Conn) {
        self.entries[conn.slot()].session.pause();
    }

    fn resume_reading(&mut self, conn: Conn) {
        self.entries[conn.slot()].session.resume(self.shared.now);
        self.mark_ready(conn.slot());
    }

    fn close(&mut self, conn: Conn, why: Close) {
        let end = match why {
            Close::Replaced => End::Replaced,
            Close::RateLimited => End::RateLimited,
            Close::Finished => End::Finished,
        };
        self.reach(conn.slot(), |session, shared| session.close(end, shared));
    }

    fn registered(&mut self, conn: Conn, room: &str, id: &str) {
        let entry = &mut self.entries[conn.slot()];
        entry.session.registered();
        debug!("connection {} from {} registered: room {room:?}, id {id:?}", conn.number(), entry.address);
    }

    fn disconnected(&mut self, conn: Conn, protocol: ProtocolId, member: &Member<'_>) {
        self.part(conn.slot(), protocol, member);
    }
}

impl session::Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}
