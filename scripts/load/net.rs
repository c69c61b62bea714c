//! Connections: a poll loop with framing of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

use crate::modes::Mode;
use crate::target::Target;

/// A source address has about 28,000 ports (net.ipv4.ip_local_port_range), some of them in TIME_WAIT.
pub const CONNECTIONS_PER_SOURCE: usize = 20_000;

pub struct Client {
    pub stream: TcpStream,
    /// Which of the mode's connections this is.
    pub name: usize,
    pub open: bool,
    pub inbox: Vec<u8>,
    pub outbox: Vec<u8>,
    pub dirty: bool,
}

/// What happens on a connection. Names are the mode's.
pub enum Happened<'a> {
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
    pub dirty: Vec<usize>,
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

    /// Begins a connection, which will be heard of under this name.
    pub fn open(&mut self, name: usize, path: &str) -> io::Result<usize> {
        let socket =
            Socket::new(Domain::for_address(self.address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if let IpAddr::V4(ip) = self.address.ip()
            && ip.is_loopback()
        {
            let source = 1 + (self.opened / CONNECTIONS_PER_SOURCE % 250) as u8;
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
        // It goes out with the first event, which says that TCP is there.
        let outbox = request.into_bytes();
        self.clients.insert(Client { stream, name, open: false, inbox: Vec::new(), outbox, dirty: false });
        Ok(slot)
    }

    pub fn send(&mut self, slot: usize, opcode: u8, parts: &[&[u8]]) {
        let client = &mut self.clients[slot];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        client.outbox.push(0x80 | opcode);
        match length {
            0..=125 => client.outbox.push(0x80 | length as u8),
            126..=0xffff => {
                client.outbox.push(0x80 | 126);
                client.outbox.extend((length as u16).to_be_bytes());
            }
            _ => {
                client.outbox.push(0x80 | 127);
                client.outbox.extend((length as u64).to_be_bytes());
            }
        }
        client.outbox.extend([0; 4]);
        for part in parts {
            client.outbox.extend_from_slice(part);
        }
        if !std::mem::replace(&mut client.dirty, true) {
            self.dirty.push(slot);
        }
    }

    pub fn text(&mut self, slot: usize, text: &str) {
        self.send(slot, 1, &[text.as_bytes()]);
    }

    /// Waits at most this long, and lets the mode know what happened.
    pub fn turn(&mut self, mode: &mut dyn Mode, longest: Duration) -> io::Result<()> {
        self.flush()?;
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, Some(longest)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => events.clear(),
            polled => polled?,
        }
        for event in &events {
            let Token(slot) = event.token();
            if event.is_writable() && self.clients.contains(slot) && !self.clients[slot].outbox.is_empty() {
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
            if self.clients.get(slot).is_some_and(|client| client.dirty) {
                self.clients[slot].dirty = false;
                self.write(slot)?;
            }
        }
        Ok(())
    }

    pub fn write(&mut self, slot: usize) -> io::Result<()> {
        let client = &mut self.clients[slot];
        let mut sent = 0;
        while sent < client.outbox.len() {
            match client.stream.write(&client.outbox[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The end is seen by the next read.
                Err(error) if is_end(&error) => break,
                Err(error) => return Err(error),
            }
        }
        client.outbox.drain(..sent);
        Ok(())
    }

    pub fn read(&mut self, slot: usize, mode: &mut dyn Mode) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(slot) else { return Ok(()) };
        let (name, mut ended) = (client.name, false);
        let mut inbox = std::mem::take(&mut client.inbox);
        loop {
            match client.stream.read(&mut self.scratch) {
                Ok(0) => ended = true,
                Ok(n) => {
                    inbox.extend_from_slice(&self.scratch[..n]);
                    if n == self.scratch.len() {
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if is_end(&error) => ended = true,
                Err(error) => return Err(error),
            }
            break;
        }
        let mut at = 0;
        if !self.clients[slot].open
            && let Some(end) = inbox.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let status =
                String::from_utf8_lossy(&inbox[..end.min(40)]).lines().next().unwrap_or("").to_owned();
            if !status.contains(" 101 ") {
                return Err(io::Error::other(format!("the server answers {status:?} instead of 101")));
            }
            at = end + 4;
            self.clients[slot].open = true;
            mode.happened(self, slot, name, Happened::Opened)?;
        }
        while self.clients.get(slot).is_some_and(|client| client.open) {
            let Some((opcode, start, end)) = frame(&inbox[at..]) else { break };
            let payload = &inbox[at + start..at + end];
            at += end;
            match opcode {
                1 => mode.happened(self, slot, name, Happened::Text(payload))?,
                8 => {
                    self.send(slot, 8, &[payload]);
                    self.flush()?;
                    ended = true;
                    break;
                }
                9 => self.send(slot, 10, &[payload]),
                10 => mode.happened(self, slot, name, Happened::Pong)?,
                _ => {}
            }
        }
        if ended {
            self.clients.remove(slot);
            mode.happened(self, slot, name, Happened::Closed)?;
        } else {
            inbox.drain(..at);
            self.clients[slot].inbox = inbox;
        }
        Ok(())
    }
}

pub fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// The opcode of the frame that these bytes begin with, and where its payload begins and ends.
pub fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (start, length) = match bytes.get(1)? & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        n => (2, usize::from(n)),
    };
    (bytes.len() >= start + length).then_some((bytes[0] & 0xf, start, start + length))
}

pub fn gone() -> io::Error {
    io::Error::other("the server went away")
}
