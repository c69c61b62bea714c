//! Between connections and protocols: what every protocol needs is done here, before it or for it.
//!
//! A connection is handed to the protocol that its upgrade asked for. What it says is paid for by its size before the
//! protocol hears it, and whoever is probed has its time. What else all have in common, the first message in time, the
//! pings, the limits of queues and of memory, belongs to sessions.

pub mod ayame;
pub mod conn_table;
pub mod ice;
pub mod list;
pub mod matchbox;
pub mod noroshi;
pub mod uuid;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{Config, PROBE_TIME_MAX, TIMERS_PER_ITERATION};
use crate::memory_budget::Reservation;
use crate::metrics::Counts;
use crate::protocol::{Close, Conn, Effect, Input, Member, Outbox, ProtocolId, Target};
use crate::rate_limit::{Bucket, Rate, Verdict, credits_for_bytes};
use crate::timestamp::Timestamp;

/// A signaling protocol: who hears what. It is pure: no socket, no clock, no log, no randomness. One [`Input`] goes in,
/// and what comes of it goes out through the [`Turn`], all of it before `handle` returns.
pub trait Protocol {
    /// Takes one input. Those of connections that it does not know, or has forgotten, are ignored.
    fn handle(&mut self, input: Input<'_>, turn: &mut Turn<'_>);

    /// When [`Input::Time`] is due next. One input is for one alarm.
    fn wake_at(&self) -> Option<Duration> {
        None
    }

    /// Whether an upgrade to this target may succeed.
    fn has_place(&self, _target: &Target) -> bool {
        true
    }

    /// Whether somebody is there already whom an upgrade to this target may meet, as far as that can be told.
    fn knows_room(&self, _target: &Target) -> bool {
        true
    }

    /// Where a connection is, if it is here.
    fn member(&self, conn: Conn) -> Option<Member<'_>>;

    /// There may be other secrets in the configuration.
    fn renew(&mut self, _config: &Config) {}

    /// What it has counted until now.
    fn counts(&self, now: Duration) -> Counts;

    /// Checks what must be true between any two inputs. For tests: it looks at everything.
    ///
    /// # Panics
    /// If it is not.
    fn check(&self) {}
}

/// What a protocol has in hand while it handles an input.
pub struct Turn<'a> {
    /// The time since any fixed moment, which never goes back.
    pub now: Duration,
    /// What time it is, since 1970: credentials go by the clock on the wall, which may be set at any time.
    pub wall: Duration,
    dialect: ProtocolId,
    common: &'a mut Common,
    out: &'a mut dyn Outbox,
}

impl Turn<'_> {
    /// Says something of the server's own. A peer that would miss it is closed.
    pub fn send(&mut self, to: Conn, text: String) {
        self.out.push(Effect::Send(to, text));
    }

    /// The same with a message of bytes.
    pub fn send_binary(&mut self, to: Conn, bytes: &[u8]) {
        self.out.push(Effect::SendBinary(to, bytes.to_owned()));
    }

    /// Passes on what a peer said, all of it or, if its queue is too full for that, nothing. Returns whether it did.
    pub fn forward(&mut self, to: Conn, texts: impl AsRef<[String]> + IntoIterator<Item = String>) -> bool {
        let has_room = self.out.has_room(to, texts.as_ref());
        if has_room {
            texts.into_iter().for_each(|text| self.send(to, text));
        }
        has_room
    }

    /// Asks for a sign of life: [`Input::Alive`] or, after [`PROBE_TIME_MAX`], [`Input::Silent`] will follow.
    pub fn probe(&mut self, conn: Conn) {
        self.common.probes.begin(conn, self.now);
        self.out.push(Effect::Ping(conn));
    }

    /// Closes a connection, which the protocol forgets now.
    pub fn close(&mut self, conn: Conn, why: Close) {
        self.common.probes.end(conn);
        self.out.push(Effect::Close(conn, why));
    }

    /// Ends a probe, if one is running, without consequences for the probed peer.
    pub fn cancel_probe(&mut self, conn: Conn) {
        self.common.probes.end(conn);
    }

    /// Stops reading from a connection until [`Turn::resume_reading`]. Input of it that was read already is handled
    /// then, too.
    pub fn pause_reading(&mut self, conn: Conn) {
        self.out.push(Effect::PauseReading(conn));
    }

    /// Reads from a connection again.
    pub fn resume_reading(&mut self, conn: Conn) {
        self.out.push(Effect::ResumeReading(conn));
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
        self.common.pay(conn, credits, charged, self.now)
    }

    /// The connection has said what it must say in time.
    pub fn registered(&mut self, conn: Conn, room: &str, id: &str) {
        self.out.push(Effect::Registered { conn, room, id });
    }

    /// The protocol is about to forget the connection, which is this.
    ///
    /// # Panics
    /// If it was not here.
    pub fn left(&mut self, conn: Conn, member: Option<Member<'_>>) {
        let member = member.expect("only who was here leaves");
        self.out.push(Effect::Left { conn, dialect: self.dialect, member });
    }
}

/// All protocols, and what they have in common.
pub struct Dispatcher {
    protocols: [Option<Box<dyn Protocol>>; ProtocolId::ALL.len()],
    /// Which of them a connection speaks, by slot.
    dialects: Vec<ProtocolId>,
    common: Common,
}

/// What is the same for all protocols.
struct Common {
    rate: Option<Rate>,
    /// By slot.
    buckets: Vec<Bucket>,
    probes: Probes,
}

impl Dispatcher {
    /// One that leads nowhere yet.
    pub fn new(config: &Config) -> Dispatcher {
        let rate = Rate::per_second(config.rate_max);
        let common = Common { rate, buckets: Vec::new(), probes: Probes::default() };
        Dispatcher { protocols: Default::default(), dialects: Vec::new(), common }
    }

    /// The same, with a protocol for those who ask for this one.
    pub fn to(mut self, dialect: ProtocolId, protocol: impl Protocol + 'static) -> Dispatcher {
        self.protocols[dialect as usize] = Some(Box::new(protocol));
        self
    }

    /// Takes one input: see [`Turn`] for the times.
    ///
    /// # Panics
    /// If a connection connects in a slot that another still has, or asks for a protocol that is not there.
    pub fn handle(&mut self, now: Duration, wall: Duration, input: Input<'_>, out: &mut dyn Outbox) {
        let Dispatcher { protocols, dialects, common } = self;
        let Some(conn) = input.conn() else { return self.ring(now, wall, out) };
        let slot = conn.slot();
        if let Input::Connected(_, target, _) = input {
            if dialects.len() <= slot {
                dialects.resize(slot + 1, target.dialect);
                common.buckets.resize_with(slot + 1, Bucket::default);
            }
            dialects[slot] = target.dialect;
            common.buckets[slot] = Bucket::default();
        }
        let verdict = match input {
            Input::Text(_, text) => common.pay(conn, credits_for_bytes(text.len()), 0, now),
            Input::Binary(_, bytes) => common.pay(conn, credits_for_bytes(bytes.len()), 0, now),
            Input::Alive(_) if !common.probes.end(conn) => return,
            Input::Disconnected(_) => {
                common.probes.end(conn);
                Verdict::Pass
            }
            _ => Verdict::Pass,
        };
        let dialect = dialects[slot];
        let protocol = protocols[dialect as usize].as_mut().expect("nobody else asks for others");
        let turn = &mut Turn { now, wall, dialect, common, out };
        match verdict {
            Verdict::Pass => protocol.handle(input, turn),
            verdict => drop_input(&mut **protocol, conn, verdict, turn),
        }
    }

    /// Charges a frame that is no message: a ping, a pong or a small fragment. Returns whether the connection may go on.
    /// If not, the protocol reports that to the peer, or the connection is closed, as after a message that is too much.
    pub fn charge_frame(&mut self, now: Duration, wall: Duration, conn: Conn, out: &mut dyn Outbox) -> bool {
        let Dispatcher { protocols, dialects, common } = self;
        let verdict = common.pay(conn, 1, 0, now);
        if verdict == Verdict::Pass {
            return true;
        }
        let dialect = dialects[conn.slot()];
        let protocol = protocols[dialect as usize].as_mut().expect("nobody else asks for others");
        drop_input(&mut **protocol, conn, verdict, &mut Turn { now, wall, dialect, common, out });
        false
    }

    /// Handles timers that are due, at most [`TIMERS_PER_ITERATION`] of them. Those that are left are still due.
    fn ring(&mut self, now: Duration, wall: Duration, out: &mut dyn Outbox) {
        for _ in 0..TIMERS_PER_ITERATION {
            let Some(due) = self.wake_at().filter(|due| *due <= now) else { return };
            let Dispatcher { protocols, common, .. } = self;
            let is_due =
                |it: &Option<Box<dyn Protocol>>| it.as_ref().is_some_and(|it| it.wake_at() == Some(due));
            let found = ProtocolId::ALL.into_iter().zip(protocols).find(|(_, protocol)| is_due(protocol));
            if let Some((dialect, Some(protocol))) = found {
                protocol.handle(Input::Time, &mut Turn { now, wall, dialect, common, out });
            } else if let Some(conn) = self.common.probes.pop() {
                self.handle(now, wall, Input::Silent(conn), out);
            }
        }
    }

    /// When [`Input::Time`] is due next.
    pub fn wake_at(&self) -> Option<Duration> {
        let alarms = self.each().filter_map(|(_, protocol)| protocol.wake_at());
        alarms.chain(self.common.probes.first()).min()
    }

    /// See [`Protocol::has_place`].
    pub fn has_place(&self, target: &Target) -> bool {
        self.protocol(target.dialect).is_some_and(|protocol| protocol.has_place(target))
    }

    /// See [`Protocol::knows_room`].
    pub fn knows_room(&self, target: &Target) -> bool {
        self.protocol(target.dialect).is_some_and(|protocol| protocol.knows_room(target))
    }

    /// See [`Protocol::member`].
    pub fn member(&self, conn: Conn) -> Option<(ProtocolId, Member<'_>)> {
        let dialect = *self.dialects.get(conn.slot())?;
        Some((dialect, self.protocol(dialect)?.member(conn)?))
    }

    fn protocol(&self, dialect: ProtocolId) -> Option<&dyn Protocol> {
        self.protocols[dialect as usize].as_deref()
    }

    /// All protocols that it leads to.
    pub fn each(&self) -> impl Iterator<Item = (ProtocolId, &dyn Protocol)> {
        ProtocolId::ALL.into_iter().filter_map(|dialect| Some((dialect, self.protocol(dialect)?)))
    }

    /// See [`Protocol::check`].
    ///
    /// # Panics
    /// See there.
    pub fn check(&self) {
        self.each().for_each(|(_, protocol)| protocol.check());
    }

    /// There may be other secrets in the configuration.
    pub fn renew(&mut self, config: &Config) {
        self.protocols.iter_mut().flatten().for_each(|protocol| protocol.renew(config));
    }
}

/// Tells a protocol that an input was dropped because its sender is over the rate, or closes the connection.
fn drop_input(protocol: &mut dyn Protocol, conn: Conn, verdict: Verdict, turn: &mut Turn<'_>) {
    match verdict {
        Verdict::Pass => {}
        Verdict::Drop { notify: tell } => protocol.handle(Input::Dropped { conn, tell }, turn),
        Verdict::Close => {
            turn.close(conn, Close::RateLimited);
            protocol.handle(Input::Disconnected(conn), turn);
        }
    }
}

impl Common {
    #[inline]
    fn pay(&mut self, conn: Conn, tokens: usize, paid: usize, now: Duration) -> Verdict {
        self.buckets[conn.slot()].charge(self.rate, tokens, paid, now)
    }
}

/// Who is asked for a sign of life, and until when.
#[derive(Default)]
struct Probes {
    until: BTreeMap<Conn, Timestamp>,
    order: BTreeSet<(Timestamp, Conn)>,
}

impl Probes {
    fn begin(&mut self, conn: Conn, now: Duration) {
        self.end(conn);
        let until = (now + PROBE_TIME_MAX).into();
        self.until.insert(conn, until);
        self.order.insert((until, conn));
    }

    /// Returns whether it was asked.
    fn end(&mut self, conn: Conn) -> bool {
        let until = self.until.remove(&conn);
        until.is_some_and(|until| self.order.remove(&(until, conn)))
    }

    fn first(&self) -> Option<Duration> {
        self.order.first().map(|(until, _)| until.get())
    }

    /// Takes out who has had its time first.
    fn pop(&mut self) -> Option<Conn> {
        let (_, conn) = self.order.pop_first()?;
        self.until.remove(&conn);
        Some(conn)
    }
}
