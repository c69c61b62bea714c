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
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{debug, info, warn};
use mio::event::Event as Readiness;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

use crate::address::Address;
use crate::config::{
    ACCEPTS_PER_TURN, BACKLOG, CONNECTION_BYTES, CROWD_REFUSED_AT_ONCE, Config, DESCRIPTORS_SPARE,
    METRICS_AT_ONCE, REFUSALS_LOGGED_MAX, REFUSED_AT_ONCE, SEND_BUFFER_BYTES, STOP_TIME_MAX, SWEEP_EVERY,
    SWEEP_PER_TURN,
};
use crate::http::{self, Door, Refusal};
use crate::hub::Hub;
use crate::message::{Code, Kind};
use crate::metrics::Metrics;
use crate::protocol::{Close, Conn, Effect, Input, Outbox};
use crate::session::{self, End, Event, Fill, Scratch, Session, Shared};
use crate::stamp::Stamp;
use crate::token::Fault;

/// Sessions have the tokens of their slots.
const SIGNALS: Token = Token(usize::MAX - 1);
/// Listeners count down from this token.
const LISTENERS: usize = usize::MAX - 2;

/// What is served: it is told of all that happens on connections, and has its say through them.
pub trait Service {
    /// Takes one input. `now` is the time since the start.
    fn handle(&mut self, now: Duration, input: Input, connections: &mut Connections);

    /// When [`Input::Time`] is due next.
    fn wake_at(&self) -> Option<Duration> {
        None
    }

    /// Sees to what is to be done now and then: at every sweep. The epoch is when the server started, since 1970.
    fn sweep(&mut self, _epoch: Duration, _connections: &mut Connections) {}

    /// There may be other secrets in the configuration.
    fn renew(&mut self, _config: &Config) {}

    /// The room of a connection, and the id that it has there. For the log.
    fn who(&self, _conn: Conn) -> (&str, Option<&str>) {
        ("", None)
    }

    /// Brings what it has counted into the metrics.
    fn collect(&self, _metrics: &mut Metrics) {}
}

impl Service for Hub {
    fn handle(&mut self, now: Duration, input: Input, connections: &mut Connections) {
        self.handle(now, input, connections);
        connections.shared.budget.kept = self.kept();
    }

    fn wake_at(&self) -> Option<Duration> {
        self.wake_at()
    }

    fn sweep(&mut self, epoch: Duration, connections: &mut Connections) {
        self.set_epoch(epoch);
        if connections.shared.config.memory_bytes_max.is_some() {
            self.recount();
            connections.shared.budget.kept = self.kept();
        }
    }

    fn renew(&mut self, config: &Config) {
        self.renew(config);
    }

    fn who(&self, conn: Conn) -> (&str, Option<&str>) {
        self.who(conn).expect("the hub forgets nobody before the server does")
    }

    fn collect(&self, metrics: &mut Metrics) {
        metrics.peers = self.peers();
        metrics.rooms = self.rooms();
        metrics.messages = Kind::ALL.iter().map(|kind| kind.name()).zip(self.tally().messages).collect();
        metrics.errors = Code::ALL.iter().map(|code| code.name()).zip(self.tally().errors).collect();
    }
}

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

/// All connections, as far as a service reaches them.
pub struct Connections {
    entries: Slab<Entry>,
    shared: Shared,
    /// Slots that something happened to in this turn.
    touched: Vec<usize>,
    /// WebSockets, closing ones included.
    upgraded: usize,
    /// Upgrades that were refused since the last sweep began.
    refusals: usize,
}

struct Entry {
    session: Session<TcpStream>,
    conn: Conn,
    since: Stamp,
    /// Whether it was counted as a WebSocket.
    upgraded: bool,
    /// Whether the service knows it.
    served: bool,
    /// Whether it is in `touched`.
    touched: bool,
    /// Whether it is in `ready`.
    ready: bool,
    /// Whether an event said that the peer sends no more: then a short read proves nothing.
    half_closed: bool,
}

struct Listener {
    socket: TcpListener,
    door: Door,
    /// Whether somebody may be in the backlog.
    pending: bool,
    /// Whether accepting failed; tried again when a descriptor was freed, and at every sweep.
    failed: bool,
}

/// The monotonic time since the start, which a test may move forward.
struct Clock {
    start: Instant,
    ahead: Duration,
}

impl Clock {
    fn now(&self) -> Duration {
        self.start.elapsed() + self.ahead
    }

    /// What time it is, since 1970. Whoever may set the clock on the wall may set it at any time.
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// What time it was, since 1970, when this clock began, by what the clock on the wall says now.
    fn epoch(&self) -> Duration {
        self.wall().saturating_sub(self.now())
    }
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

    /// From now on SIGTERM, SIGINT and SIGHUP are for [`Server::run`], and no longer end the process.
    ///
    /// # Errors
    /// A system call that this needs fails.
    pub fn heed_signals(&mut self) -> io::Result<()> {
        let signals = self.signals.insert(Signals::new([SIGTERM, SIGINT, SIGHUP])?);
        self.poll.registry().register(signals, SIGNALS, Interest::READABLE)
    }

    /// Serves until a signal comes, then says goodbye. A second signal ends it at once.
    ///
    /// # Errors
    /// The poll fails, which no peer can bring about.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_stopped() {
            self.turn(None)?;
            if !mem::take(&mut self.signalled) {
                continue;
            }
            let came: Vec<_> = self.signals.iter_mut().flat_map(|signals| signals.pending()).collect();
            for signal in came {
                match signal {
                    SIGHUP => self.reload(),
                    _ if self.stop_at.is_some() => return Ok(()),
                    _ => self.stop(),
                }
            }
        }
        Ok(())
    }

    /// Reads anew what is in files. If one of them is of no use, nothing changes.
    fn reload(&mut self) {
        let config = &mut self.connections.shared.config;
        let mut renewed = config.clone();
        match renewed.read_files() {
            Ok(()) => {
                info!("SIGHUP: secrets were read anew");
                *config = renewed;
                self.service.renew(config);
            }
            Err(error) => warn!("SIGHUP: {error}; the old secrets stay"),
        }
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

    fn accept(&mut self) {
        for i in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                let Listener { door, pending: true, failed: false, .. } = self.listeners[i] else {
                    break;
                };
                if !self.has_place(door) {
                    break;
                }
                match self.listeners[i].socket.accept() {
                    Ok((stream, address)) => {
                        let address = Address::from(address);
                        let Shared { config, crowd, .. } = &self.connections.shared;
                        // A proxy has everybody's connections, whoever else is in its place.
                        let is_peer = door == Door::Main && !config.trusts(address.ip());
                        if is_peer && crowd.excess(address) >= CROWD_REFUSED_AT_ONCE {
                            debug!("{address} has too many connections");
                            continue;
                        }
                        if let Err(error) = self.welcome(stream, address, door) {
                            self.cannot_accept(i, &error);
                        }
                    }
                    Err(error) => match error.kind() {
                        ErrorKind::WouldBlock => self.listeners[i].pending = false,
                        // It left while it was in the backlog, or a signal came.
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                        // No descriptors, most likely: the backlog stays, and no event will say when it is over.
                        _ => self.cannot_accept(i, &error),
                    },
                }
            }
        }
    }

    fn cannot_accept(&mut self, listener: usize, error: &io::Error) {
        self.listeners[listener].failed = true;
        let now = self.connections.shared.now;
        if self.warned_at.is_none_or(|at| now - at >= SWEEP_EVERY) {
            self.warned_at = Some(now);
            warn!("cannot accept: {error}");
        }
    }

    fn welcome(&mut self, mut stream: TcpStream, address: Address, door: Door) -> io::Result<()> {
        let slot = self.connections.entries.vacant_key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut stream, Token(slot), interest)?;
        self.numbers += 1;
        let (conn, shared) = (Conn::new(self.numbers, slot), &mut self.connections.shared);
        self.metrics_sessions += usize::from(door == Door::Metrics);
        self.connections.entries.insert(Entry {
            session: Session::new(stream, door, address, shared),
            conn,
            since: shared.now.into(),
            upgraded: false,
            served: false,
            touched: false,
            ready: false,
            half_closed: false,
        });
        Ok(())
    }

    fn has_place(&self, door: Door) -> bool {
        let main = self.connections.entries.len() - self.metrics_sessions;
        let shared = &self.connections.shared;
        match door {
            // Without memory, too, there is place for some who are told so.
            Door::Main if !shared.budget.allows(CONNECTION_BYTES) => {
                main < self.connections.upgraded + REFUSED_AT_ONCE
            }
            Door::Main => main < shared.config.connections_max + REFUSED_AT_ONCE,
            Door::Metrics => self.metrics_sessions < METRICS_AT_ONCE,
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

impl Connections {
    /// Sends a message of bytes, for which the signaling has no use.
    pub fn send_binary(&mut self, to: Conn, bytes: &[u8]) {
        self.reach(to.slot(), |session, shared| session.send_binary(bytes, shared));
    }

    /// Does something with a session, which is flushed at the end of the turn, and parted with if it has ended.
    fn reach<T>(&mut self, slot: usize, work: impl FnOnce(&mut Session<TcpStream>, &mut Shared) -> T) -> T {
        let entry = &mut self.entries[slot];
        if !mem::replace(&mut entry.touched, true) {
            self.touched.push(slot);
        }
        work(&mut entry.session, &mut self.shared)
    }

    /// What a session that was just reached has to say next.
    fn next<'a>(&mut self, slot: usize, scratch: &'a mut Scratch) -> Option<Event<'a>> {
        self.entries[slot].session.next(scratch, &mut self.shared)
    }

    /// A request for a WebSocket was refused.
    fn refuse(&mut self, slot: usize, status: u16, refusal: &Refusal) {
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
    fn tell_refusals(&mut self) {
        let refusals = mem::take(&mut self.refusals);
        if let Some(more @ 1..) = refusals.checked_sub(REFUSALS_LOGGED_MAX) {
            info!("and {more} more upgrades were refused");
        }
    }

    fn upgrade(&mut self, slot: usize) {
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

/// How many descriptors are open. Since Linux 6.2 that is the size of this directory (proc(5)), before it takes a look at
/// each.
fn descriptors() -> u64 {
    let size = fs::metadata("/proc/self/fd").map_or(0, |directory| directory.len());
    if size > 0 { size } else { fs::read_dir("/proc/self/fd").map_or(0, |each| each.count() as u64) }
}

impl session::Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Port 8080 of all addresses of the machine.
fn listen_by_default() -> io::Result<TcpListener> {
    let (all, all_v4) = ((Ipv6Addr::UNSPECIFIED, 8080).into(), (Ipv4Addr::UNSPECIFIED, 8080).into());
    match listen(all) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(named(error, all)),
        // The kernel has no IPv6, or it is switched off.
        Err(_) => listen(all_v4).map_err(|error| named(error, all_v4)),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Restarting must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    // Both are inherited by what is accepted: no system call for each connection.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn named(error: io::Error, address: SocketAddr) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
