//! Listeners, and taking in who waits there.
//!
//! Accepting goes on while somebody waits and there is a place. When it fails, most likely because there are no
//! descriptors, the backlog stays and no event will say when that is over: it is tried again when a connection was
//! freed, and at every sweep.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use listenfd::ListenFd;
use log::{debug, warn};
use mio::net::TcpListener;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::connections::Connections;
use crate::address::Address;
use crate::config::Config;
use crate::http::Door;
use crate::limits::{ACCEPTS_PER_TURN, BACKLOG, CROWD_REFUSED_AT_ONCE, SEND_BUFFER_BYTES, SWEEP_EVERY};

/// Listeners count down from this token.
const FIRST: usize = usize::MAX - 2;

/// All listeners, in the order of the configuration.
pub(super) struct Listeners {
    listeners: Vec<Listener>,
    /// When it was last said that accepting fails.
    warned_at: Option<Duration>,
}

struct Listener {
    socket: TcpListener,
    door: Door,
    /// Whether somebody may be in the backlog.
    pending: bool,
    /// Whether accepting failed.
    failed: bool,
}

impl Listeners {
    pub fn bind(config: &Config, registry: &Registry) -> io::Result<Listeners> {
        let mut sockets = Vec::new();
        for address in &config.listen {
            sockets.push((listen(*address)?, Door::Main));
        }
        let mut passed = ListenFd::from_env();
        for index in 0..passed.len() {
            let socket =
                passed.take_tcp_listener(index).and_then(|socket| socket.ok_or(ErrorKind::Other.into()));
            let socket =
                socket.map_err(|error| io::Error::other(format!("a socket that was passed: {error}")))?;
            sockets.push((inherited(socket)?, Door::Main));
        }
        if sockets.is_empty() {
            sockets.push((listen_by_default(config.port)?, Door::Main));
        }
        if let Some(address) = config.metrics {
            sockets.push((listen(address)?, Door::Metrics));
        }
        let mut listeners = Vec::new();
        for (mut socket, door) in sockets {
            registry.register(&mut socket, Token(FIRST - listeners.len()), Interest::READABLE)?;
            listeners.push(Listener { socket, door, pending: false, failed: false });
        }
        Ok(Listeners { listeners, warned_at: None })
    }

    /// With the real ports.
    pub fn addresses(&self, door: Door) -> impl Iterator<Item = SocketAddr> {
        let doors = self.listeners.iter().filter(move |listener| listener.door == door);
        doors.map(|listener| listener.socket.local_addr().expect("a listener has an address"))
    }

    /// Listens no more.
    pub fn close(&mut self) {
        self.listeners.clear();
    }

    /// Somebody waits at the listener of this token, if it is one.
    pub fn notice(&mut self, token: Token) {
        if let Some(listener) = self.listeners.get_mut(FIRST - token.0) {
            listener.pending = true;
        }
    }

    /// Whether somebody may be accepted at once.
    pub fn are_ready(&self, connections: &Connections) -> bool {
        let is_ready = |it: &Listener| it.pending && !it.failed && connections.have_place(it.door);
        self.listeners.iter().any(is_ready)
    }

    /// Whether accepting failed.
    pub fn have_failed(&self) -> bool {
        self.listeners.iter().any(|listener| listener.failed)
    }

    /// There may be a descriptor again.
    pub fn retry(&mut self) {
        for listener in &mut self.listeners {
            listener.failed = false;
        }
    }

    /// Takes in who waits, as long as there is a place.
    pub fn accept(&mut self, connections: &mut Connections, registry: &Registry) {
        for listener in &mut self.listeners {
            for _ in 0..ACCEPTS_PER_TURN {
                if !listener.pending || listener.failed || !connections.have_place(listener.door) {
                    break;
                }
                if let Err(error) = listener.accept(connections, registry) {
                    match error.kind() {
                        ErrorKind::WouldBlock => listener.pending = false,
                        // It left while it was in the backlog, or a signal came.
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                        _ => {
                            listener.failed = true;
                            let now = connections.shared.now;
                            if self.warned_at.is_none_or(|at| now - at >= SWEEP_EVERY) {
                                self.warned_at = Some(now);
                                warn!("cannot accept: {error}");
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Listener {
    /// Accepts one connection.
    fn accept(&self, connections: &mut Connections, registry: &Registry) -> io::Result<()> {
        let (stream, address) = self.socket.accept()?;
        let address = Address::from(address);
        let shared = &connections.shared;
        // A proxy has everybody's connections, whoever else is in its place.
        let is_peer = self.door == Door::Main && !shared.config.trusts(address.ip());
        if is_peer && shared.crowd.excess(address) >= CROWD_REFUSED_AT_ONCE {
            debug!("{address} has too many connections");
            return Ok(());
        }
        connections.welcome(stream, address, self.door, registry)
    }
}

/// A port of all addresses of the machine.
fn listen_by_default(port: u16) -> io::Result<TcpListener> {
    let (all, all_v4) = ((Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into());
    match listen(all) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(error),
        // The kernel has no IPv6, or it is switched off.
        Err(_) => listen(all_v4),
    }
}

/// A socket of a supervisor's, which listens already.
fn inherited(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    prepare(&SockRef::from(&listener))?;
    Ok(TcpListener::from_std(listener))
}

fn prepare(socket: &Socket) -> io::Result<()> {
    // Not as a flag of its type, which macOS does not know.
    socket.set_nonblocking(true)?;
    // Both are inherited by what is accepted: no system call for each connection.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    prepare(&socket)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Restarting must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}
