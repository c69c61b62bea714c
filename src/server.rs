//! The poll loop: the only file that knows mio, and the only one that knows all the others.
//!
//! Everything happens in turns, see [`Server::turn`]. Readiness is edge-triggered and registered once: a session
//! reads until the kernel has no more, but only one scratch full of it in one turn; who may have more is in the
//! ready queue, and the next poll does not wait. Whoever was touched is flushed once when all have been heard, and
//! whoever the clock touches after that. Sessions that are over are freed then, and new ones accepted last, so that
//! no event of a turn can reach a newcomer in an old slot. The signaling rules are the hub's; this loop carries its
//! effects out.

use std::fs;
use std::io::{self, ErrorKind};
use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use log::{debug, info};
use mio::event::Event as Readiness;
use mio::{Events, Interest, Poll, Token};
use signal_hook_mio::v1_0::Signals;
use slab::Slab;

use crate::config::{Config, DESCRIPTORS_SPARE, STOP_TIME_MAX, SWEEP_EVERY, SWEEP_PER_TURN};
use crate::http::{self, Door};
use crate::hub::Hub;
use crate::protocol::Input;
use crate::session::{End, Event, Fill, Scratch, Shared};
use crate::token::Fault;

mod clock;
mod connections;
mod listen;
mod service;
mod signals;

pub use connections::Connections;
pub use service::Service;

use clock::Clock;
use listen::{Listener, listen, listen_by_default, named};

/// Sessions have the tokens of their slots.
const SIGNALS: Token = Token(usize::MAX - 1);
/// Listeners count down from this token.
const LISTENERS: usize = usize::MAX - 2;

/// A server that listens.
pub struct Server<S = Hub> {
    poll: Poll,
    events: Events,
    clock: Clock,
    listeners: Vec<Listener>,
    connections: Connections,
    scratch: Scratch,
    service: S,
    /// Slots whose session may have more to read, though no event will say so.
    ready: Vec<usize>,
    /// Connections so far.
    numbers: u64,
    /// Sessions of the metrics listener.
    metrics_sessions: usize,
    /// When all deadlines are looked at next.
    sweep_at: Duration,
    /// The slot at which a sweep that has begun goes on.
    sweep: Option<usize>,
    /// When a stop that has begun ends at the latest.
    stop_at: Option<Duration>,
    /// For SIGTERM, SIGINT and SIGHUP, see [`Server::heed_signals`].
    signals: Option<Signals>,
    /// Whether a signal has come.
    signalled: bool,
    /// When it was last said that accepting fails.
    warned_at: Option<Duration>,
}

impl Server {
    /// Listens where the configuration says.
    ///
    /// # Errors
    /// An address that cannot be bound, or a system call that the loop needs and that fails.
    pub fn bind(config: Config) -> io::Result<Server> {
        Server::with(Hub::new(&config), config)
    }

    /// The rooms and the peers.
    pub fn hub(&self) -> &Hub {
        &self.service
    }
}

impl<S: Service> Server<S> {
    /// The same for something else to be served.
    ///
    /// # Errors
    /// See [`Server::bind`].
    pub fn with(service: S, config: Config) -> io::Result<Server<S>> {
        let poll = Poll::new()?;
        let mut sockets = Vec::new();
        for address in &config.listen {
            sockets.push((listen(*address).map_err(|error| named(error, *address))?, Door::Main));
        }
        if config.listen.is_empty() {
            sockets.push((listen_by_default()?, Door::Main));
        }
        if let Some(address) = config.metrics {
            sockets.push((listen(address).map_err(|error| named(error, address))?, Door::Metrics));
        }
        let mut listeners = Vec::new();
        for (mut socket, door) in sockets {
            poll.registry().register(&mut socket, Token(LISTENERS - listeners.len()), Interest::READABLE)?;
            listeners.push(Listener { socket, door, pending: false, failed: false });
        }
        // All that is ready is heard in one turn. The memory that is never needed is never touched.
        let events = Events::with_capacity(config.connections_max + DESCRIPTORS_SPARE);
        let mut shared = Shared::new(config);
        shared.metrics.closings = End::ALL.iter().map(|end| (end.name(), 0)).collect();
        shared.metrics.refused_tokens = Fault::ALL.iter().map(|fault| (fault.name(), 0)).collect();
        shared.metrics.refused_upgrades = http::REFUSALS.map(|status| (status, 0)).into();
        Ok(Server {
            poll,
            events,
            clock: Clock { start: Instant::now(), ahead: Duration::ZERO },
            listeners,
            connections: Connections {
                entries: Slab::new(),
                shared,
                touched: Vec::new(),
                upgraded: 0,
                refusals: 0,
            },
            scratch: Scratch::default(),
            service,
            ready: Vec::new(),
            numbers: 0,
            metrics_sessions: 0,
            sweep_at: Duration::ZERO,
            sweep: None,
            stop_at: None,
            signals: None,
            signalled: false,
            warned_at: None,
        })
    }

    /// Where it listens, with the real ports, in the order of the configuration.
    pub fn addresses(&self, door: Door) -> impl Iterator<Item = SocketAddr> {
        let doors = self.listeners.iter().filter(move |listener| listener.door == door);
        doors.map(|listener| listener.socket.local_addr().expect("a listener has an address"))
    }

    /// How many connections it has, of any kind.
    pub fn sessions(&self) -> usize {
        self.connections.entries.len()
    }

    /// Stops accepting and closes everybody with 1001. From now on the turns lead to [`Server::is_stopped`].
    pub fn stop(&mut self) {
        info!("stopping");
        self.listeners.clear();
        let now = self.clock.now();
        self.connections.shared.now = now;
        self.stop_at = Some(now + STOP_TIME_MAX);
        let slots: Vec<usize> = self.connections.entries.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.connections.reach(slot, |session, shared| session.close(End::GoingAway, shared));
        }
        self.settle();
    }

    /// Whether a stop has come to its end.
    pub fn is_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| self.connections.entries.is_empty() || at <= self.clock.now())
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
        self.accept();

        self.connections.shared.metrics.turned(self.clock.now() - began);
        Ok(())
    }

    /// How long there is nothing to do, if nothing happens.
    fn timeout(&self) -> Option<Duration> {
        let waited_for =
            |listener: &Listener| listener.pending && !listener.failed && self.has_place(listener.door);
        if !self.ready.is_empty() || self.sweep.is_some() || self.listeners.iter().any(waited_for) {
            return Some(Duration::ZERO);
        }
        let busy =
            !self.connections.entries.is_empty() || self.listeners.iter().any(|listener| listener.failed);
        let sweep = busy.then_some(self.sweep_at);
        let next = [self.service.wake_at(), sweep, self.stop_at].into_iter().flatten().min()?;
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
                self.connections.reach(slot, |_, _| ());
            }
        } else if event.token() == SIGNALS {
            self.signalled = true;
        } else if let Some(listener) = self.listeners.get_mut(LISTENERS - slot) {
            listener.pending = true;
        }
    }

    /// Lets a session read once, and handles all that came.
    fn receive(&mut self, slot: usize) {
        let Some(entry) = self.connections.entries.get(slot) else {
            return;
        };
        let conn = entry.conn;
        if entry.session.door() == Door::Metrics {
            self.collect();
        }
        let Connections { shared, upgraded, .. } = &mut self.connections;
        shared.full = *upgraded >= shared.config.connections_max || !shared.budget.allows(0);
        let Server { connections, scratch, service, .. } = self;
        let fill = connections.reach(slot, |session, shared| session.fill(scratch, shared));
        let now = connections.shared.now;
        while let Some(event) = connections.next(slot, scratch) {
            let input = match &event {
                Event::Upgraded(room, claims) => {
                    connections.upgrade(slot);
                    Input::Connected(conn, room, claims.as_ref())
                }
                Event::Refused(status, refusal) => {
                    connections.refuse(slot, *status, refusal);
                    continue;
                }
                Event::Text(text) => Input::Text(conn, text),
                Event::Binary(bytes) => Input::Binary(conn, bytes),
            };
            service.handle(now, input, connections);
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

    /// What is due by the clock: the service's alarms, and a slice of the sessions.
    fn tick(&mut self) {
        let now = self.connections.shared.now;
        if self.service.wake_at().is_some_and(|at| at <= now) {
            self.tell(Input::Time);
        }
        if self.sweep.is_none() && self.sweep_at <= now {
            self.sweep = Some(0);
            self.sweep_at = now + SWEEP_EVERY;
            self.retry();
            self.connections.tell_refusals();
            self.service.sweep(self.clock.epoch(), &mut self.connections);
        }
        if let Some(from) = self.sweep {
            let entries = &self.connections.entries;
            let occupied = (from..entries.capacity()).filter(|slot| entries.contains(*slot));
            let slots: Vec<usize> = occupied.take(SWEEP_PER_TURN).collect();
            self.sweep = slots.last().map(|last| last + 1).filter(|_| slots.len() == SWEEP_PER_TURN);
            for slot in slots {
                let Connections { entries, shared, .. } = &mut self.connections;
                if entries[slot].session.tick(shared) {
                    self.connections.reach(slot, |_, _| ());
                }
            }
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
                self.part(slot);
            }
            if self.connections.entries[slot].session.is_over() {
                self.free(slot);
            }
        }
        self.connections.touched.clear();
    }

    /// A WebSocket is one no longer.
    fn part(&mut self, slot: usize) {
        let entry = &mut self.connections.entries[slot];
        entry.served = false;
        let (conn, shared) = (entry.conn, &mut self.connections.shared);
        let end = entry.session.end().expect("what is no longer open has an end").name();
        *shared.metrics.closings.entry(end).or_default() += 1;
        let (room, id) = self.service.who(conn);
        info!(
            "connection {} from {} ended after {:.1} s: {end}; room {room:?}, {}",
            conn.number(),
            entry.session.address(),
            (shared.now - entry.since.get()).as_secs_f64(),
            id.map_or("no id".to_owned(), |id| format!("id {id:?}")),
        );
        self.tell(Input::Disconnected(conn));
    }

    fn free(&mut self, slot: usize) {
        let entry = self.connections.entries.remove(slot);
        self.connections.upgraded -= usize::from(entry.upgraded);
        self.metrics_sessions -= usize::from(entry.session.door() == Door::Metrics);
        debug!("connection {} from {} is gone", entry.conn.number(), entry.session.address());
        entry.session.free(&mut self.connections.shared);
        self.retry();
    }

    /// There may be a descriptor again.
    fn retry(&mut self) {
        for listener in &mut self.listeners {
            listener.failed = false;
        }
    }

    // ---- The service ----

    fn tell(&mut self, input: Input) {
        self.service.handle(self.connections.shared.now, input, &mut self.connections);
    }

    /// Brings the counts of others into the metrics.
    fn collect(&mut self) {
        let metrics = &mut self.connections.shared.metrics;
        metrics.connections = self.connections.upgraded;
        metrics.started = self.clock.epoch();
        metrics.descriptors = descriptors();
        self.service.collect(metrics);
    }
}

/// How many descriptors are open. Since Linux 6.2 that is the size of this directory (proc(5)), before it takes a look at
/// each.
fn descriptors() -> u64 {
    let size = fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
    if size > 0 { size } else { fs::read_dir("/proc/self/fd").map_or(0, |each| each.count() as u64) }
}
