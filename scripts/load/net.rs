//! The client connections: a poll loop with its own WebSocket framing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

use crate::modes::Mode;
use crate::target::Target;

/// Connections from one source address, which has about 28,000 ports (net.ipv4.ip_local_port_range), some in TIME_WAIT.
pub const CONNECTIONS_PER_SOURCE: usize = 20_000;

// Opcodes of frames (RFC 6455 section 5.2).
pub const OPCODE_TEXT: u8 = 1;
pub const OPCODE_CLOSE: u8 = 8;
pub const OPCODE_PING: u8 = 9;
pub const OPCODE_PONG: u8 = 10;

/// Bytes of an unexpected status line that the error message shows.
const STATUS_LINE_SHOWN_MAX: usize = 40;

/// The close code of a normal closure (RFC 6455 section 7.4.1).
pub const CLOSE_NORMAL: u16 = 1000;

pub struct Client {
    pub stream: TcpStream,
    /// The mode's own number of this connection.
    pub index: usize,
    /// Whether the handshake is complete.
    pub is_open: bool,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    /// Whether the client is in [`Net::dirty`].
    pub is_dirty: bool,
}

/// An event of a connection.
pub enum Event<'a> {
    Opened,
    Text(&'a [u8]),
    Pong,
    Closed,
}

pub struct Net {
    pub poll: Poll,
    pub events: Events,
    pub address: SocketAddr,
    pub host: String,
    pub clients: Slab<Client>,
    /// Slots of clients with output to flush.
    pub dirty: Vec<usize>,
    /// Connections opened so far.
    pub opened: usize,
    pub scratch: Vec<u8>,
}

impl Net {
    pub fn new(target: &Target) -> io::Result<Net> {
        Ok(Net {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            address: target.address,
            host: target.host.clone(),
            clients: Slab::new(),
            dirty: Vec::new(),
            opened: 0,
            scratch: vec![0; 256 * 1024],
        })
    }

    /// Starts a connection and its handshake; events report it under this index.
    pub fn open(&mut self, index: usize, path: &str) -> io::Result<usize> {
        let socket =
            Socket::new(Domain::for_address(self.address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if let IpAddr::V4(ip) = self.address.ip()
            && ip.is_loopback()
        {
            let source = 1 + (self.opened / CONNECTIONS_PER_SOURCE % 250) as u8;
            // Otherwise no other socket can have the port, not even to another server, also in TIME_WAIT.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, source), 0)).into())?;
        }
        self.opened += 1;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let slot = self.clients.vacant_key();
        self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.host
        );
        // The request is sent at the first writable event, when TCP is connected.
        let output = request.into_bytes();
        self.clients.insert(Client {
            stream,
            index,
            is_open: false,
            input: Vec::new(),
            output,
            is_dirty: false,
        });
        Ok(slot)
    }

    /// Queues a frame, masked with the key 0.
    pub fn send(&mut self, slot: usize, opcode: u8, parts: &[&[u8]]) {
        let client = &mut self.clients[slot];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        client.output.push(0x80 | opcode);
        match length {
            0..=125 => client.output.push(0x80 | length as u8),
            126..=0xffff => {
                client.output.push(0x80 | 126);
                client.output.extend((length as u16).to_be_bytes());
            }
            _ => {
                client.output.push(0x80 | 127);
                client.output.extend((length as u64).to_be_bytes());
            }
        }
        client.output.extend([0; 4]);
        for part in parts {
            client.output.extend_from_slice(part);
        }
        if !std::mem::replace(&mut client.is_dirty, true) {
            self.dirty.push(slot);
        }
    }

    pub fn text(&mut self, slot: usize, text: &str) {
        self.send(slot, OPCODE_TEXT, &[text.as_bytes()]);
    }

    /// Runs one iteration of the poll loop and passes events to the mode.
    pub fn poll_once(&mut self, mode: &mut dyn Mode, timeout: Duration) -> io::Result<()> {
        self.flush()?;
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => events.clear(),
            polled => polled?,
        }
        for event in &events {
            let Token(slot) = event.token();
            if event.is_writable() && self.clients.contains(slot) && !self.clients[slot].output.is_empty() {
                self.write(slot)?;
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.read(slot, mode)?;
            }
        }
        self.events = events;
        self.flush()
    }

    pub fn flush(&mut self) -> io::Result<()> {
        for slot in std::mem::take(&mut self.dirty) {
            if self.clients.get(slot).is_some_and(|client| client.is_dirty) {
                self.clients[slot].is_dirty = false;
                self.write(slot)?;
            }
        }
        Ok(())
    }

    pub fn write(&mut self, slot: usize) -> io::Result<()> {
        let client = &mut self.clients[slot];
        let mut sent = 0;
        while sent < client.output.len() {
            match client.stream.write(&client.output[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The next read reports the end of the connection.
                Err(error) if is_disconnect(&error) => break,
                Err(error) => return Err(error),
            }
        }
        client.output.drain(..sent);
        Ok(())
    }

    pub fn read(&mut self, slot: usize, mode: &mut dyn Mode) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(slot) else { return Ok(()) };
        let index = client.index;
        let mut has_ended = false;
        let mut input = std::mem::take(&mut client.input);
        loop {
            match client.stream.read(&mut self.scratch) {
                Ok(0) => has_ended = true,
                Ok(n) => {
                    input.extend_from_slice(&self.scratch[..n]);
                    if n == self.scratch.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if is_disconnect(&error) => has_ended = true,
                Err(error) => return Err(error),
            }
            break;
        }
        let mut at = 0;
        if !self.clients[slot].is_open
            && let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let beginning = String::from_utf8_lossy(&input[..end.min(STATUS_LINE_SHOWN_MAX)]);
            let status_line = beginning.lines().next().unwrap_or("");
            if !status_line.contains(" 101 ") {
                return Err(io::Error::other(format!("expected status 101, got {status_line:?}")));
            }
            at = end + 4;
            self.clients[slot].is_open = true;
            mode.on_event(self, slot, index, Event::Opened)?;
        }
        while self.clients.get(slot).is_some_and(|client| client.is_open) {
            let Some((opcode, start, end)) = parse_frame(&input[at..]) else { break };
            let payload = &input[at + start..at + end];
            at += end;
            match opcode {
                OPCODE_TEXT => mode.on_event(self, slot, index, Event::Text(payload))?,
                OPCODE_CLOSE => {
                    self.send(slot, OPCODE_CLOSE, &[payload]);
                    self.flush()?;
                    has_ended = true;
                    break;
                }
                OPCODE_PING => self.send(slot, OPCODE_PONG, &[payload]),
                OPCODE_PONG => mode.on_event(self, slot, index, Event::Pong)?,
                _ => {}
            }
        }
        if has_ended {
            self.clients.remove(slot);
            mode.on_event(self, slot, index, Event::Closed)?;
        } else {
            input.drain(..at);
            self.clients[slot].input = input;
        }
        Ok(())
    }
}

pub fn is_disconnect(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Parses the frame at the beginning of these bytes.
///
/// Returns its opcode and where its payload begins and ends, or `None` if it is incomplete.
pub fn parse_frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (start, length) = match bytes.get(1)? & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        n => (2, usize::from(n)),
    };
    (bytes.len() >= start + length).then_some((bytes[0] & 0xf, start, start + length))
}

/// The error of a connection that the server has closed.
pub fn server_closed() -> io::Error {
    io::Error::other("the server has closed a connection")
}
