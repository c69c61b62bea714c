//! Listening, and taking in who comes.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use log::{debug, warn};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Token};
use socket2::{Domain, Protocol, Socket, Type};

use super::connections::Entry;
use super::{Server, Service};
use crate::address::Address;
use crate::config::{
    ACCEPTS_PER_TURN, BACKLOG, CONNECTION_BYTES, CROWD_REFUSED_AT_ONCE, METRICS_AT_ONCE, REFUSED_AT_ONCE,
    SEND_BUFFER_BYTES, SWEEP_EVERY,
};
use crate::http::Door;
use crate::protocol::Conn;
use crate::session::{Session, Shared};

pub(super) struct Listener {
    pub socket: TcpListener,
    pub door: Door,
    /// Whether somebody may be in the backlog.
    pub pending: bool,
    /// Whether accepting failed; tried again when a descriptor was freed, and at every sweep.
    pub failed: bool,
}

impl<S: Service> Server<S> {
    /// Takes in who waits, as long as there is place.
    pub(super) fn accept(&mut self) {
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

    pub(super) fn cannot_accept(&mut self, listener: usize, error: &io::Error) {
        self.listeners[listener].failed = true;
        let now = self.connections.shared.now;
        if self.warned_at.is_none_or(|at| now - at >= SWEEP_EVERY) {
            self.warned_at = Some(now);
            warn!("cannot accept: {error}");
        }
    }

    pub(super) fn welcome(&mut self, mut stream: TcpStream, address: Address, door: Door) -> io::Result<()> {
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

    pub(super) fn has_place(&self, door: Door) -> bool {
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
}

/// Port 8080 of all addresses of the machine.
pub(super) fn listen_by_default() -> io::Result<TcpListener> {
    let (all, all_v4) = ((Ipv6Addr::UNSPECIFIED, 8080).into(), (Ipv4Addr::UNSPECIFIED, 8080).into());
    match listen(all) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(named(error, all)),
        // The kernel has no IPv6, or it is switched off.
        Err(_) => listen(all_v4).map_err(|error| named(error, all_v4)),
    }
}

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
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

pub(super) fn named(error: io::Error, address: SocketAddr) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}
