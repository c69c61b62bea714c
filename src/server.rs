//! The poll loop: the only module that knows mio, and the only one that knows all others.
//!
//! [`Server::poll_once`] is one iteration of the loop:
//!
//! 1. Wait for readiness events. They are edge-triggered, and registered once for each socket.
//! 2. Read from each ready session once, and handle what came. A session that may have more is ready again in the next
//!    iteration, which then does not wait.
//! 3. Flush all dirty sessions, once each, tell the protocols which of their sessions are no longer open, and remove closed ones.
//! 4. Run the timers of protocols and evaluate a slice of the sessions' deadlines. Flush again.
//! 5. Accept connections. This comes last, so that no event of an iteration reaches a new connection in a reused slot.
//!
//! The work of each step is limited, see `WORK_PER_ITERATION` in [`crate::limits`] and its neighbours. The rest is done in
//! the next iteration. The last input before the limit may exceed it.

pub mod admission;
mod clock;
mod connections;
mod drain;
mod listeners;
mod operator;
mod requests;
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
use crate::protocol::{Descriptor, Times};
use crate::protocols::{self, Dispatcher};
use crate::session::{Event, ReadOutcome, Scratch, SharedState};
use clock::Clock;
use connections::{Connections, InputState, Stage};
use listeners::Listeners;
use systemd::ServiceManager;

/// The mio token of signals. Sessions use their slots as tokens, and listeners count down from the token before this one.
const SIGNALS: Token = Token(usize::MAX - 1);

/// Connections up to which a debug build checks all invariants after every iteration. With more it does so after every
/// [`CHECKED_SELDOM_EVERY`]th.
const CHECKED_ALWAYS_MAX: usize = 256;
const CHECKED_SELDOM_EVERY: u32 = 64;

/// A server that listens for connections.
pub struct Server {
    poll: Poll,
    events: Events,
    clock: Clock,
    listeners: Listeners,
    connections: Connections,
    scratch: Scratch,
    dispatcher: Dispatcher,
    /// When the next sweep over the deadlines of all sessions begins.
    next_sweep_at: Duration,
    /// The slot at which the current sweep continues.
    sweep_cursor: Option<usize>,
    /// When the current drain ends.
    drain_deadline: Option<Duration>,
    /// When the current stop ends at the latest.
    stop_deadline: Option<Duration>,
    /// The slot at which the current stop continues to close sessions.
    close_cursor: Option<usize>,
    /// The share of the rooms that a drain has closed so far, from 0 to 1.
    drained_share: f64,
    service_manager: ServiceManager,
    /// The signals that are handled, see [`Server::install_signal_handlers`].
    signals: Option<Signals>,
    /// Whether a signal came in this iteration.
    is_signal_pending: bool,
    /// Iterations so far, for the checks of a debug build.
    iterations: u32,
    /// Whether the last iteration found nothing to do.
    was_idle: bool,
}

impl Server {
    /// Binds the listeners of the configuration.
    ///
    /// # Errors
    /// An address cannot be bound, or a system call fails that the loop needs.
    pub fn bind(config: Config) -> io::Result<Server> {
        Server::with_protocols(protocols::ALL, config)
    }

    /// Binds the listeners for a server with these protocols instead of [`protocols::ALL`].
    ///
    /// # Errors
    /// See [`Server::bind`].
    pub fn with_protocols(descriptors: &[&'static Descriptor], config: Config) -> io::Result<Server> {
        let dispatcher = Dispatcher::new(descriptors, &config, &RandomState::new());
        let poll = Poll::new()?;
        let listeners = Listeners::bind(&config, poll.registry())?;
        // Room for an event of each connection. Pages that are never written take no memory.
        let events = Events::with_capacity(config.connections_max + DESCRIPTORS_SPARE);
        Ok(Server {
            poll,
            events,
            clock: Clock::new(),
            listeners,
            connections: Connections::new(config),
            scratch: Scratch::default(),
            dispatcher,
            next_sweep_at: Duration::ZERO,
            sweep_cursor: None,
            drain_deadline: None,
            stop_deadline: None,
            close_cursor: None,
            drained_share: 0.0,
            service_manager: ServiceManager::new(),
            signals: None,
            is_signal_pending: false,
            iterations: 0,
            was_idle: false,
        })
    }

    /// Returns where the server listens, with the real ports.
    pub fn listen_addresses(&self, kind: ListenerKind) -> impl Iterator<Item = ListenAddress> {
        self.listeners.listen_addresses(kind)
    }

    /// Returns the TCP addresses among these.
    pub fn addresses(&self, kind: ListenerKind) -> impl Iterator<Item = SocketAddr> {
        self.listen_addresses(kind).filter_map(|address| match address {
            ListenAddress::Tcp(address) => Some(address),
            ListenAddress::Unix(_) => None,
        })
    }

    /// Returns the dispatcher, which knows the protocols.
    pub fn dispatcher(&self) -> &Dispatcher {
        &self.dispatcher
    }

    /// Returns the number of connections of any kind.
    pub fn sessions(&self) -> usize {
        self.connections.entries.len()
    }

    /// Returns whether the last iteration found nothing to do. For tests, which wait for that.
    pub fn was_idle(&self) -> bool {
        self.was_idle
    }

    /// Returns the units of work that the last iteration caused: messages that were handled or queued. For tests.
    pub fn work_of_last_iteration(&self) -> usize {
        self.connections.work
    }

    /// Returns what all sessions share: memory in use, connections by address, counters. For tests.
    pub fn shared(&self) -> &SharedState {
        &self.connections.shared
    }

    /// Returns for how many addresses connections are counted. For tests.
    pub fn addresses_counted(&self) -> usize {
        self.connections.per_ip.hosts()
    }

    /// Moves the clock forward. For tests.
    pub fn advance(&mut self, by: Duration) {
        self.clock.ahead += by;
    }

    /// Runs one iteration of the loop. Waits at most for `longest`.
    ///
    /// # Errors
    /// See [`Server::run`].
    pub fn poll_once(&mut self, longest: Option<Duration>) -> io::Result<()> {
        let timeout = self.timeout().into_iter().chain(longest).min();
        let mut events = mem::replace(&mut self.events, Events::with_capacity(0));
        let polled = self.poll.poll(&mut events, timeout);
        let began = self.clock.now();
        self.connections.shared.now = began;
        self.connections.wall = self.clock.wall();
        match polled {
            Ok(()) => {}
            // For example by SIGSTOP and SIGCONT. Timeouts are not evaluated before pending input is read.
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.events = events;
                return Ok(());
            }
            Err(error) => return Err(error),
        }

        self.was_idle = events.is_empty() && self.timeout() != Some(Duration::ZERO);
        self.connections.work = 0;
        for event in &events {
            self.on_readiness(event);
        }
        // Sessions that were ready before come first: sessions with events in every iteration cannot starve them.
        // Reading appends sessions with further input behind `ready_count`: they are handled in the next iteration.
        let ready_count = self.connections.ready.len();
        let mut handled = 0;
        while handled < ready_count && self.connections.work < WORK_PER_ITERATION {
            let slot = self.connections.ready[handled];
            handled += 1;
            if self.connections.set_input(slot, InputState::NotQueued) {
                self.read_session(slot);
            }
        }
        for index in handled..ready_count {
            let slot = self.connections.ready[index];
            self.connections.set_input(slot, InputState::Postponed);
        }
        self.connections.ready.drain(..handled);
        self.events = events;
        // Queues are flushed before the timeout of slow readers is evaluated.
        self.flush_dirty_sessions();
        self.tick();
        self.flush_dirty_sessions();
        self.listeners.accept(&mut self.connections, self.poll.registry());

        let rooms = || self.dispatcher.each().map(|(_, protocol)| protocol.counts(began).rooms).sum();
        self.service_manager.on_iteration(began, self.connections.websockets, rooms);
        self.connections.shared.metrics.iterations.record(self.clock.now() - began);
        if cfg!(debug_assertions) {
            self.check_invariants_sometimes();
        }
        Ok(())
    }

    /// Returns how long the next poll may wait.
    fn timeout(&self) -> Option<Duration> {
        let Connections { ready, dirty, .. } = &self.connections;
        if !ready.is_empty() || !dirty.is_empty() || self.close_cursor.is_some() {
            return Some(Duration::ZERO);
        }
        if self.sweep_cursor.is_some() {
            return Some(Duration::ZERO);
        }
        let busy = !self.connections.entries.is_empty()
            || self.connections.has_rejections_to_report()
            || self.listeners.have_failed()
            || self.drain_deadline.is_some();
        let sweep = busy.then_some(self.next_sweep_at);
        let accept = self.listeners.accept_at(&self.connections);
        let times =
            [self.dispatcher.next_timer(), sweep, accept, self.stop_deadline, self.service_manager.due()];
        let next = times.into_iter().flatten().min()?;
        Some(next.saturating_sub(self.clock.now()))
    }

    // ---- Steps of an iteration ----

    fn on_readiness(&mut self, event: &Readiness) {
        let Token(slot) = event.token();
        if let Some(entry) = self.connections.entries.get_mut(slot) {
            entry.half_closed |= event.is_read_closed() || event.is_error();
            if event.is_readable() || entry.half_closed {
                self.connections.mark_ready(slot);
            }
            if event.is_writable() {
                self.connections.mark_dirty(slot);
            }
        } else if event.token() == SIGNALS {
            self.is_signal_pending = true;
        } else {
            self.listeners.on_readiness(event.token());
        }
    }

    /// Reads from a session once and handles what came, up to [`WORK_PER_SESSION`] if there is memory for the rest.
    fn read_session(&mut self, slot: usize) {
        let entry = &self.connections.entries[slot];
        let (conn, is_half_closed) = (entry.conn, entry.half_closed);
        if entry.session.is_paused() {
            // The peer has closed its side: nothing further will arrive.
            if is_half_closed {
                self.connections.with_session(slot, |session, _| session.on_disconnected());
            }
            return;
        }
        let work_before = self.connections.work;
        let scratch = &mut self.scratch;
        let outcome = self.connections.with_session(slot, |session, shared| session.read(scratch, shared));
        let times = self.times();
        let mut is_deferred = false;
        while let Some(event) = self.connections.next(slot, &mut self.scratch) {
            self.connections.work += 1;
            let Server { connections, dispatcher, .. } = self;
            match event {
                Event::Request(head) => self.handle_request(slot, &head),
                Event::Rejected(status, reason) => connections.record_rejection(slot, status, &reason),
                Event::Message(message) => dispatcher.message(times, conn, message, connections),
                Event::Ping(payload) => {
                    if dispatcher.charge_frame(times, conn, connections) {
                        connections.with_session(slot, |session, shared| session.pong(payload, shared));
                    }
                }
                Event::Overhead => _ = dispatcher.charge_frame(times, conn, connections),
            }
            let Server { connections, scratch, .. } = self;
            if connections.entries[slot].session.is_paused() {
                connections.hold_or_close(slot, scratch);
            } else if connections.work - work_before >= WORK_PER_SESSION {
                // Without memory for the rest it is handled now: at most 16 KiB.
                is_deferred =
                    connections.with_session(slot, |session, shared| session.defer_input(scratch, shared));
            }
        }
        let entry = &self.connections.entries[slot];
        if entry.session.is_paused() {
            if is_half_closed {
                self.connections.with_session(slot, |session, _| session.on_disconnected());
            }
        } else if is_deferred
            || matches!(outcome, ReadOutcome::Full | ReadOutcome::Deferred)
            || (outcome == ReadOutcome::Short && is_half_closed)
        {
            self.connections.mark_ready(slot);
        }
        // A Close frame or an error is no liveness signal.
        if matches!(outcome, ReadOutcome::Full | ReadOutcome::Short)
            && self.connections.entries[slot].session.is_open()
        {
            self.dispatcher.alive(times, conn, &mut self.connections);
        }
    }

    /// Runs timers of protocols, and evaluates the deadlines of a slice of the sessions.
    fn tick(&mut self) {
        let now = self.connections.shared.now;
        if self.dispatcher.next_timer().is_some_and(|at| at <= now) {
            self.dispatcher.fire_timers(self.times(), &mut self.connections);
        }
        if self.sweep_cursor.is_none() && self.next_sweep_at <= now {
            self.sweep_cursor = Some(0);
            self.next_sweep_at = now + SWEEP_EVERY;
            self.listeners.retry();
            self.connections.report_rejections();
            if let Some(until) = self.drain_deadline {
                self.advance_drain(until);
            }
        }
        if let Some(from) = self.sweep_cursor {
            let Server { connections, dispatcher, drained_share, .. } = self;
            self.sweep_cursor =
                connections.tick(from, |entry| drain::is_drained(entry, dispatcher, *drained_share));
        }
        if let Some(from) = self.close_cursor {
            self.close_cursor = self.connections.close_all(from);
        }
    }

    /// Flushes all dirty sessions, tells the protocols which of their sessions are no longer open, and removes closed ones.
    ///
    /// A report may make further sessions dirty. Reports beyond [`DEPARTURES_PER_ITERATION`] are left for the next iteration.
    fn flush_dirty_sessions(&mut self) {
        let times = self.times();
        let mut next = 0;
        let mut departures = 0;
        while let Some(&slot) = self.connections.dirty.get(next) {
            // The slot may have been freed, and may hold another connection now.
            let Some(entry) = self.connections.entries.get_mut(slot).filter(|entry| entry.dirty) else {
                next += 1;
                continue;
            };
            let is_alive = entry.session.flush(&mut self.connections.shared);
            let conn = entry.conn;
            let has_left = entry.stage == Stage::WebSocket && !entry.session.is_open();
            if has_left && departures >= DEPARTURES_PER_ITERATION {
                break;
            }
            next += 1;
            entry.dirty = false;
            if entry.session.resume_if_closing() {
                self.connections.mark_ready(slot);
            }
            if has_left {
                departures += 1;
                self.dispatcher.disconnect(times, conn, &mut self.connections);
            } else if is_alive {
                self.dispatcher.alive(times, conn, &mut self.connections);
            }
            if self.connections.entries[slot].session.is_closed() {
                self.connections.remove(slot);
                self.listeners.retry();
            }
        }
        self.connections.dirty.drain(..next);
    }

    /// Checks all invariants: after every iteration, or after some where checking takes long.
    fn check_invariants_sometimes(&mut self) {
        self.iterations = self.iterations.wrapping_add(1);
        let is_small = self.connections.entries.len() <= CHECKED_ALWAYS_MAX;
        if is_small || self.iterations.is_multiple_of(CHECKED_SELDOM_EVERY) {
            self.connections.check();
            self.dispatcher.check();
        }
    }

    fn times(&self) -> Times {
        Times { now: self.connections.shared.now, wall: self.connections.wall }
    }
}
