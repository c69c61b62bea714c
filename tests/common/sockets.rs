//! A running server and its clients, on real sockets, in one thread: whoever waits for the server lets it turn.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use noroshi::config::{Config, ListenAddress};
use noroshi::http::ListenerKind;
use noroshi::server::Server;
use noroshi::token::{Claims, Secrets};
use socket2::{Domain, SockRef, Socket, Type};
use tungstenite::handshake::HandshakeError;
use tungstenite::handshake::client::ClientHandshake;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::{ClientRequestBuilder, Error, Message, WebSocket};

use super::memory::left;
use super::transcript::{Heard, SECRET, Wire};

/// After so long in the real world, what a test waits for will not come.
const GIVE_UP: Duration = Duration::from_secs(20);

pub struct Net {
    pub server: Server,
    address: SocketAddr,
    clients: BTreeMap<String, Client>,
}

struct Client {
    /// `None` after the connection ended.
    socket: Option<WebSocket<TcpStream>>,
    heard: VecDeque<Heard>,
    deaf: bool,
}

impl Net {
    /// A server on a free port of loopback.
    pub fn new(config: &Config) -> Net {
        let listen = vec![ListenAddress::Tcp("127.0.0.1:0".parse().unwrap())];
        let server = Server::bind(Config { listen, ..config.clone() }).unwrap();
        let address = server.addresses(ListenerKind::Main).next().unwrap();
        Net { server, address, clients: BTreeMap::new() }
    }

    /// Lets the server turn until something is so.
    pub fn until<T>(&mut self, mut is_so: impl FnMut(&mut Net) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(it) = is_so(self) {
                return it;
            }
            self.server.turn(Some(Duration::from_millis(1))).unwrap();
            assert!(began.elapsed() < GIVE_UP, "waited in vain");
        }
    }

    /// A connection without a protocol.
    pub fn connect(&mut self, door: ListenerKind) -> TcpStream {
        let address = self.server.addresses(door).next().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// The same from another address of loopback.
    pub fn connect_from(&mut self, source: &str, door: ListenerKind) -> TcpStream {
        let address = self.server.addresses(door).next().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(source.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.into()
    }

    /// Everything that comes until the server closes.
    pub fn read_to_end(&mut self, stream: &mut TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        self.until(|_| match stream.read_to_end(&mut all) {
            Ok(_) => Some(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("after {} bytes: {error}", all.len()),
        });
        all
    }

    /// Sends a request and returns the whole answer, as text.
    pub fn ask(&mut self, door: ListenerKind, request: &str) -> String {
        let mut stream = self.connect(door);
        stream.write_all(request.as_bytes()).unwrap();
        String::from_utf8(self.read_to_end(&mut stream)).unwrap()
    }

    pub fn websocket(&mut self, room: &str) -> WebSocket<TcpStream> {
        let slash = if room.is_empty() || room.starts_with('?') { "" } else { "/" };
        self.websocket_at(&format!("/ws{slash}{room}"))
    }

    pub fn websocket_at(&mut self, path: &str) -> WebSocket<TcpStream> {
        let uri = format!("ws://{}{path}", self.address).parse().unwrap();
        let stream = self.connect(ListenerKind::Main);
        let request = ClientRequestBuilder::new(uri);
        let request = tungstenite::client::IntoClientRequest::into_client_request(request).unwrap();
        let mut round = ClientHandshake::start(stream, request, None).map(Some).unwrap();
        self.until(|_| match round.take().unwrap().handshake() {
            Ok((socket, _)) => Some(socket),
            Err(HandshakeError::Interrupted(again)) => {
                round = Some(again);
                None
            }
            Err(HandshakeError::Failure(error)) => panic!("{error}"),
        })
    }

    pub fn socket(&mut self, who: &str) -> &mut WebSocket<TcpStream> {
        self.clients.get_mut(who).unwrap().socket.as_mut().unwrap()
    }

    pub fn say(&mut self, who: &str, message: Message) {
        match self.socket(who).send(message) {
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                self.until(|net| net.socket(who).flush().is_ok().then_some(()));
            }
            sent => sent.unwrap(),
        }
        self.settle();
    }

    /// Waits until the server has handled everything that was sent, and the clients have heard what came of it. On loopback,
    /// what is sent has arrived when the system call returns, so that a server without anything to do has handled it all.
    pub fn settle(&mut self) {
        let mut idle_turns = 0;
        let began = Instant::now();
        while idle_turns < 2 {
            self.server.turn(Some(Duration::ZERO)).unwrap();
            idle_turns = if self.server.was_idle() { idle_turns + 1 } else { 0 };
            self.listen();
            assert!(began.elapsed() < GIVE_UP, "the server does not come to rest");
        }
    }

    fn enter(&mut self, who: &str, socket: WebSocket<TcpStream>) {
        let socket = Some(socket);
        let client = Client { socket, heard: VecDeque::new(), deaf: false };
        self.clients.insert(who.to_owned(), client);
        self.settle();
    }

    /// Everybody who is not deaf hears what there is, and answers pings.
    fn listen(&mut self) {
        for client in self.clients.values_mut().filter(|client| !client.deaf) {
            while let Some(socket) = &mut client.socket {
                match socket.read() {
                    Ok(Message::Text(text)) => client.heard.push_back(Heard::Text(text.to_string())),
                    Ok(Message::Close(frame)) => {
                        let code = frame.map_or(1005, |frame| frame.code.into());
                        client.heard.push_back(Heard::Closed(code));
                    }
                    Ok(_) => {}
                    Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(Error::ConnectionClosed) => client.socket = None,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

impl Wire for Net {
    fn open(&mut self, who: &str, room: &str) {
        let socket = self.websocket(room);
        self.enter(who, socket);
    }

    fn admit(&mut self, who: &str, room: &str, claims: &Claims) {
        let token = Secrets::parse(SECRET).unwrap().sign(claims);
        let socket = self.websocket(&format!("{room}?token={token}"));
        self.enter(who, socket);
    }

    fn open_at(&mut self, who: &str, path: &str) {
        let socket = self.websocket_at(path);
        self.enter(who, socket);
    }

    fn status(&mut self, path: &str, is_upgrade: bool) -> Option<u16> {
        let upgrade = if is_upgrade {
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        } else {
            ""
        };
        let answer =
            self.ask(ListenerKind::Main, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n{upgrade}\r\n"));
        answer.split(' ').nth(1)?.parse().ok()
    }

    fn say(&mut self, who: &str, text: &[u8], binary: bool) {
        let message = match std::str::from_utf8(text) {
            Ok(text) if !binary => Message::text(text),
            _ => Message::binary(text.to_vec()),
        };
        Net::say(self, who, message);
    }

    fn deafen(&mut self, who: &str) {
        self.clients.get_mut(who).unwrap().deaf = true;
    }

    fn cut(&mut self, who: &str) {
        let socket = self.clients.get_mut(who).unwrap().socket.take().unwrap();
        SockRef::from(socket.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(socket);
        let left = self.server.sessions() - 1;
        self.until(|net| (net.server.sessions() == left).then_some(()));
        self.settle();
    }

    fn leave(&mut self, who: &str) {
        let client = self.clients.get_mut(who).unwrap();
        if let Some(socket) = &mut client.socket {
            let frame = CloseFrame { code: 1000.into(), reason: "".into() };
            let _ = socket.close(Some(frame));
        }
        if client.deaf {
            client.socket = None;
        }
        let left = client.heard.len();
        self.settle();
        let client = self.clients.get_mut(who).unwrap();
        // A claimant is not read while it waits: the server sees that TCP is closed.
        client.socket = None;
        // The answer to its own Close frame is nothing that the transcript lists.
        client.heard.truncate(left);
        self.settle();
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.server.advance(Duration::from_secs(1));
            self.settle();
        }
    }

    fn next(&mut self, who: &str) -> Option<Heard> {
        self.clients.get_mut(who).unwrap().heard.pop_front()
    }

    fn finish(mut self: Box<Self>) {
        self.clients.clear();
        self.until(|net| (net.server.sessions() == 0).then_some(()));
        assert_eq!(left(self.server.dispatcher()), (0, 0, None));
    }
}
