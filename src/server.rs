//! The poll loop: the only file that knows mio, and the only one that knows all the others.
//!
//! Everything happens in turns, see [`Server::turn`]. Readiness is edge-triggered and registered once: a session
//! reads until the kernel has no more, but only one scratch full of it in one turn; who may have more is in the
//! ready queue, and the next poll does not wait. Whoever was touched is flushed once when all have been heard, and
//! whoever the clock touches after that. Sessions that are over are freed then, and new ones accepted last, so that
//! no event of a turn can reach a newcomer in an old slot. The rules are the protocols', behind the dispatcher, and
//! `connections` carries their effects out.

mod admission;
mod clock;
mod connections;
mod drain;
mod listeners;
mod operator;
mod signals;
mod systemd;

use std::hash::RandomState;
use std::io::{self, ErrorKind};
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event as Readiness;
use mio::{Events, Poll, Token};
use signal_hook_mio::v1_0::Signals;

use crate::config::{Config, ListenAddress};
use crate::http::ListenerKind;
use crate::limits::{
    DEPARTURES_PER_ITERATION, DESCRIPTORS_SPARE, SWEEP_EVERY, WORK_PER_ITERATION, WORK_PER_SESSION,
};
use crate::protocol::{Input, ProtocolId};
use crate::protocols::Dispatcher;
use crate::protocols::ayame::Ayame;
use crate::protocols::matchbox::Matchbox;
use crate::protocols::noroshi::Noroshi;
use crate::session::{Event, Fill, Scratch, Shared};
use clock::Clock;
use connections::Connections;
use listeners::Listeners;
use systemd::ServiceManager;

/// Sessions have the tokens of their slots, and listeners count down from the one before this.
const SIGNALS: Token = Token(usize::MAX - 1);

/// Connections up to which a debug build checks all invariants after every turn; with more, after every
/// [`CHECKED_SELDOM_EVERY`]th.
const CHECKED_ALWAYS_MAX: usize = 256;
const CHECKED_SELDOM_EVERY: u32 = 64;

/// A server that listens.
pub struct Server {
    poll: Poll,
    events: Events,
    clock: Clock,
    listeners: Listeners,
    connections: Connections,
    scratch: Scratch,
    dispatcher: Dispatcher,
    /// When all deadlines are looked at next.
    sweep_at: Duration,
    /// The slot at which a sweep that has begun goes on.
    sweep: Option<usize>,
    /// When a drain that has begun is over.
    drained_at: Option<Duration>,
    /// When a stop that has begun ends at the latest.
    stop_at: Option<Duration>,
    /// The slot at which a stop that has begun goes on to close sessions.
    stop_from: Option<usize>,
    /// The share of the rooms that a drain has closed so far, from 0 to 1.
    drained_share: f64,
    service_manager: ServiceManager,
    /// The signals that are handled, see [`Server::install_signal_handlers`].
    signals: Option<Signals>,
    /// Whether a signal has come.
    signalled: bool,
    /// Turns so far, for the checks of a debug build.
    turns: u32,
    /// Whether the last turn found nothing to do.
    was_idle: bool,
}

impl Server {
    /// Listens where the configuration says.
    ///
    /// # Errors
    /// An address that cannot be bound, or a system call that the loop needs and that fails.
    pub fn bind(config: Config) -> io::Result<Server> {
        let mut dispatcher = Dispatcher::new(&config).to(ProtocolId::Noroshi, Noroshi::new(&config));
        if config.ayame.is_some() {
            dispatcher = dispatcher.to(ProtocolId::Ayame, Ayame::new(&config, RandomState::new()));
        }
        if config.matchbox.is_some() {
            dispatcher = dispatcher.to(ProtocolId::Matchbox, Matchbox::new(&config, RandomState::new()));
        }
        Server::with(dispatcher, config)
    }

    /// The same with other protocols behind the dispatcher.
    ///
    /// # Errors
    /// See [`Server::bind`].
    pub fn with(dispatcher: Dispatcher, config: Config) -> io::Result<Server> {
        let poll = Poll::new()?;
        let listeners = Listeners::bind(&config, poll.registry())?;
        // All that is ready is heard in one turn. The memory that is never needed is never touched.
        let events = Events::with_capacity(config.connections_max + DESCRIPTORS_SPARE);
        Ok(Server {
            poll,
            events,
            clock: Clock::new(),
            listeners,
            connections: Connections::new(config),
            scratch: Scratch::default(),
            dispatcher,
            sweep_at: Duration::ZERO,
            sweep: None,
            drained_at: None,
            stop_at: None,
            stop_from: None,
            drained_share: 0.0,
            service_manager: ServiceManager::new(),
            signals: None,
            signalled: false,
            turns: 0,
            was_idle: false,
        })
    }

    /// Where it listens, with the real ports.
    pub fn places(&self, door: ListenerKind) -> impl Iterator<Item = ListenAddress> {
        self.listeners.places(door)
    }

    /// The same where it listens at an address.
    pub fn addresses(&self, door: ListenerKind) -> impl Iterator<Item = SocketAddr> {
        self.places(door).filter_map(|place| match place {
            ListenAddress::Tcp(address) => Some(address),
            ListenAddress::Unix(_) => None,
        })
    }

    /// The protocols, and who speaks them.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// How many connections it has, of any kind.
    pub fn sessions(&self) -> usize {
        self.connections.entries.len()
    }

    /// Returns whether the last turn found nothing to do. For tests, which wait for that.
    pub fn was_idle(&self) -> bool {
        self.was_idle
    }

    /// Returns the units of work that the last turn caused: messages that were handled or queued. For tests.
    pub fn work_of_last_turn(&self) -> usize {
        self.connections.work
    }

    /// Returns what all sessions share: memory in use, connections by address, counters. For tests.
    pub fn shared(&self) -> &Shared {
        &self.connections.shared
    }

    /// Returns for how many addresses connections are counted. For tests.
    pub fn addresses_counted(&self) -> usize {
        self.connections.per_ip.places()
    }

    /// Moves the clock forward. For tests, which have no time to wait.
    pub fn advance(&mut self, by: Duration) {
        self.clock.ahead += by;
    }

    /// Waits for something to do, at most for `longest`, and does it.
    ///
    /// # Errors
    /// See [`Server::run`].
    pub fn turn(&mut self, longest: Option<Duration>) -> io::Result<()> {
        let timeout = self.timeout().into_iter().chain(longest).min();
        let mut events = mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, timeout);
        let began = self.clock.now();
        self.connections.shared.now = began;
        self.connections.wall = self.clock.wall();
        match polled {
            Ok(()) => {}
            // SIGSTOP and SIGCONT, for one. Nobody is judged by the clock before what came meanwhile is read.
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.events = events;
                return Ok(());
            }
            Err(error) => return Err(error),
        }

        self.was_idle = events.is_empty() && self.timeout() != Some(Duration::ZERO);
        self.connections.work = 0;
        for event in &events {
            self.notice(event);
        }
        // Sessions that were ready before come first, so that those whose events come in every turn cannot starve them.
        let ready = mem::take(&mut self.connections.ready);
        let mut handled = 0;
        for slot in &ready {
            if self.connections.work >= WORK_PER_ITERATION {
                break;
            }
            handled += 1;
            // The slot may have been freed, and may have another connection by now.
            if let Some(entry) = self.connections.entries.get_mut(*slot).filter(|entry| entry.ready) {
                entry.ready = false;
                self.receive(*slot);
            }
        }
        // Sessions that were not handled come before those that were, and that have further input.
        self.connections.ready.splice(..0, ready[handled..].iter().copied());
        self.events = events;
        // Who can take what is queued takes it before the clock says that it is slow.
        self.settle();
        self.tick();
        self.settle();
        self.listeners.accept(&mut self.connections, self.poll.registry());

        let rooms = || self.dispatcher.each().map(|(_, protocol)| protocol.counts(began).rooms).sum();
        self.service_manager.turned(began, self.connections.upgraded, rooms);
        self.connections.shared.metrics.turns.record(self.clock.now() - began);
        if cfg!(debug_assertions) {
            self.check_now_and_then();
        }
        Ok(())
    }

    /// How long there is nothing to do, if nothing happens.
    fn timeout(&self) -> Option<Duration> {
        let Connections { ready, touched, .. } = &self.connections;
        if !ready.is_empty() || !touched.is_empty() || self.stop_from.is_some() {
            return Some(Duration::ZERO);
        }
        if self.sweep.is_some() {
            return Some(Duration::ZERO);
        }
        let busy = !self.connections.entries.is_empty()
            || self.connections.has_refusals_to_report()
            || self.listeners.have_failed()
            || self.drained_at.is_some();
        let sweep = busy.then_some(self.sweep_at);
        let accept = self.listeners.accept_at(&self.connections);
        let times = [self.dispatcher.wake_at(), sweep, accept, self.stop_at, self.service_manager.due()];
        let next = times.into_iter().flatten().min()?;
        Some(next.saturating_sub(self.clock.now()))
    }

    // ---- Phases of a turn ----

    fn notice(&mut self, event: &Readiness) {
        let Token(slot) = event.token();
        if let Some(entry) = self.connections.entries.get_mut(slot) {
            entry.half_closed |= event.is_read_closed() || event.is_error();
            if event.is_readable() || entry.half_closed {
                self.connections.mark_ready(slot);
            }
            if event.is_writable() {
                self.connections.touch(slot);
            }
        } else if event.token() == SIGNALS {
            self.signalled = true;
        } else {
            self.listeners.notice(event.token());
        }
    }

    /// Lets a session read once, and handles what came, as far as one session may have in one turn.
    fn receive(&mut self, slot: usize) {
        let entry = &self.connections.entries[slot];
        let (conn, is_half_closed) = (entry.conn, entry.half_closed);
        if entry.session.is_paused() {
            // It will not send anything further: there is nothing to wait for.
            if is_half_closed {
                self.connections.reach(slot, |session, _| session.disconnected());
            }
            return;
        }
        let work_before = self.connections.work;
        let scratch = &mut self.scratch;
        let fill = self.connections.reach(slot, |session, shared| session.fill(scratch, shared));
        let (now, wall) = (self.connections.shared.now, self.connections.wall);
        let mut is_deferred = false;
        while let Some(event) = self.connections.next(slot, &mut self.scratch) {
            self.connections.work += 1;
            let Server { connections, dispatcher, .. } = self;
            match event {
                Event::Request(head) => self.admit(slot, &head),
                Event::Rejected(status, refusal) => connections.refuse(slot, status, &refusal),
                Event::Text(text) => dispatcher.handle(now, wall, Input::Text(conn, text), connections),
                Event::Binary(bytes) => dispatcher.handle(now, wall, Input::Binary(conn, bytes), connections),
                Event::Ping(payload) => {
                    if dispatcher.charge_frame(now, wall, conn, connections) {
                        connections.reach(slot, |session, shared| session.pong(payload, shared));
                    }
                }
                Event::Overhead => _ = dispatcher.charge_frame(now, wall, conn, connections),
            }
            let Server { connections, scratch, .. } = self;
            if connections.entries[slot].session.is_paused() {
                connections.hold_or_close(slot, scratch);
            } else if connections.work - work_before >= WORK_PER_SESSION {
                is_deferred = connections.reach(slot, |session, shared| session.hold(scratch, shared));
            }
        }
        let entry = &self.connections.entries[slot];
        if entry.session.is_paused() {
            if is_half_closed {
                self.connections.reach(slot, |session, _| session.disconnected());
            }
        } else if is_deferred
            || matches!(fill, Fill::More | Fill::Held)
            || (fill == Fill::Drained && is_half_closed)
        {
            self.connections.mark_ready(slot);
        }
        // The end of a connection is no sign of life.
        if matches!(fill, Fill::More | Fill::Drained) && self.connections.entries[slot].session.is_open() {
            self.tell(Input::Alive(conn));
        }
    }

    /// What is due by the clock: the protocols' alarms, and a slice of the sessions.
    fn tick(&mut self) {
        let now = self.connections.shared.now;
        if self.dispatcher.wake_at().is_some_and(|at| at <= now) {
            self.tell(Input::Time);
        }
        if self.sweep.is_none() && self.sweep_at <= now {
            self.sweep = Some(0);
            self.sweep_at = now + SWEEP_EVERY;
            self.listeners.retry();
            self.connections.tell_refusals();
            if let Some(until) = self.drained_at {
                self.drain_on(until);
            }
        }
        if let Some(from) = self.sweep {
            let Server { connections, dispatcher, drained_share, .. } = self;
            self.sweep = connections.tick(from, |entry| drain::is_drained(entry, dispatcher, *drained_share));
        }
        if let Some(from) = self.stop_from {
            self.stop_from = self.connections.close_all(from);
        }
    }

    /// Flushes all dirty sessions, reports those that have ended to their protocols, and frees those that are over. A
    /// report may make further sessions dirty. Reports beyond [`DEPARTURES_PER_ITERATION`] are left for the next turn.
    fn settle(&mut self) {
        let (mut next, mut departures) = (0, 0);
        while let Some(&slot) = self.connections.touched.get(next) {
            // The slot may have been freed, and may have another connection by now.
            let Some(entry) = self.connections.entries.get_mut(slot).filter(|entry| entry.touched) else {
                next += 1;
                continue;
            };
            let is_alive = entry.session.flush(&mut self.connections.shared);
            let conn = entry.conn;
            let has_left = entry.served && !entry.session.is_open();
            if has_left && departures >= DEPARTURES_PER_ITERATION {
                break;
            }
            next += 1;
            entry.touched = false;
            if entry.session.end_pause_if_closing() {
                self.connections.mark_ready(slot);
            }
            if has_left {
                departures += 1;
                self.tell(Input::Disconnected(conn));
            } else if is_alive {
                self.tell(Input::Alive(conn));
            }
            if self.connections.entries[slot].session.is_over() {
                self.connections.free(slot);
                self.listeners.retry();
            }
        }
        self.connections.touched.drain(..next);
    }

    /// Checks the invariants of everything: after every turn, or after some turns where that would take too long.
    fn check_now_and_then(&mut self) {
        self.turns = self.turns.wrapping_add(1);
        let is_small = self.connections.entries.len() <= CHECKED_ALWAYS_MAX;
        if is_small || self.turns.is_multiple_of(CHECKED_SELDOM_EVERY) {
            self.connections.check();
            self.dispatcher.check();
        }
    }

    // ---- The protocols ----

    fn tell(&mut self, input: Input) {
        let (now, wall) = (self.connections.shared.now, self.connections.wall);
        self.dispatcher.handle(now, wall, input, &mut self.connections);
    }
}
