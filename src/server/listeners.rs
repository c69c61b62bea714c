//! Listeners: binding them, and accepting connections.
//!
//! Connections are accepted while there is capacity, or an older connection that may be evicted. When accepting fails, most
//! likely for want of descriptors, the backlog stays and no event follows: it is tried again after a connection was removed,
//! and at every sweep.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use log::{debug, warn};
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, SockAddr, SockRef, Type};

use super::connections::Connections;
use crate::config::{Config, ListenAddress};
use crate::http::ListenerKind;
use crate::http::address::Address;
use crate::limits::{
    ACCEPTS_PER_ITERATION, BACKLOG, PER_IP_REJECTED_AT_ONCE, SEND_BUFFER_BYTES, SOCKET_LOCK_RETRY_EVERY,
    SOCKET_LOCK_TIME_MAX, SWEEP_EVERY,
};

/// The mio token of the first listener. Further ones count down from it.
const FIRST: usize = usize::MAX - 2;

/// All listeners, in the order of the configuration.
pub(super) struct Listeners {
    listeners: Vec<Listener>,
    /// When the log last said that accepting fails.
    warned_at: Option<Duration>,
}

struct Listener {
    /// The file of the socket, if it was made here. It is before the socket because fields are dropped in this order: the
    /// file is removed before another process can find that nobody listens there.
    _file: Option<SocketFile>,
    socket: Socket,
    kind: ListenerKind,
    /// Whether the backlog may have connections.
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
        let mut add = |mut socket: Socket, kind, _file| {
            let token = Token(FIRST - listeners.len());
            match &mut socket {
                Socket::Tcp(listener) => registry.register(listener, token, Interest::READABLE)?,
                Socket::Unix(listener) => registry.register(listener, token, Interest::READABLE)?,
            }
            listeners.push(Listener { _file, socket, kind, pending: false, failed: false });
            io::Result::Ok(())
        };
        for at in &config.listen {
            match at {
                ListenAddress::Tcp(address) => add(listen(*address)?, ListenerKind::Main, None)?,
                ListenAddress::Unix(path) => {
                    let (socket, file) = listen_in_file(path)
                        .map_err(|error| cannot_listen(ListenAddress::Unix(path.to_owned()), error))?;
                    add(Socket::Unix(socket), ListenerKind::Main, Some(file))?;
                }
            }
        }
        let mut passed = ListenFd::from_env();
        for index in 0..passed.len() {
            let socket = inherited(&mut passed, index);
            let named = |error| io::Error::other(format!("a socket that was passed: {error}"));
            add(socket.map_err(named)?, ListenerKind::Main, None)?;
        }
        if config.listen.is_empty() && passed.len() == 0 {
            add(listen_by_default(config.port)?, ListenerKind::Main, None)?;
        }
        if let Some(address) = config.metrics {
            add(listen(address)?, ListenerKind::Operator, None)?;
        }
        Ok(Listeners { listeners, warned_at: None })
    }

    /// Returns where the listeners of this kind listen, with the real ports.
    pub fn listen_addresses(&self, kind: ListenerKind) -> impl Iterator<Item = ListenAddress> {
        let matching = self.listeners.iter().filter(move |listener| listener.kind == kind);
        matching.map(|listener| listener.socket.address())
    }

    /// Closes all listeners, and removes the files of sockets.
    pub fn close(&mut self) {
        self.listeners.clear();
    }

    /// Notes that the listener with this token, if there is one, has connections in its backlog.
    pub fn on_readiness(&mut self, token: Token) {
        if let Some(listener) = self.listeners.get_mut(FIRST - token.0) {
            listener.pending = true;
        }
    }

    /// Returns when the next connection in a backlog can be accepted, if there may be one.
    pub fn accept_at(&self, connections: &Connections) -> Option<Duration> {
        let waiting = self.listeners.iter().filter(|it| it.pending && !it.failed);
        waiting.filter_map(|it| connections.capacity_at(it.kind)).min()
    }

    /// Returns whether accepting failed, so that it has to be tried again.
    pub fn have_failed(&self) -> bool {
        self.listeners.iter().any(|listener| listener.failed)
    }

    /// Tries to accept again, because a descriptor may be free.
    pub fn retry(&mut self) {
        for listener in &mut self.listeners {
            listener.failed = false;
        }
    }

    /// Accepts connections while there is capacity.
    pub fn accept(&mut self, connections: &mut Connections, registry: &Registry) {
        for listener in &mut self.listeners {
            for _ in 0..ACCEPTS_PER_ITERATION {
                let now = connections.shared.now;
                let has_capacity = connections.capacity_at(listener.kind).is_some_and(|at| at <= now);
                if !listener.pending || listener.failed || !has_capacity {
                    break;
                }
                if let Err(error) = listener.accept(connections, registry) {
                    match error.kind() {
                        ErrorKind::WouldBlock => listener.pending = false,
                        // The peer left while it was in the backlog, or a signal came.
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                        _ => {
                            listener.failed = true;
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
        // A trusted proxy is not limited: its connections are those of many clients.
        let is_peer = self.kind == ListenerKind::Main && !shared.config.is_trusted_proxy(address);
        if is_peer && connections.per_ip.excess(address) >= PER_IP_REJECTED_AT_ONCE {
            debug!("{address} has too many connections");
            return Ok(());
        }
        connections.make_capacity(self.kind);
        connections.register(stream, address, self.kind, registry)
    }
}

impl Socket {
    fn accept(&self) -> io::Result<(TcpStream, Address)> {
        match self {
            Socket::Tcp(listener) => listener.accept().map(|(stream, address)| (stream, address.into())),
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                // Unlike with TCP, this is not inherited from the listener.
                SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES)?;
                // read(2), write(2) and shutdown(2) do not depend on the family of the socket.
                Ok((OwnedFd::from(stream).into(), Address::UNIX))
            }
        }
    }

    fn address(&self) -> ListenAddress {
        match self {
            Socket::Tcp(listener) => {
                ListenAddress::Tcp(listener.local_addr().expect("a listener has an address"))
            }
            Socket::Unix(listener) => {
                let address = listener.local_addr().expect("a listener has an address");
                // One that was passed may have a name that is no path.
                ListenAddress::Unix(address.as_pathname().unwrap_or(Path::new("?")).to_owned())
            }
        }
    }
}

/// Listens on a port of all addresses of the machine.
fn listen_by_default(port: u16) -> io::Result<Socket> {
    let (all, all_v4) = ((Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into());
    match listen(all) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(error),
        // The kernel has no IPv6, or it is disabled.
        Err(_) => listen(all_v4),
    }
}

/// Takes over a listening socket that the service manager passed.
fn inherited(passed: &mut ListenFd, index: usize) -> io::Result<Socket> {
    if let Ok(Some(listener)) = passed.take_unix_listener(index) {
        check_is_listening(&SockRef::from(&listener))?;
        listener.set_nonblocking(true)?;
        return Ok(Socket::Unix(UnixListener::from_std(listener)));
    }
    let listener = passed.take_tcp_listener(index)?.ok_or(ErrorKind::Other)?;
    check_is_listening(&SockRef::from(&listener))?;
    prepare(&SockRef::from(&listener))?;
    Ok(Socket::Tcp(TcpListener::from_std(listener)))
}

/// Rejects a connected socket, which a socket unit passes to a service of its own per connection. Accepting there would fail for
/// ever.
fn check_is_listening(socket: &socket2::Socket) -> io::Result<()> {
    // A listening socket has no peer. (SO_ACCEPTCONN says the same, but not on macOS.)
    if socket.peer_addr().is_err() {
        return Ok(());
    }
    Err(io::Error::other(
        "expected a listening socket, got a connection: the socket unit has Accept=yes, set Accept=no",
    ))
}

fn prepare(socket: &socket2::Socket) -> io::Result<()> {
    // Not as a flag of its type, which macOS does not know.
    socket.set_nonblocking(true)?;
    // Both are inherited by what is accepted: no system call for each connection.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.set_tcp_nodelay(true)
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    bind(address).map(Socket::Tcp).map_err(|error| cannot_listen(ListenAddress::Tcp(address), error))
}

/// The file of a socket that was bound here, removed when this is dropped.
struct SocketFile {
    path: PathBuf,
    /// Device and inode, by which the file is recognized.
    identity: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // An operator may have removed it, and another server may have bound its own there.
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            if let Err(error) = fs::remove_file(&self.path) {
                debug!("cannot remove {:?}: {error}", self.path);
            }
        } else {
            debug!("{:?} is no longer the socket that was bound there", self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Listens at a path, in place of a socket there that nobody serves any more.
///
/// The umask gives the mode of the file: a process that may write to it may connect.
///
/// Two servers that start at the same time could both find the stale file, and the second would remove what the first has
/// just bound. So each holds a lock on the directory from its look at the file until it listens. The lock leaves no
/// file behind, and the kernel releases it when the process ends.
fn listen_in_file(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let _lock = lock_directory(path)?;
    let is_socket = path.symlink_metadata().is_ok_and(|it| it.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err_and(|it| it.kind() == ErrorKind::ConnectionRefused) {
        // If the file stays, the error of `bind` says why.
        let _ = fs::remove_file(path);
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::new(path)?;
    socket.listen(BACKLOG)?;
    Ok((UnixListener::from_std(OwnedFd::from(socket).into()), file))
}

/// Locks the directory of a socket (flock(2)) until the file that this returns is dropped.
///
/// It returns `None` where the directory cannot be read, or the file system has no locks: two starts at the same time are
/// rare, and a server that does not start is worse.
fn lock_directory(path: &Path) -> io::Result<Option<File>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(directory) = File::open(directory) else { return Ok(None) };
    let give_up_at = Instant::now() + SOCKET_LOCK_TIME_MAX;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up_at => {
                thread::sleep(SOCKET_LOCK_RETRY_EVERY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another process holds a lock on the directory"));
            }
            Err(TryLockError::Error(error)) => {
                debug!("cannot lock the directory of {path:?}: {error}");
                return Ok(None);
            }
        }
    }
}

fn cannot_listen(at: ListenAddress, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {at}: {error}"))
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
