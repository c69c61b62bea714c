//! Sends every message back to its sender, over noroshi's sessions and poll loop, so that `scripts/autobahn.sh` can test
//! those. An example of a server with a protocol of its own, too.
//!
//! cargo run --release --example echo -- FLAGS OF NOROSHI

use std::io;
use std::time::Duration;

use noroshi::config::{Command, Config, Endpoint};
use noroshi::http::ListenerKind;
use noroshi::http::token::Claims;
use noroshi::message::Message;
use noroshi::metrics::Counts;
use noroshi::protocol::{Conn, Context, Descriptor, Member, Protocol, Route, Target, TokenPlace};
use noroshi::protocols;
use noroshi::server::Server;

static ECHO: Descriptor = Descriptor {
    endpoint: Endpoint {
        name: "echo",
        title: "echo",
        default_path: "/ws",
        is_always_on: true,
        has_rooms_below: true,
        ignores_path_below: false,
        may_be_root: true,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: None,
        stored_bytes_max: 0,
    },
    token_place: TokenPlace::Request,
    route: |below, _| Route::Room(below.unwrap_or_default().to_owned()),
    new: |_, _| Box::new(Echo),
};

struct Echo;

impl Protocol for Echo {
    fn on_connect(&mut self, conn: Conn, target: &Target, _: Option<&Claims>, context: &mut Context) {
        // A connection that has registered may stay silent.
        context.registered(conn, &target.room, "echo");
    }

    fn on_message(&mut self, conn: Conn, message: Message<'_>, context: &mut Context) {
        match message {
            Message::Text(text) => context.send(conn, text.to_owned()),
            Message::Binary(bytes) => context.send_binary(conn, bytes),
        }
    }

    fn on_message_dropped(&mut self, _: Conn, _: bool, _: &mut Context) {}

    fn on_disconnect(&mut self, _: Conn, _: &mut Context) {}

    fn member(&self, _: Conn) -> Option<Member<'_>> {
        Some(Member { room: "", id: Some("echo".into()), state: "echo" })
    }

    fn counts(&self, _: Duration) -> Counts {
        Counts::default()
    }
}

fn main() -> io::Result<()> {
    let descriptors = [&ECHO];
    let arguments = std::env::args_os().skip(1);
    let Ok(Command::Run(config)) = Config::parse(&protocols::endpoints(&descriptors), arguments) else {
        return Err(io::Error::other("usage: the flags of noroshi"));
    };
    let mut server = Server::with_protocols(&descriptors, config)?;
    server.install_signal_handlers()?;
    for address in server.addresses(ListenerKind::Main) {
        eprintln!("listening on ws://{address}/ws");
    }
    server.run()
}
