//! The poll loop: the only file that knows mio, and the only one that knows all the others.
//!
//! Everything happens in turns, see [`Server::turn`]. Readiness is edge-triggered and registered once: a session
//! reads until the kernel has no more, but only one scratch full of it in one turn; who may have more is in the
//! ready queue, and the next poll does not wait. Whoever was touched is flushed once when all have been heard, and
//! whoever the clock touches after that. Sessions that are over are freed then, and new ones accepted last, so that
//! no event of a turn can reach a newcomer in an old slot. The rules are the protocols', behind the gate, and
//! `connections` carries their effects out.

mod clock;
mod connections;
mod listen;
mod questions;
mod signals;
mod stop;
mod supervisor;

use std::hash::RandomState;
use std::io::{self, ErrorKind};
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event as Readiness;
use mio::{Events, Poll, Token};
use signal_hook_mio::v1_0::Signals;

use crate::ayame::Ayame;
use crate::config::{Config, Listen};
use crate::gate::Gate;
use crate::http::Door;
use crate::hub::Hub;
use crate::limits::{DESCRIPTORS_SPARE, SWEEP_EVERY};
use crate::matchbox::Matchbox;
use crate::protocol::{Dialect, Input};
use crate::session::{Event, Fill, Scratch, Shared};
use clock::Clock;
use connections::Connections;
use listen::Listeners;
use supervisor::Supervisor;

/// Sessions have the tokens of their slots, and listeners count down from the one before this.
const SIGNALS: Token = Token(usize::MAX - 1);

/// A server that listens.
pub struct Server {
    poll: Poll,
    events: Events,
    clock: Clock,
    listeners: Listeners,
    connections: Connections,
    scratch: Scratch,
    gate: Gate,
    /// Slots whose session may have more to read, though no event will say so.
    ready: Vec<usize>,
    /// When all deadlines are looked at next.
    sweep_at: Duration,
    /// The slot at which a sweep that has begun goes on.
    sweep: Option<usize>,
    /// When a drain that has begun is over.
    drained_at: Option<Duration>,
    /// When a stop that has begun ends at the latest.
    stop_at: Option<Duration>,
    supervisor: Supervisor,
    /// The signals that are handled, see [`Server::heed_signals`].
    signals: Option<Signals>,
    /// Whether a signal has come.
    signalled: bool,
}

impl Server {
    /// Listens where the configuration says.
    ///
    /// # Errors
    /// An address that cannot be bound, or a system call that the loop needs and that fails.
    pub fn bind(config: Config) -> io::Result<Server> {
        let mut gate = Gate::new(&config).to(Dialect::Noroshi, Hub::new(&config));
        if config.ayame.is_some() {
            gate = gate.to(Dialect::Ayame, Ayame::new(&config, RandomState::new()));
        }
        if config.matchbox.is_some() {
            gate = gate.to(Dialect::Matchbox, Matchbox::new(&config, RandomState::new()));
        }
        Server::with(gate, config)
    }

    /// The same with other protocols behind the gate.
    ///
    /// # Errors
    /// See [`Server::bind`].
    pub fn with(gate: Gate, config: Config) -> io::Result<Server> {
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
            gate,
            ready: Vec::new(),
            sweep_at: Duration::ZERO,
            sweep: None,
            drained_at: None,
            stop_at: None,
            supervisor: Supervisor::new(),
            signals: None,
            signalled: false,
        })
    }

    /// Where it listens, with the real ports.
    pub fn places(&self, door: Door) -> impl Iterator<Item = Listen> {
        self.listeners.places(door)
    }

    /// The same where it listens at an address.
    pub fn addresses(&self, door: Door) -> impl Iterator<Item = SocketAddr> {
        self.places(door).filter_map(|place| match place {
            Listen::Tcp(address) => Some(address),
            Listen::Unix(_) => None,
        })
    }

    /// The protocols, and who speaks them.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// How many connections it has, of any kind.
    pub fn sessions(&self) -> usize {
        self.connections.entries.len()
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
        self.connections.shared.wall = self.clock.wall();
        match polled {
            Ok(()) => {}
            // SIGSTOP and SIGCONT, for one. Nobody is judged by the clock before what came meanwhile is read.
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.events = events;
                return Ok(());
            }
            Err(error) => return Err(error),
        }

        let ready = mem::take(&mut self.ready);
        for event in &events {
            self.notice(event);
        }
        for slot in ready {
            if let Some(entry) = self.connections.entries.get_mut(slot).filter(|entry| entry.ready) {
                entry.ready = false;
                self.receive(slot);
            }
        }
        self.events = events;
        // Who can take what is queued takes it before the clock says that it is slow.
        self.settle();
        self.tick();
        self.settle();
        self.listeners.accept(&mut self.connections, self.poll.registry());

        let rooms = || self.gate.each().map(|(_, protocol)| protocol.counts(began).rooms).sum();
        self.supervisor.turned(began, self.connections.upgraded, rooms);
        self.connections.shared.metrics.turns.record(self.clock.now() - began);
        Ok(())
    }

    /// How long there is nothing to do, if nothing happens.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() || self.sweep.is_some() {
            return Some(Duration::ZERO);
        }
        let busy = !self.connections.entries.is_empty()
            || self.connections.has_refusals_to_report()
            || self.listeners.have_failed()
            || self.drained_at.is_some();
        let sweep = busy.then_some(self.sweep_at);
        let accept = self.listeners.accept_at(&self.connections);
        let times = [self.gate.wake_at(), sweep, accept, self.stop_at, self.supervisor.due()];
        let next = times.into_iter().flatten().min()?;
        Some(next.saturating_sub(self.clock.now()))
    }

    // ---- Phases of a turn ----

    fn notice(&mut self, event: &Readiness) {
        let Token(slot) = event.token();
        if let Some(entry) = self.connections.entries.get_mut(slot) {
            entry.half_closed |= event.is_read_closed() || event.is_error();
            // Who is in the ready queue has its read from there, and one is enough.
            if (event.is_readable() || entry.half_closed) && !entry.ready {
                self.receive(slot);
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

    /// Lets a session read once, and handles all that came.
    fn receive(&mut self, slot: usize) {
        let Some(entry) = self.connections.entries.get(slot) else {
            return;
        };
        let conn = entry.conn;
        self.connections.shared.full = self.connections.are_full();
        let Server { connections, scratch, gate, .. } = self;
        let fill = connections.reach(slot, |session, shared| session.fill(scratch, shared));
        let (now, wall) = (connections.shared.now, connections.shared.wall);
        while let Some(event) = connections.next(slot, scratch, gate) {
            let input = match &event {
                Event::Upgraded(target, claims) => {
                    connections.upgrade(slot);
                    Input::Connected(conn, target, claims.as_ref())
                }
                Event::Refused(status, refusal) => {
                    connections.refuse(slot, *status, refusal);
                    continue;
                }
                Event::Asked(question) => {
                    let answer = self.told(question);
                    self.connections.reach(slot, |session, shared| session.answer(answer, shared));
                    break;
                }
                Event::Text(text) => Input::Text(conn, text),
                Event::Binary(bytes) => Input::Binary(conn, bytes),
            };
            gate.handle(now, wall, input, connections);
        }
        let entry = &mut self.connections.entries[slot];
        let more = fill == Fill::More || (fill == Fill::Drained && entry.half_closed);
        if more && !mem::replace(&mut entry.ready, true) {
            self.ready.push(slot);
        }
        // A goodbye is no sign of life.
        if matches!(fill, Fill::More | Fill::Drained) && entry.session.is_open() {
            self.tell(Input::Alive(conn));
        }
    }

    /// What is due by the clock: the protocols' alarms, and a slice of the sessions.
    fn tick(&mut self) {
        let now = self.connections.shared.now;
        if self.gate.wake_at().is_some_and(|at| at <= now) {
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
            let Shared { config, budget, .. } = &mut self.connections.shared;
            if config.memory_bytes_max.is_some() {
                budget.recount(self.gate.each().map(|(_, protocol)| protocol.kept()).sum());
            }
        }
        if let Some(from) = self.sweep {
            self.sweep = self.connections.tick(from);
        }
    }

    /// Flushes whoever was touched, once each, and parts with those who have ended. Parting touches others.
    fn settle(&mut self) {
        let mut next = 0;
        while let Some(&slot) = self.connections.touched.get(next) {
            next += 1;
            let entry = &mut self.connections.entries[slot];
            entry.touched = false;
            entry.session.flush(&mut self.connections.shared);
            if entry.served && !entry.session.is_open() {
                let conn = entry.conn;
                self.tell(Input::Disconnected(conn));
            }
            if self.connections.entries[slot].session.is_over() {
                self.connections.free(slot);
                self.listeners.retry();
            }
        }
        self.connections.touched.clear();
    }

    // ---- The protocols ----

    fn tell(&mut self, input: Input) {
        let (now, wall) = (self.connections.shared.now, self.connections.shared.wall);
        self.gate.handle(now, wall, input, &mut self.connections);
    }
}
