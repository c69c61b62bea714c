//! The protocols of servers: how a peer registers in a room, and what it sends to the other peer of a pair.

use crate::modes::contains;
use crate::net::Net;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The article's protocol.
    Noroshi,
    /// Rooms of two, which the register message names.
    Ayame,
    /// Rooms in the path. The server assigns ids.
    Matchbox,
}

impl Dialect {
    pub const ALL: [(&'static str, Dialect); 3] =
        [("noroshi", Dialect::Noroshi), ("ayame", Dialect::Ayame), ("matchbox", Dialect::Matchbox)];

    pub fn name(self) -> &'static str {
        let (name, _) = Self::ALL.into_iter().find(|(_, dialect)| *dialect == self).expect("it is listed");
        name
    }

    /// Returns the flags with which noroshi serves the dialect, and the path of its URL.
    pub fn of_noroshi(self) -> (&'static [&'static str], &'static str) {
        match self {
            Dialect::Noroshi => (&[], "/ws"),
            Dialect::Ayame => (&["--ayame"], "/signaling"),
            Dialect::Matchbox => (&["--matchbox"], "/"),
        }
    }

    /// Returns the path of a room.
    pub fn room_path(self, base: &str, room: &str) -> String {
        match self {
            Dialect::Ayame => base.to_owned(),
            Dialect::Noroshi | Dialect::Matchbox => format!("{}/{room}", base.trim_end_matches('/')),
        }
    }

    /// Returns the path for work that needs no room if the server has none.
    pub fn shared_path(self, base: &str, room: &str) -> String {
        match self {
            Dialect::Noroshi => base.to_owned(),
            Dialect::Ayame | Dialect::Matchbox => self.room_path(base, room),
        }
    }

    /// Registers a connection under an id. The server answers, see [`Dialect::is_registered`].
    pub fn register(self, net: &mut Net, slot: usize, room: &str, id: &str) {
        match self {
            // A candidate for itself: every server answers it, with the candidate or an error, and stores nothing.
            Dialect::Noroshi => {
                net.text(
                    slot,
                    &format!(r#"{{"type":"candidateAdd","id":"{id}","target_id":"{id}","candidate":0}}"#),
                );
            }
            Dialect::Ayame => {
                net.text(slot, &format!(r#"{{"type":"register","roomId":"{room}","clientId":"{id}"}}"#));
            }
            Dialect::Matchbox => {}
        }
    }

    /// Returns whether this message shows that its receiver is registered.
    pub fn is_registered(self, text: &[u8]) -> bool {
        match self {
            // Joins of other connections arrive too. The reply to the connection's own join has another type.
            Dialect::Noroshi => !text.starts_with(br#"{"type":"peerJoined""#),
            Dialect::Ayame => contains(text, br#""type":"accept""#),
            Dialect::Matchbox => contains(text, b"IdAssigned"),
        }
    }

    /// Answers a ping that is a message. Returns whether the message was one.
    pub fn answer_ping(self, net: &mut Net, slot: usize, text: &[u8]) -> bool {
        let is_ping = self == Dialect::Ayame && contains(text, br#""type":"ping""#);
        if is_ping {
            net.text(slot, r#"{"type":"pong"}"#);
        }
        is_ping
    }

    /// Returns the id of the other peer if the message says that it may be sent to.
    pub fn new_partner(self, text: &[u8]) -> Option<String> {
        match self {
            Dialect::Noroshi => None,
            Dialect::Ayame => contains(text, br#""isExistClient":true"#).then(String::new),
            Dialect::Matchbox => string_after(text, br#""NewPeer":""#),
        }
    }

    /// Returns the id of the sender of a message.
    pub fn sender(self, text: &[u8]) -> String {
        string_after(text, br#""sender":""#).unwrap_or_default()
    }

    /// Returns a candidate for another peer. `candidate` is JSON.
    pub fn candidate(self, to: &str, candidate: &str) -> String {
        match self {
            Dialect::Matchbox => {
                format!(r#"{{"Signal":{{"receiver":"{to}","data":{{"IceCandidate":{candidate}}}}}}}"#)
            }
            _ => format!(r#"{{"type":"candidate","ice":{candidate}}}"#),
        }
    }

    /// Returns an offer or an answer for another peer. `sdp` is a JSON string.
    pub fn description(self, to: &str, is_offer: bool, sdp: &str) -> String {
        match (self, is_offer) {
            (Dialect::Matchbox, true) => {
                format!(r#"{{"Signal":{{"receiver":"{to}","data":{{"Offer":{sdp}}}}}}}"#)
            }
            (Dialect::Matchbox, false) => {
                format!(r#"{{"Signal":{{"receiver":"{to}","data":{{"Answer":{sdp}}}}}}}"#)
            }
            (_, true) => format!(r#"{{"type":"offer","sdp":{sdp}}}"#),
            (_, false) => format!(r#"{{"type":"answer","sdp":{sdp}}}"#),
        }
    }

    /// Returns whether a message is an offer, or an answer.
    pub fn is_offer(self, text: &[u8]) -> bool {
        contains(text, if self == Dialect::Matchbox { br#""Offer":"# } else { br#""type":"offer""# })
    }

    pub fn is_answer(self, text: &[u8]) -> bool {
        contains(text, if self == Dialect::Matchbox { br#""Answer":"# } else { br#""type":"answer""# })
    }
}

fn string_after(text: &[u8], key: &[u8]) -> Option<String> {
    let start = text.windows(key.len()).position(|window| window == key)? + key.len();
    let end = text[start..].iter().position(|byte| *byte == b'"')?;
    String::from_utf8(text[start..start + end].to_vec()).ok()
}
