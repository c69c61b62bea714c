//! Peers of matchbox_socket 0.15, unmodified. The argument is the server's address: ws://HOST:PORT[/PREFIX].

use std::collections::BTreeSet;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use matchbox_socket::{Packet, PeerId, PeerState, RtcIceServerConfig, WebRtcSocket};

/// Time after which waiting fails.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Messages from each peer to each other peer on each of two channels.
const MESSAGES: u8 = 100;
const RELIABLE: usize = 0;
const UNRELIABLE: usize = 1;

struct Peer {
    name: &'static str,
    socket: WebRtcSocket,
    /// Connected peers.
    others: BTreeSet<PeerId>,
    /// Peers that have disconnected.
    gone: BTreeSet<PeerId>,
}

impl Peer {
    fn connect(name: &'static str, url: String) -> Peer {
        // Candidates of this machine only.
        let ice = RtcIceServerConfig { urls: vec![], username: None, credential: None };
        let builder = WebRtcSocket::builder(url).ice_server(ice);
        let (socket, message_loop) = builder.add_reliable_channel().add_unreliable_channel().build();
        spawn(move || block_on(message_loop));
        Peer { name, socket, others: BTreeSet::new(), gone: BTreeSet::new() }
    }

    fn update_peers(&mut self) {
        for (id, state) in self.socket.update_peers() {
            match state {
                PeerState::Connected => assert!(self.others.insert(id), "{} connects twice", self.name),
                PeerState::Disconnected => {
                    self.others.remove(&id);
                    self.gone.insert(id);
                }
            }
        }
    }

    fn id(&mut self) -> PeerId {
        self.socket.id().expect("the id is assigned before peers connect")
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < WAIT_TIMEOUT, "timed out waiting for: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// Waits until each peer is connected to exactly the others.
fn wait_for_connections(peers: &mut [&mut Peer]) {
    let count = peers.len() - 1;
    until("they meet", || {
        peers.iter_mut().for_each(|peer| peer.update_peers());
        peers.iter().all(|peer| peer.others.len() == count)
    });
    let ids: BTreeSet<PeerId> = peers.iter_mut().map(|peer| peer.id()).collect();
    for peer in peers {
        let own = peer.id();
        let others: BTreeSet<PeerId> = ids.iter().copied().filter(|id| *id != own).collect();
        assert_eq!(peer.others, others, "{} knows the others", peer.name);
    }
}

/// Sends messages between all peers on both channels. Reliable messages arrive complete and in order, most unreliable
/// ones arrive, and none arrives twice. Each message has its round, because unreliable ones may be late.
fn exchange_messages(peers: &mut [&mut Peer], round: u8) {
    for peer in &mut *peers {
        for n in 0..MESSAGES {
            for id in peer.others.clone() {
                for channel in [RELIABLE, UNRELIABLE] {
                    peer.socket.channel_mut(channel).send(Packet::copy_from_slice(&[round, n]), id);
                }
            }
        }
    }
    for peer in peers {
        let expected = peer.others.len() * usize::from(MESSAGES);
        let mut received = [vec![], vec![]];
        let mut lossy = BTreeSet::new();
        until("all messages are received", || {
            for (channel, received) in received.iter_mut().enumerate() {
                let packets = peer.socket.channel_mut(channel).receive().into_iter();
                received.extend(packets.filter(|(_, it)| it[0] == round).map(|(id, it)| (id, it[1])));
            }
            lossy = received[UNRELIABLE].iter().copied().collect();
            received[RELIABLE].len() >= expected && lossy.len() >= expected / 2
        });
        assert_eq!(lossy.len(), received[UNRELIABLE].len(), "{} receives nothing twice", peer.name);
        for id in &peer.others {
            let from = received[RELIABLE].iter().filter(|(sender, _)| sender == id).map(|(_, n)| *n);
            assert!(from.eq(0..MESSAGES), "{} receives all in order", peer.name);
        }
        assert_eq!(received[RELIABLE].len(), expected);
    }
}

fn main() {
    let base = std::env::args().nth(1).expect("ws://HOST:PORT");
    let connect = |name, room: &str| Peer::connect(name, format!("{base}/{room}"));

    println!("two meet, in another room a third is alone");
    let mut a = connect("a", "tea");
    let mut b = connect("b", "tea");
    let mut alone = connect("alone", "coffee");
    wait_for_connections(&mut [&mut a, &mut b]);
    exchange_messages(&mut [&mut a, &mut b], 1);

    println!("a third comes");
    let mut c = connect("c", "tea");
    wait_for_connections(&mut [&mut a, &mut b, &mut c]);
    exchange_messages(&mut [&mut a, &mut b, &mut c], 2);

    println!("one leaves");
    let left = b.id();
    drop(b);
    until("they see it", || {
        [&mut a, &mut c].into_iter().all(|peer| {
            peer.update_peers();
            peer.gone.contains(&left)
        })
    });
    wait_for_connections(&mut [&mut a, &mut c]);
    exchange_messages(&mut [&mut a, &mut c], 3);
    alone.update_peers();
    assert!(alone.others.is_empty() && alone.gone.is_empty());

    println!("groups of two, and of three");
    let mut pairs: Vec<Peer> = ["d", "e", "f", "g"]
        .map(|name| {
            let mut peer = connect(name, "pairs?next=2");
            // The peers connect one after the other, so that the groups are known.
            until("the id is assigned", || peer.socket.id().is_some());
            peer
        })
        .into();
    let mut three: Vec<Peer> = ["h", "i", "j"].map(|name| connect(name, "pairs?next=3")).into();
    for pair in pairs.chunks_mut(2) {
        wait_for_connections(&mut pair.iter_mut().collect::<Vec<_>>());
        exchange_messages(&mut pair.iter_mut().collect::<Vec<_>>(), 4);
    }
    wait_for_connections(&mut three.iter_mut().collect::<Vec<_>>());
    exchange_messages(&mut three.iter_mut().collect::<Vec<_>>(), 5);
    println!("done");
}
