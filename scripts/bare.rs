//! The floor: a bare epoll loop that moves frames between sockets, knows no JSON and keeps no state. What a
//! signaling server costs beyond this is its own doing.
//!
//! It upgrades whoever asks as `load` asks, echoes the first message of a connection, and passes all others on to
//! the connection that was accepted before or after it. Nothing is checked: only for `load` on one's own machine.
//!
//! cargo run --release --example bare -- 127.0.0.1:PORT

use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX - 1);
/// The answer to the key that `load` sends.
const ACCEPT: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

struct Client {
    stream: TcpStream,
    /// The connection that was accepted before or after.
    other: usize,
    open: bool,
    greeted: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).expect("usage: bare ADDRESS:PORT");
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address.parse().expect("an address and a port"))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let (mut events, mut clients) = (Events::with_capacity(1024), Slab::<Client>::new());
    let (mut scratch, mut dirty, mut single) = (vec![0; 16 * 1024], Vec::new(), None);
    eprintln!("listening on ws://{}/ws", listener.local_addr()?);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        let mut accepts = false;
        for event in &events {
            if event.token() == LISTENER {
                accepts = true;
            } else {
                // What did not go out before is tried again.
                dirty.push(event.token().0);
                receive(&mut clients, event.token().0, &mut scratch, &mut dirty);
            }
        }
        for slot in dirty.drain(..) {
            let Some(client) = clients.get_mut(slot) else { continue };
            let sent = client.stream.write(&client.outbox).unwrap_or(0);
            client.outbox.drain(..sent);
        }
        while let Some(Ok((mut stream, _))) = accepts.then(|| listener.accept()) {
            stream.set_nodelay(true)?;
            let slot = clients.vacant_key();
            poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
            let other = single.take().filter(|other| clients.contains(*other));
            let (inbox, outbox) = (Vec::new(), Vec::new());
            let client =
                Client { stream, other: other.unwrap_or(slot), open: false, greeted: false, inbox, outbox };
            clients.insert(client);
            match other {
                Some(other) => clients[other].other = slot,
                None => single = Some(slot),
            }
        }
    }
}

fn receive(clients: &mut Slab<Client>, slot: usize, scratch: &mut [u8], dirty: &mut Vec<usize>) {
    let Some(client) = clients.get_mut(slot) else { return };
    let mut ended = false;
    loop {
        match client.stream.read(scratch) {
            Ok(0) => ended = true,
            Ok(n) => {
                client.inbox.extend_from_slice(&scratch[..n]);
                if n == scratch.len() {
                    continue;
                }
            }
            Err(error) => ended = error.kind() != ErrorKind::WouldBlock,
        }
        break;
    }
    let mut inbox = std::mem::take(&mut client.inbox);
    let mut at = 0;
    if !client.open
        && let Some(end) = inbox.windows(4).position(|window| window == b"\r\n\r\n")
    {
        at = end + 4;
        client.open = true;
        client.outbox.extend_from_slice(ACCEPT);
        dirty.push(slot);
    }
    while clients[slot].open
        && let Some((opcode, mask, end)) = frame(&inbox[at..])
    {
        let (key, payload) = inbox[at..at + end].split_at_mut(mask + 4);
        let key: [u8; 4] = key[mask..].try_into().expect("a mask has four bytes");
        noroshi::session::frame::unmask(payload, key);
        let greeted = std::mem::replace(&mut clients[slot].greeted, true);
        let to = if opcode == 1 && greeted { clients[slot].other } else { slot };
        if let Some(client) = clients.get_mut(to) {
            let opcode = if opcode == 9 { 10 } else { opcode };
            client.outbox.push(0x80 | opcode);
            match payload.len() {
                n @ 0..=125 => client.outbox.push(n as u8),
                n => {
                    client.outbox.push(126);
                    client.outbox.extend((n as u16).to_be_bytes());
                }
            }
            client.outbox.extend_from_slice(payload);
            dirty.push(to);
        }
        ended |= opcode == 8;
        at += end;
    }
    let client = &mut clients[slot];
    if ended {
        let _ = client.stream.write(&client.outbox);
        clients.remove(slot);
    } else {
        inbox.drain(..at);
        client.inbox = inbox;
    }
}

/// The opcode of a frame of at most 64 KB, and where its mask begins and its payload ends.
fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (mask, length) = match bytes.get(1)? & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        n => (2, usize::from(n)),
    };
    let end = mask + 4 + length;
    (bytes.len() >= end).then_some((bytes[0] & 0xf, mask, end))
}
