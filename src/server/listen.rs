//! Listeners, and taking in who waits there.
//!
//! Accepting goes on while somebody waits and there is a place. When it fails, most likely because there are no
//! descriptors, the backlog stays and no event will say when that is over: it is tried again when a connection was
//! freed, and at every sweep.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;
use log::{debug, warn};
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, SockRef, Type};

use super::connections::Connections;
use crate::address::Address;
use crate::config::{Config, Listen};
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
    socket: Socket,
    door: Door,
    /// The file of the socket, if it was made here and is to go when nobody listens any more.
    file: Option<PathBuf>,
    /// Whether somebody may be in the backlog.
    pending: bool,
    /// Whether accepting failed.
    failed: bool,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listeners {
    pub fn bind(config: &Config, registry: &Registry) -> io::Result<Listeners> {
        let mut listeners = Vec::new();
        let mut add = |mut socket: Socket, door, file| {
            let token = Token(FIRST - listeners.len());
            match &mut socket {
                Socket::Tcp(listener) => registry.register(listener, token, Interest::READABLE)?,
                Socket::Unix(listener) => registry.register(listener, token, Interest::READABLE)?,
            }
            listeners.push(Listener { socket, door, file, pending: false, failed: false });
            io::Result::Ok(())
        };
        for at in &config.listen {
            match at {
                Listen::Tcp(address) => add(listen(*address)?, Door::Main, None)?,
                Listen::Unix(path) => add(listen_in_file(path)?, Door::Main, Some(path.clone()))?,
            }
        }
        let mut passed = ListenFd::from_env();
        for index in 0..passed.len() {
            let socket = inherited(&mut passed, index);
            let named = |error| io::Error::other(format!("a socket that was passed: {error}"));
            add(socket.map_err(named)?, Door::Main, None)?;
        }
        if config.listen.is_empty() && passed.len() == 0 {
            add(listen_by_default(config.port)?, Door::Main, None)?;
        }
        if let Some(address) = config.metrics {
            add(listen(address)?, Door::Metrics, None)?;
        }
        Ok(Listeners { listeners, warned_at: None })
    }

    /// Where it listens, with the real ports.
    pub fn places(&self, door: Door) -> impl Iterator<Item = Listen> {
        let doors = self.listeners.iter().filter(move |listener| listener.door == door);
        doors.map(|listener| listener.socket.place())
    }

    /// Listens no more.
    pub fn close(&mut self) {
        for Listener { file, .. } in self.listeners.drain(..) {
            // Before somebody else can have made one in its place.
            if let Some(Err(error)) = file.map(std::fs::remove_file) {
                debug!("the file of a socket is gone already: {error}");
            }
        }
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
        let shared = &connections.shared;
        // A proxy has everybody's connections, whoever else is in its place.
        let is_peer = self.door == Door::Main && !shared.config.trusts(address);
        if is_peer && shared.crowd.excess(address) >= CROWD_REFUSED_AT_ONCE {
            debug!("{address} has too many connections");
            return Ok(());
        }
        connections.welcome(stream, address, self.door, registry)
    }
}

impl Socket {
    fn accept(&self) -> io::Result<(TcpStream, Address)> {
        match self {
            Socket::Tcp(listener) => listener.accept().map(|(stream, address)| (stream, address.into())),
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                // This is not inherited from the listener.
                SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES)?;
                // To read, to write and to shut down are the same for a socket of any family.
                Ok((OwnedFd::from(stream).into(), Address::UNIX))
            }
        }
    }

    fn place(&self) -> Listen {
        match self {
            Socket::Tcp(listener) => Listen::Tcp(listener.local_addr().expect("a listener has an address")),
            Socket::Unix(listener) => {
                let address = listener.local_addr().expect("a listener has an address");
                // One that was passed may have a name that is no path.
                Listen::Unix(address.as_pathname().unwrap_or(Path::new("?")).to_owned())
            }
        }
    }
}

/// A port of all addresses of the machine.
fn listen_by_default(port: u16) -> io::Result<Socket> {
    let (all, all_v4) = ((Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into());
    match listen(all) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(error),
        // The kernel has no IPv6, or it is switched off.
        Err(_) => listen(all_v4),
    }
}

/// A socket of a supervisor's, which listens already.
fn inherited(passed: &mut ListenFd, index: usize) -> io::Result<Socket> {
    if let Ok(Some(listener)) = passed.take_unix_listener(index) {
        listener.set_nonblocking(true)?;
        return Ok(Socket::Unix(UnixListener::from_std(listener)));
    }
    let listener = passed.take_tcp_listener(index)?.ok_or(ErrorKind::Other)?;
    prepare(&SockRef::from(&listener))?;
    Ok(Socket::Tcp(TcpListener::from_std(listener)))
}

fn prepare(socket: &socket2::Socket) -> io::Result<()> {
    // Not as a flag of its type, which macOS does not know.
    socket.set_nonblocking(true)?;
    // Both are inherited by what is accepted: no system call for each connection.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    bind(address).map(Socket::Tcp).map_err(|error| cannot_listen(Listen::Tcp(address), error))
}

/// With the mode that the umask gives: who may write to the file may connect.
fn listen_in_file(path: &Path) -> io::Result<Socket> {
    // Whoever was killed leaves his file behind, and nobody takes a connection there.
    let is_socket = path.symlink_metadata().is_ok_and(|it| it.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err_and(|it| it.kind() == ErrorKind::ConnectionRefused) {
        // If it stays, the next line says why.
        let _ = std::fs::remove_file(path);
    }
    bind_in_file(path).map(Socket::Unix).map_err(|error| cannot_listen(Listen::Unix(path.to_owned()), error))
}

fn cannot_listen(at: Listen, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {at}: {error}"))
}

fn bind_in_file(path: &Path) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(UnixListener::from_std(OwnedFd::from(socket).into()))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
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
