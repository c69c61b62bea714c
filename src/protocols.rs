//! Signaling protocols, and the dispatcher between them and the connections.
//!
//! The dispatcher delivers the events of a connection to the protocol that its upgrade asked for. It does what all protocols
//! have in common: it charges messages to the rate limit before a protocol gets them, runs the timers of probes and
//! protocols, and reports each departure once. Deadlines, heartbeats, and the limits of queues belong to sessions.

pub mod ayame;
pub mod conn_table;
pub mod ice;
pub mod list;
pub mod matchbox;
pub mod noroshi;
pub mod uuid;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{Config, PROBE_POSTPONED, PROBE_TIME_MAX, TIMERS_PER_ITERATION};
use crate::memory_budget::Reservation;
use crate::metrics::Counts;
use crate::protocol::{Close, Conn, Input, Member, Outbox, ProtocolId, Target};
use crate::rate_limit::{Bucket, Rate, Verdict, credits_for_bytes};
use crate::timestamp::Timestamp;

/// The rules of a signaling protocol.
///
/// A protocol is pure: it has no socket, no clock, no log and no randomness. It gets one [`Input`] at a time, and does
/// everything that follows from it through the [`Context`] before `handle` returns.
pub trait Protocol {
    /// Handles one event. Ignores events of connections that it does not know or has forgotten.
    fn handle(&mut self, input: Input<'_>, context: &mut Context<'_>);

    /// Returns when [`Input::Time`] is due next. One such event is for one timer.
    fn wake_at(&self) -> Option<Duration> {
        None
    }

    /// Returns whether the room of this target can take another connection.
    fn has_place(&self, _target: &Target) -> bool {
        true
    }

    /// Returns whether the room of this target exists, as far as that is known at the upgrade. While the server drains,
    /// only rooms that exist take connections.
    fn knows_room(&self, _target: &Target) -> bool {
        true
    }

    /// Returns the room, id and state of a connection. `None`: the protocol does not know it.
    fn member(&self, conn: Conn) -> Option<Member<'_>>;

    /// Takes over secrets of a configuration that was read again.
    fn renew(&mut self, _config: &Config) {}

    /// Returns its counters, for the metrics.
    fn counts(&self, now: Duration) -> Counts;

    /// Checks the invariants that hold between any two events. Looks at everything: for tests and debug builds.
    ///
    /// # Panics
    /// An invariant does not hold.
    fn check(&self) {}
}

/// What a protocol sees and may do while it handles one event.
pub struct Context<'a> {
    /// The monotonic time, since the start of the server.
    pub now: Duration,
    /// The time since 1970, for credentials that expire. It may be set at any time.
    pub wall: Duration,
    protocol: ProtocolId,
    common: &'a mut Common,
    out: &'a mut dyn Outbox,
}

impl Context<'_> {
    /// Sends a text message of the server itself. A peer whose queue cannot take it is disconnected.
    pub fn send(&mut self, to: Conn, text: String) {
        self.out.send(to, text);
    }

    /// Sends a binary message of the server itself. See [`Context::send`].
    pub fn send_binary(&mut self, to: Conn, bytes: &[u8]) {
        self.out.send_binary(to, bytes);
    }

    /// Forwards messages of another peer. Returns whether the queue had room: all of them are queued, or none.
    pub fn forward(&mut self, to: Conn, texts: impl AsRef<[String]> + IntoIterator<Item = String>) -> bool {
        let has_room = self.out.has_room(to, texts.as_ref());
        if has_room {
            texts.into_iter().for_each(|text| self.out.forward(to, text));
        }
        has_room
    }

    /// Returns whether more than half of the queue of this peer is used.
    pub fn is_congested(&self, to: Conn) -> bool {
        self.out.is_congested(to)
    }

    /// Pings a peer. [`Input::Alive`] follows or, after [`PROBE_TIME_MAX`], [`Input::Silent`].
    pub fn probe(&mut self, conn: Conn) {
        self.common.probes.begin(conn, self.now);
        self.out.ping(conn);
    }

    /// Closes a connection, and reports the departure of this member. The protocol forgets the connection now and gets no
    /// further event of it.
    pub fn close(&mut self, conn: Conn, why: Close, member: &Member<'_>) {
        self.common.probes.end(conn);
        self.out.close(conn, why);
        self.out.disconnected(conn, self.protocol, member);
    }

    /// Ends a probe, if one is running. Neither [`Input::Alive`] nor [`Input::Silent`] follows.
    pub fn cancel_probe(&mut self, conn: Conn) {
        self.common.probes.end(conn);
    }

    /// Stops reading from a connection until [`Context::resume_reading`]. Input that was read already waits until then, too.
    pub fn pause_reading(&mut self, conn: Conn) {
        self.out.pause_reading(conn);
    }

    /// Reads from a connection again.
    pub fn resume_reading(&mut self, conn: Conn) {
        self.out.resume_reading(conn);
    }

    /// Reserves memory for something that the protocol stores. `None`: `--max-memory` does not allow it.
    pub fn reserve(&mut self, bytes: usize) -> Option<Reservation> {
        self.out.reserve(bytes)
    }

    /// Charges a message that costs `credits` in all. Those for its size, `bytes`, were charged when it came in.
    pub fn charge(&mut self, conn: Conn, credits: usize, bytes: usize) -> Verdict {
        let charged = credits_for_bytes(bytes);
        if credits <= charged {
            return Verdict::Pass;
        }
        self.common.charge(conn, credits, charged, self.now)
    }

    /// Reports that a connection has registered, so that its deadline for that no longer runs.
    pub fn registered(&mut self, conn: Conn, room: &str, id: &str) {
        self.out.registered(conn, room, id);
    }
}

/// Delivers events to protocols.
pub struct Dispatcher {
    protocols: [Option<Box<dyn Protocol>>; ProtocolId::ALL.len()],
    /// The protocol of each connection, by slot.
    protocol_ids: Vec<ProtocolId>,
    common: Common,
}

/// What all protocols have in common.
struct Common {
    rate: Option<Rate>,
    /// The token bucket of each connection, by slot.
    buckets: Vec<Bucket>,
    probes: Probes,
}

impl Dispatcher {
    /// Creates a dispatcher without protocols.
    pub fn new(config: &Config) -> Dispatcher {
        let rate = Rate::per_second(config.rate_max);
        let common = Common { rate, buckets: Vec::new(), probes: Probes::default() };
        Dispatcher { protocols: Default::default(), protocol_ids: Vec::new(), common }
    }

    /// Adds a protocol.
    pub fn to(mut self, id: ProtocolId, protocol: impl Protocol + 'static) -> Dispatcher {
        self.protocols[id as usize] = Some(Box::new(protocol));
        self
    }

    /// Handles one event. See [`Context`] for the times.
    ///
    /// # Panics
    /// A connection connects in a slot that another one has, or for a protocol that was not added.
    pub fn handle(&mut self, now: Duration, wall: Duration, input: Input<'_>, out: &mut dyn Outbox) {
        let Dispatcher { protocols, protocol_ids, common } = self;
        let Some(conn) = input.conn() else { return self.fire_timers(now, wall, out) };
        let slot = conn.slot();
        if let Input::Connected(_, target, _) = input {
            if protocol_ids.len() <= slot {
                protocol_ids.resize(slot + 1, target.protocol);
                common.buckets.resize_with(slot + 1, Bucket::default);
            }
            protocol_ids[slot] = target.protocol;
            common.buckets[slot] = Bucket::default();
        }
        let verdict = match input {
            Input::Text(_, text) => common.charge(conn, credits_for_bytes(text.len()), 0, now),
            Input::Binary(_, bytes) => common.charge(conn, credits_for_bytes(bytes.len()), 0, now),
            Input::Alive(_) if !common.probes.end(conn) => return,
            Input::Disconnected(_) => {
                common.probes.end(conn);
                Verdict::Pass
            }
            _ => Verdict::Pass,
        };
        let id = protocol_ids[slot];
        let protocol = protocols[id as usize].as_mut().expect("a connection has a protocol that is there");
        if let Input::Disconnected(_) = input {
            // The protocol has forgotten a connection that it closed, and has reported it then.
            let Some(member) = protocol.member(conn) else { return };
            out.disconnected(conn, id, &member);
        }
        let context = &mut Context { now, wall, protocol: id, common, out };
        match verdict {
            Verdict::Pass => protocol.handle(input, context),
            verdict => drop_input(&mut **protocol, conn, verdict, context),
        }
    }

    /// Charges a frame that is no message: a ping, a pong or a small fragment. Returns whether the sender had credits for it.
    /// If not, it is treated as after a message over the rate: the protocol tells it so, or it is disconnected.
    pub fn charge_frame(&mut self, now: Duration, wall: Duration, conn: Conn, out: &mut dyn Outbox) -> bool {
        let Dispatcher { protocols, protocol_ids, common } = self;
        let verdict = common.charge(conn, 1, 0, now);
        if verdict == Verdict::Pass {
            return true;
        }
        let id = protocol_ids[conn.slot()];
        let protocol = protocols[id as usize].as_mut().expect("a connection has a protocol that is there");
        drop_input(&mut **protocol, conn, verdict, &mut Context { now, wall, protocol: id, common, out });
        false
    }

    /// Handles timers that are due, at most [`TIMERS_PER_ITERATION`] of them. Those that are left are still due.
    fn fire_timers(&mut self, now: Duration, wall: Duration, out: &mut dyn Outbox) {
        for _ in 0..TIMERS_PER_ITERATION {
            let Some(due) = self.wake_at().filter(|due| *due <= now) else { return };
            let Dispatcher { protocols, common, .. } = self;
            let is_due =
                |it: &Option<Box<dyn Protocol>>| it.as_ref().is_some_and(|it| it.wake_at() == Some(due));
            let found = ProtocolId::ALL.into_iter().zip(protocols).find(|(_, protocol)| is_due(protocol));
            if let Some((id, Some(protocol))) = found {
                protocol.handle(Input::Time, &mut Context { now, wall, protocol: id, common, out });
            } else if let Some(conn) = self.common.probes.pop() {
                if out.has_unread_input(conn) {
                    // What the peer has sent may be a liveness signal. It is read soon.
                    self.common.probes.postpone(conn, now);
                } else {
                    self.handle(now, wall, Input::Silent(conn), out);
                }
            }
        }
    }

    /// Returns when [`Input::Time`] is due next.
    pub fn wake_at(&self) -> Option<Duration> {
        let timers = self.each().filter_map(|(_, protocol)| protocol.wake_at());
        timers.chain(self.common.probes.next_deadline()).min()
    }

    /// See [`Protocol::has_place`].
    pub fn has_place(&self, target: &Target) -> bool {
        self.protocol(target.protocol).is_some_and(|protocol| protocol.has_place(target))
    }

    /// See [`Protocol::knows_room`].
    pub fn knows_room(&self, target: &Target) -> bool {
        self.protocol(target.protocol).is_some_and(|protocol| protocol.knows_room(target))
    }

    /// See [`Protocol::member`].
    pub fn member(&self, conn: Conn) -> Option<(ProtocolId, Member<'_>)> {
        let id = *self.protocol_ids.get(conn.slot())?;
        Some((id, self.protocol(id)?.member(conn)?))
    }

    fn protocol(&self, id: ProtocolId) -> Option<&dyn Protocol> {
        self.protocols[id as usize].as_deref()
    }

    /// Iterates over all protocols.
    pub fn each(&self) -> impl Iterator<Item = (ProtocolId, &dyn Protocol)> {
        ProtocolId::ALL.into_iter().filter_map(|id| Some((id, self.protocol(id)?)))
    }

    /// See [`Protocol::check`].
    ///
    /// # Panics
    /// See there.
    pub fn check(&self) {
        self.each().for_each(|(_, protocol)| protocol.check());
    }

    /// See [`Protocol::renew`].
    pub fn renew(&mut self, config: &Config) {
        self.protocols.iter_mut().flatten().for_each(|protocol| protocol.renew(config));
    }
}

/// Tells a protocol that an input was dropped because its sender is over the rate, or closes the connection.
fn drop_input(protocol: &mut dyn Protocol, conn: Conn, verdict: Verdict, context: &mut Context<'_>) {
    match verdict {
        Verdict::Pass => {}
        Verdict::Drop { notify: tell } => protocol.handle(Input::Dropped { conn, tell }, context),
        Verdict::Close => {
            if let Some(member) = protocol.member(conn) {
                context.close(conn, Close::RateLimited, &member);
            }
            protocol.handle(Input::Disconnected(conn), context);
        }
    }
}

impl Common {
    #[inline]
    fn charge(&mut self, conn: Conn, tokens: usize, paid: usize, now: Duration) -> Verdict {
        self.buckets[conn.slot()].charge(self.rate, tokens, paid, now)
    }
}

/// Liveness probes that are running.
#[derive(Default)]
struct Probes {
    /// When the probe of a connection ends.
    until: BTreeMap<Conn, Timestamp>,
    /// The same, by time.
    order: BTreeSet<(Timestamp, Conn)>,
}

impl Probes {
    fn begin(&mut self, conn: Conn, now: Duration) {
        self.end(conn);
        let until = (now + PROBE_TIME_MAX).into();
        self.until.insert(conn, until);
        self.order.insert((until, conn));
    }

    /// Begins the rest of a probe whose time is over.
    fn postpone(&mut self, conn: Conn, now: Duration) {
        let until = (now + PROBE_POSTPONED).into();
        self.until.insert(conn, until);
        self.order.insert((until, conn));
    }

    /// Ends the probe of a connection. Returns whether there was one.
    fn end(&mut self, conn: Conn) -> bool {
        let until = self.until.remove(&conn);
        until.is_some_and(|until| self.order.remove(&(until, conn)))
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.order.first().map(|(until, _)| until.get())
    }

    /// Removes the probe that ends first, and returns its connection.
    fn pop(&mut self) -> Option<Conn> {
        let (_, conn) = self.order.pop_first()?;
        self.until.remove(&conn);
        Some(conn)
    }
}
