//! What a protocol knows of each connection, by its slot: a number of four bytes by which all else may refer to it, as
//! long as it is here.

use std::ops::{Index, IndexMut};

use crate::protocol::Conn;

/// Where a connection is.
pub type Slot = u32;

/// A place for each connection.
pub struct ConnTable<T>(Vec<Option<(Conn, T)>>);

const HERE: &str = "only who is here is referred to";

impl<T> ConnTable<T> {
    /// Nobody is here yet.
    pub const NEW: ConnTable<T> = ConnTable(Vec::new());

    /// A connection comes. Returns its slot.
    ///
    /// # Panics
    /// If another is in its slot.
    pub fn put(&mut self, conn: Conn, value: T) -> Slot {
        if self.0.len() <= conn.slot() {
            self.0.resize_with(conn.slot() + 1, || None);
        }
        let before = self.0[conn.slot()].replace((conn, value));
        assert!(before.is_none(), "a slot has one connection at a time");
        conn.slot() as Slot
    }

    /// Where a connection is, if it is here.
    pub fn find(&self, conn: Conn) -> Option<Slot> {
        let (it, _) = self.0.get(conn.slot())?.as_ref()?;
        (*it == conn).then_some(conn.slot() as Slot)
    }

    /// Who is in a slot.
    pub fn conn(&self, slot: Slot) -> Conn {
        self.0[slot as usize].as_ref().expect(HERE).0
    }

    /// What is known of whoever is in a slot, if anybody is.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.0[slot as usize].as_mut().map(|(_, value)| value)
    }

    /// A connection goes.
    pub fn take(&mut self, slot: Slot) -> (Conn, T) {
        self.0[slot as usize].take().expect(HERE)
    }

    /// All who are here.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        let all = self.0.iter().enumerate();
        all.filter_map(|(slot, entry)| entry.as_ref().map(|(_, value)| (slot as Slot, value)))
    }
}

impl<T> Index<Slot> for ConnTable<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        &self.0[slot as usize].as_ref().expect(HERE).1
    }
}

impl<T> IndexMut<Slot> for ConnTable<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        &mut self.0[slot as usize].as_mut().expect(HERE).1
    }
}
