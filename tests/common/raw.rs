//! A client of raw bytes on a non-blocking socket, for tests that run a server and its clients in one thread. It never
//! waits: it writes what the kernel accepts and reads what is available.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use noroshi::config::{Config, ListenAddress};
use noroshi::http::ListenerKind;
use noroshi::server::Server;
use socket2::{Domain, SockRef, Socket, Type};

use super::pipe::{CLOSE, PING, PONG, REQUEST, TEXT, frame, frames, plain_frame};

/// The address that clients connect from by default.
pub const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Binds a server to a free port of loopback.
pub fn server(config: &Config) -> (Server, SocketAddr) {
    let listen = vec![ListenAddress::Tcp((LOOPBACK, 0).into())];
    let server = Server::bind(Config { listen, ..config.clone() }).unwrap();
    let address = server.addresses(ListenerKind::Main).next().unwrap();
    (server, address)
}

/// Runs one iteration of the server's loop without waiting for events.
pub fn run_iteration(server: &mut Server) {
    server.poll_once(Some(Duration::ZERO)).unwrap();
}

/// Returns an upgrade request for a path.
pub fn upgrade(path: &str) -> Vec<u8> {
    REQUEST.replace("/ws/tea", path).into_bytes()
}

/// Returns the frame of a text message.
pub fn text(message: &str) -> Vec<u8> {
    plain_frame(TEXT, message.as_bytes())
}

/// A client connection.
pub struct Raw {
    /// `None` after the connection has ended or was reset.
    stream: Option<TcpStream>,
    /// Bytes that are not yet written.
    outgoing: VecDeque<u8>,
    /// Bytes that are read and not yet parsed.
    incoming: Vec<u8>,
    /// The response head, once it is complete.
    pub head: Option<String>,
    /// Whether pings and Close frames are answered.
    pub answers: bool,
    /// The code of the server's Close frame.
    pub close_code: Option<u16>,
    /// Bytes read so far.
    pub bytes_read: usize,
    /// Pings received so far.
    pub pings: usize,
}

impl Raw {
    /// Connects from a loopback address. `receive_buffer` is the size of SO_RCVBUF, if it is set.
    pub fn connect(to: SocketAddr, from: Ipv4Addr, receive_buffer: Option<usize>) -> Raw {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        // Otherwise the socket has its port, one of 28,000, for itself.
        setsockopt(&socket, IpBindAddressNoPort, &true).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        Raw {
            stream: Some(socket.into()),
            outgoing: VecDeque::new(),
            incoming: Vec::new(),
            head: None,
            answers: true,
            close_code: None,
            bytes_read: 0,
            pings: 0,
        }
    }

    /// Connects and requests an upgrade at a path.
    pub fn open(to: SocketAddr, path: &str) -> Raw {
        let mut client = Raw::connect(to, LOOPBACK, None);
        client.send(&upgrade(path));
        client
    }

    /// Returns whether the connection is usable.
    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Returns the status of the response.
    pub fn status(&self) -> Option<u16> {
        self.head.as_ref()?.split(' ').nth(1)?.parse().ok()
    }

    /// Appends bytes to the write buffer.
    pub fn push(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
    }

    /// Returns the size of the write buffer.
    pub fn unwritten(&self) -> usize {
        self.outgoing.len()
    }

    /// Appends bytes to the write buffer and writes as many as the kernel accepts.
    pub fn send(&mut self, bytes: &[u8]) {
        self.push(bytes);
        self.write(usize::MAX);
    }

    /// Writes at most `bytes_max` bytes of the write buffer. Returns how many the kernel has accepted.
    pub fn write(&mut self, bytes_max: usize) -> usize {
        let mut written = 0;
        while let Some(stream) = self.stream.as_mut().filter(|_| !self.outgoing.is_empty()) {
            let (first, _) = self.outgoing.as_slices();
            let end = first.len().min(bytes_max - written);
            if end == 0 {
                break;
            }
            match stream.write(&first[..end]) {
                Ok(n) => {
                    self.outgoing.drain(..n);
                    written += n;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.end(),
            }
        }
        written
    }

    /// Reads at most `bytes_max` available bytes. Returns the complete frames and answers pings and Close frames. The
    /// body of a plain response is discarded.
    pub fn read(&mut self, bytes_max: usize) -> Vec<(u8, Vec<u8>)> {
        let mut chunk = [0; 16 * 1024];
        let mut left = bytes_max;
        while let Some(stream) = self.stream.as_mut().filter(|_| left > 0) {
            let end = chunk.len().min(left);
            match stream.read(&mut chunk[..end]) {
                Ok(0) => self.end(),
                Ok(n) => {
                    left -= n;
                    self.bytes_read += n;
                    self.incoming.extend_from_slice(&chunk[..n]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.end(),
            }
        }
        self.parse()
    }

    fn parse(&mut self) -> Vec<(u8, Vec<u8>)> {
        if self.head.is_none() {
            let Some(at) = self.incoming.windows(4).position(|end| end == b"\r\n\r\n") else {
                return Vec::new();
            };
            let head: Vec<u8> = self.incoming.drain(..at + 4).collect();
            self.head = Some(String::from_utf8(head).expect("the head of a response is text"));
        }
        if self.status() != Some(101) {
            self.incoming.clear();
            return Vec::new();
        }
        let (all, rest) = frames(&self.incoming);
        let parsed = self.incoming.len() - rest.len();
        self.incoming.drain(..parsed);
        let mut messages = Vec::new();
        for (first, payload) in all {
            assert!(self.close_code.is_none(), "no frame follows the server's Close frame");
            assert!(first & 0x08 == 0 || payload.len() <= 125, "a control frame has at most 125 bytes");
            match first {
                PING => {
                    self.pings += 1;
                    self.answer(PONG, &payload);
                }
                CLOSE => {
                    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    self.close_code = Some(code);
                    self.answer(CLOSE, &payload);
                }
                _ => messages.push((first, payload)),
            }
        }
        messages
    }

    fn answer(&mut self, first: u8, payload: &[u8]) {
        if self.answers {
            self.send(&frame(first, payload));
        }
    }

    /// Reads all available bytes. Returns the text messages and panics if there is any other message.
    pub fn texts(&mut self) -> Vec<String> {
        let messages = self.read(usize::MAX);
        messages
            .into_iter()
            .filter(|(first, _)| *first != PONG)
            .map(|(first, payload)| {
                assert_eq!(first, TEXT, "the server sends text");
                String::from_utf8(payload).expect("text is UTF-8")
            })
            .collect()
    }

    /// Shuts the write side down. Reading remains possible.
    pub fn half_close(&mut self) {
        if let Some(stream) = &self.stream {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Resets the connection.
    pub fn reset(&mut self) {
        if let Some(stream) = self.stream.take() {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Closes the connection.
    pub fn end(&mut self) {
        self.stream = None;
    }
}
