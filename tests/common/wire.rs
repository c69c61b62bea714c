//! The network between clients and a server, which a test may cut, swallow or lead elsewhere.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// Passes on whatever is sent to its address, in a thread for each direction.
pub struct Wire {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Where new connections lead.
    server: SocketAddr,
    /// How long each piece takes to pass.
    delay: Duration,
    connections: Vec<Connection>,
}

struct Connection {
    streams: [TcpStream; 2],
    /// Whether what is sent arrives nowhere from now on, and neither end hears that the other has closed.
    swallows: Arc<Mutex<bool>>,
}

impl Wire {
    /// To a server.
    pub fn to(server: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { server, delay: Duration::ZERO, connections: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        spawn(move || {
            for client in listener.incoming().map(Result::unwrap) {
                let mut state = shared.lock().unwrap();
                // Who comes while there is no server is cut.
                let Ok(server) = TcpStream::connect(state.server) else { continue };
                let swallows = Arc::new(Mutex::new(false));
                for [from, to] in [[&client, &server], [&server, &client]] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (swallows, shared) = (swallows.clone(), shared.clone());
                    spawn(move || pass(from, to, &swallows, || shared.lock().unwrap().delay));
                }
                state.connections.push(Connection { streams: [client, server], swallows });
            }
        });
        Wire { address, state }
    }

    /// From now on new connections lead there.
    pub fn lead_to(&self, server: SocketAddr) {
        self.state.lock().unwrap().server = server;
    }

    /// From now on each piece takes so long to pass.
    pub fn delay(&self, delay: Duration) {
        self.state.lock().unwrap().delay = delay;
    }

    /// Cuts all connections that there are.
    pub fn cut(&self) {
        for connection in self.state.lock().unwrap().connections.drain(..) {
            for stream in connection.streams {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Loses, without a word, whatever is sent on the connections that there are.
    pub fn swallow(&self) {
        for connection in &self.state.lock().unwrap().connections {
            *connection.swallows.lock().unwrap() = true;
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, swallows: &Mutex<bool>, delay: impl Fn() -> Duration) {
    let mut buffer = [0; 65_536];
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.unwrap_or(0),
        };
        sleep(delay());
        if *swallows.lock().unwrap() {
            if read == 0 {
                return;
            }
        } else if read == 0 || to.write_all(&buffer[..read]).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}
