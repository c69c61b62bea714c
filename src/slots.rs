//! What a protocol knows of each connection, by its slot: a number of four bytes by which all else may refer to it, as
//! long as it is here.

use std::ops::{Index, IndexMut};

use crate::protocol::Conn;

/// A place for each connection.
pub struct Slots<T>(Vec<Option<(Conn, T)>>);

const HERE: &str = "only who is here is referred to";

impl<T> Slots<T> {
    /// Nobody is here yet.
    pub const NEW: Slots<T> = Slots(Vec::new());

    /// A connection comes. Returns its slot.
    ///
    /// # Panics
    /// If another is in its slot.
    pub fn put(&mut self, conn: Conn, value: T) -> u32 {
        if self.0.len() <= conn.slot() {
            self.0.resize_with(conn.slot() + 1, || None);
        }
        let before = self.0[conn.slot()].replace((conn, value));
        assert!(before.is_none(), "a slot has one connection at a time");
        conn.slot() as u32
    }

    /// Where a connection is, if it is here.
    pub fn find(&self, conn: Conn) -> Option<u32> {
        let (it, _) = self.0.get(conn.slot())?.as_ref()?;
        (*it == conn).then_some(conn.slot() as u32)
    }

    /// Who is in a slot.
    pub fn conn(&self, slot: u32) -> Conn {
        self.0[slot as usize].as_ref().expect(HERE).0
    }

    /// What is known of whoever is in a slot, if anybody is.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.0[slot as usize].as_mut().map(|(_, value)| value)
    }

    /// A connection goes.
    pub fn take(&mut self, slot: u32) -> (Conn, T) {
        self.0[slot as usize].take().expect(HERE)
    }

    /// All who are here.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let all = self.0.iter().enumerate();
        all.filter_map(|(slot, entry)| entry.as_ref().map(|(_, value)| (slot as u32, value)))
    }
}

impl<T> Index<u32> for Slots<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        &self.0[slot as usize].as_ref().expect(HERE).1
    }
}

impl<T> IndexMut<u32> for Slots<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        &mut self.0[slot as usize].as_mut().expect(HERE).1
    }
}
