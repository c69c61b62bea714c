//! An echo server over noroshi's sessions and poll loop, for the conformance tests of `scripts/autobahn.sh`.
//!
//! cargo run --release --example echo -- NOROSHI FLAGS

use std::io;
use std::time::Duration;

use noroshi::config::{Command, Config};
use noroshi::http::ListenerKind;
use noroshi::metrics::Counts;
use noroshi::protocol::{Conn, Input, Member, ProtocolId};
use noroshi::protocols::{Dispatcher, Protocol, Turn};
use noroshi::server::Server;

struct Echo;

impl Protocol for Echo {
    fn handle(&mut self, input: Input<'_>, context: &mut Turn) {
        match input {
            // A registered connection is not closed for sending no message.
            Input::Connected(conn, target, _) => context.registered(conn, &target.room, "echo"),
            Input::Text(conn, text) => context.send(conn, text.to_owned()),
            Input::Binary(conn, bytes) => context.send_binary(conn, bytes),
            Input::Disconnected(conn) => context.left(conn, self.member(conn)),
            Input::Dropped { .. } | Input::Alive(_) | Input::Silent(_) | Input::Time => {}
        }
    }

    fn member(&self, _: Conn) -> Option<Member<'_>> {
        Some(Member { room: "", id: Some("echo".into()), state: "echo" })
    }

    fn counts(&self, _: Duration) -> Counts {
        Counts::default()
    }
}

fn main() -> io::Result<()> {
    let Ok(Command::Run(config)) = Config::parse(std::env::args_os().skip(1)) else {
        return Err(io::Error::other("usage: echo [NOROSHI FLAGS]"));
    };
    let dispatcher = Dispatcher::new(&config).to(ProtocolId::Noroshi, Echo);
    let mut server = Server::with(dispatcher, config)?;
    server.install_signal_handlers()?;
    for address in server.addresses(ListenerKind::Main) {
        eprintln!("listening on ws://{address}/ws");
    }
    server.run()
}
