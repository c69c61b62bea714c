//! Says to everybody what they say, over noroshi's own sessions and loop, for `scripts/autobahn.sh` to judge those.
//!
//! cargo run --release --example echo -- FLAGS OF NOROSHI

use std::io;
use std::time::Duration;

use noroshi::config::{Command, Config};
use noroshi::http::Door;
use noroshi::protocol::{Effect, Input, Outbox};
use noroshi::server::{Connections, Server, Service};

struct Echo;

impl Service for Echo {
    fn handle(&mut self, _now: Duration, input: Input, connections: &mut Connections) {
        match input {
            // Who has an id may be silent.
            Input::Connected(conn, room, _) => {
                connections.push(Effect::Registered { conn, room, id: "echo" })
            }
            Input::Text(conn, text) => connections.push(Effect::Send(conn, text.to_owned())),
            Input::Binary(conn, bytes) => connections.send_binary(conn, bytes),
            Input::Alive(_) | Input::Disconnected(_) | Input::Time => {}
        }
    }
}

fn main() -> io::Result<()> {
    let Ok(Command::Run(config)) = Config::parse(std::env::args_os().skip(1)) else {
        return Err(io::Error::other("usage: the flags of noroshi"));
    };
    let mut server = Server::with(Echo, config)?;
    server.heed_signals()?;
    for address in server.addresses(Door::Main) {
        eprintln!("listening on ws://{address}/ws");
    }
    server.run()
}
