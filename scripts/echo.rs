//! Says to everybody what they say, over noroshi's own sessions and loop, for `scripts/autobahn.sh` to judge those.
//!
//! cargo run --release --example echo -- FLAGS OF NOROSHI

use std::io;
use std::time::Duration;

use noroshi::config::{Command, Config};
use noroshi::http::ListenerKind;
use noroshi::metrics::Counts;
use noroshi::protocol::{Conn, Input, Member, ProtocolId};
use noroshi::protocols::{Context, Dispatcher, Protocol};
use noroshi::server::Server;

struct Echo;

impl Protocol for Echo {
    fn handle(&mut self, input: Input<'_>, turn: &mut Context) {
        match input {
            // Who has an id may be silent.
            Input::Connected(conn, target, _) => turn.registered(conn, &target.room, "echo"),
            Input::Text(conn, text) => turn.send(conn, text.to_owned()),
            Input::Binary(conn, bytes) => turn.send_binary(conn, bytes),
            Input::Disconnected(_)
            | Input::Dropped { .. }
            | Input::Alive(_)
            | Input::Silent(_)
            | Input::Time => {}
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
        return Err(io::Error::other("usage: the flags of noroshi"));
    };
    let dispatcher = Dispatcher::new(&config).to(ProtocolId::Noroshi, Echo);
    let mut server = Server::with(dispatcher, config)?;
    server.install_signal_handlers()?;
    for address in server.addresses(ListenerKind::Main) {
        eprintln!("listening on ws://{address}/ws");
    }
    server.run()
}
