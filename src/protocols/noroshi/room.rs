//! The state of one room: its offerer, the queue of the pairing flow, and the mesh.

use super::Slot;
use crate::protocols::list::List;
use crate::protocols::name_table::Named;
use crate::timestamp::Timestamp;

pub struct Room {
    pub name: Box<str>,
    /// Number of connections in the room, registered or not. The room is removed with the last one.
    pub member_count: u32,
    /// The peer that was asked for an offer, or whose offer is the current one.
    pub offerer: Option<Slot>,
    /// Peers that wait for an offer or for the offerer's role, first come first.
    pub queue: List,
    /// Peers that joined the mesh, oldest first.
    pub mesh: List,
    /// When the room advances without an answer. It is set exactly while the queue is not empty.
    pub deadline: Option<Timestamp>,
    /// Whether the room has made progress since `advance` last updated the deadline.
    pub has_progressed: bool,
}

impl Named for Room {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Room {
    pub fn new(name: &str) -> Room {
        Room {
            name: name.into(),
            member_count: 0,
            offerer: None,
            queue: List::default(),
            mesh: List::default(),
            deadline: None,
            has_progressed: false,
        }
    }
}
