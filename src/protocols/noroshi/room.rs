//! A room, as far as pairing and meshes go.

use super::Slot;
use crate::protocols::list::List;
use crate::timestamp::Timestamp;

pub struct Room {
    pub name: Box<str>,
    /// Connections in it, registered or not. The room goes with the last.
    pub members: u32,
    /// Who was asked for an offer, or whose offer stands.
    pub offerer: Option<Slot>,
    /// Who waits, first come first.
    pub line: List,
    /// Who joined, oldest first.
    pub mesh: List,
    /// When the room moves on all the same. Set while somebody waits.
    pub patience: Option<Timestamp>,
    /// Whether it has moved since `settle` last looked.
    pub moved: bool,
}

impl Room {
    pub fn new(name: &str) -> Room {
        Room {
            name: name.into(),
            members: 0,
            offerer: None,
            line: List::default(),
            mesh: List::default(),
            patience: None,
            moved: false,
        }
    }
}
