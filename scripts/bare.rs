//! The baseline of the load test: a bare epoll loop that forwards frames between sockets.
//!
//! It knows no JSON and no rooms. The cost of a signaling server beyond this loop is its own.
//!
//! It accepts every upgrade with the response to the key that `load` sends, echoes the first message of a connection, and
//! forwards all later ones to the connection that was accepted before or after it. Nothing is validated: use it only for
//! `load` on your own machine.
//!
//! cargo run --release --example bare -- 127.0.0.1:PORT

use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX - 1);
/// The response to the key that `load` sends.
const UPGRADE_RESPONSE: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

// Opcodes of frames (RFC 6455 section 5.2).
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

struct Client {
    stream: TcpStream,
    /// The connection accepted before or after this one; this one itself if there is none.
    partner: usize,
    is_upgraded: bool,
    /// Whether the first message was echoed.
    has_echoed: bool,
    input: Vec<u8>,
    output: Vec<u8>,
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).expect("usage: bare ADDRESS:PORT");
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address.parse().expect("expected ADDRESS:PORT"))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut clients = Slab::<Client>::new();
    let mut scratch = vec![0; 16 * 1024];
    // Slots of clients with output to flush.
    let mut dirty = Vec::new();
    // The slot of the client that has no partner yet.
    let mut unpaired = None;
    eprintln!("listening on ws://{}/ws", listener.local_addr()?);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        let mut can_accept = false;
        for event in &events {
            if event.token() == LISTENER {
                can_accept = true;
            } else {
                // Retries output that an earlier write did not take.
                dirty.push(event.token().0);
                receive(&mut clients, event.token().0, &mut scratch, &mut dirty);
            }
        }
        for slot in dirty.drain(..) {
            let Some(client) = clients.get_mut(slot) else { continue };
            let sent = client.stream.write(&client.output).unwrap_or(0);
            client.output.drain(..sent);
        }
        while let Some(Ok((mut stream, _))) = can_accept.then(|| listener.accept()) {
            stream.set_nodelay(true)?;
            let slot = clients.vacant_key();
            poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
            let partner = unpaired.take().filter(|partner| clients.contains(*partner));
            clients.insert(Client {
                stream,
                partner: partner.unwrap_or(slot),
                is_upgraded: false,
                has_echoed: false,
                input: Vec::new(),
                output: Vec::new(),
            });
            match partner {
                Some(partner) => clients[partner].partner = slot,
                None => unpaired = Some(slot),
            }
        }
    }
}

/// Reads all input of a client and forwards its frames.
fn receive(clients: &mut Slab<Client>, slot: usize, scratch: &mut [u8], dirty: &mut Vec<usize>) {
    let Some(client) = clients.get_mut(slot) else { return };
    let mut has_ended = false;
    loop {
        match client.stream.read(scratch) {
            Ok(0) => has_ended = true,
            Ok(n) => {
                client.input.extend_from_slice(&scratch[..n]);
                if n == scratch.len() {
                    continue;
                }
            }
            Err(error) => has_ended = error.kind() != ErrorKind::WouldBlock,
        }
        break;
    }
    let mut input = std::mem::take(&mut client.input);
    let mut at = 0;
    if !client.is_upgraded
        && let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n")
    {
        at = end + 4;
        client.is_upgraded = true;
        client.output.extend_from_slice(UPGRADE_RESPONSE);
        dirty.push(slot);
    }
    while clients[slot].is_upgraded
        && let Some((opcode, mask_start, end)) = parse_frame(&input[at..])
    {
        let (header, payload) = input[at..at + end].split_at_mut(mask_start + 4);
        let key: [u8; 4] = header[mask_start..].try_into().expect("a mask has four bytes");
        noroshi::session::frame::unmask(payload, key);
        let has_echoed = std::mem::replace(&mut clients[slot].has_echoed, true);
        let to = if opcode == TEXT && has_echoed { clients[slot].partner } else { slot };
        if let Some(client) = clients.get_mut(to) {
            let opcode = if opcode == PING { PONG } else { opcode };
            client.output.push(0x80 | opcode);
            match payload.len() {
                n @ 0..=125 => client.output.push(n as u8),
                n => {
                    client.output.push(126);
                    client.output.extend((n as u16).to_be_bytes());
                }
            }
            client.output.extend_from_slice(payload);
            dirty.push(to);
        }
        has_ended |= opcode == CLOSE;
        at += end;
    }
    let client = &mut clients[slot];
    if has_ended {
        let _ = client.stream.write(&client.output);
        clients.remove(slot);
    } else {
        input.drain(..at);
        client.input = input;
    }
}

/// Parses the frame of at most 64 KB at the beginning of these bytes.
///
/// Returns its opcode, and where its mask begins and its payload ends.
fn parse_frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (mask_start, length) = match bytes.get(1)? & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        length => (2, usize::from(length)),
    };
    let end = mask_start + 4 + length;
    (bytes.len() >= end).then_some((bytes[0] & 0xf, mask_start, end))
}
