//! Rooms, or what a protocol calls them, by index and by name.
//!
//! Other records refer to a room by its index of four bytes. The table of names has such an index in each entry; the name itself
//! is in the room. The hashes are keyed at random, because clients choose names.

use std::hash::{BuildHasher, RandomState};
use std::ops::{Index, IndexMut};

use hashbrown::HashTable;
use slab::Slab;

/// A value that is found by its name, which does not change.
pub trait Named {
    /// Returns the name.
    fn name(&self) -> &str;
}

/// Values of type `T`. An index is reused after its value was removed.
pub struct NameTable<T> {
    values: Slab<T>,
    indices: HashTable<u32>,
    hasher: RandomState,
}

impl<T: Named> NameTable<T> {
    /// Creates an empty table. `key` makes the hashes of names unpredictable.
    pub fn new(key: RandomState) -> NameTable<T> {
        NameTable { values: Slab::new(), indices: HashTable::new(), hasher: key }
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Returns the index of the value with this name.
    pub fn find(&self, name: &str) -> Option<u32> {
        let has_name = |index: &u32| self[*index].name() == name;
        self.indices.find(self.hasher.hash_one(name), has_name).copied()
    }

    /// Inserts a value, whose name must be new, and returns its index.
    pub fn insert(&mut self, value: T) -> u32 {
        let index = self.values.insert(value) as u32;
        let NameTable { values, indices, hasher } = self;
        let hash = |index: &u32| hasher.hash_one(values[*index as usize].name());
        indices.insert_unique(hash(&index), index, hash);
        index
    }

    /// Removes and returns the value with this index.
    ///
    /// # Panics
    /// There is none.
    pub fn remove(&mut self, index: u32) -> T {
        let hash = self.hasher.hash_one(self[index].name());
        let entry = self.indices.find_entry(hash, |entry| *entry == index);
        entry.expect("every value is in the table of names").remove();
        self.values.remove(index as usize)
    }

    /// Returns whether there is a value with this index.
    pub fn contains(&self, index: u32) -> bool {
        self.values.contains(index as usize)
    }

    /// Returns all values with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.values.iter().map(|(index, value)| (index as u32, value))
    }

    /// Checks that each value is found by its name.
    ///
    /// # Panics
    /// If not.
    pub fn check(&self) {
        assert_eq!(self.indices.len(), self.values.len());
        for (index, value) in self.iter() {
            assert_eq!(self.find(value.name()), Some(index));
        }
    }
}

impl<T> Index<u32> for NameTable<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        &self.values[index as usize]
    }
}

impl<T> IndexMut<u32> for NameTable<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        &mut self.values[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Named for String {
        fn name(&self) -> &str {
            self
        }
    }

    #[test]
    fn values_are_found_by_name_until_they_are_removed() {
        let mut table = NameTable::new(RandomState::new());
        let indices: Vec<u32> = (0..1000).map(|number| table.insert(number.to_string())).collect();
        table.check();
        for (number, index) in indices.iter().enumerate() {
            assert_eq!(table.find(&number.to_string()), Some(*index));
            assert_eq!(table[*index], number.to_string());
        }
        assert_eq!(table.find("1000"), None);
        for (number, index) in indices.iter().enumerate() {
            assert_eq!(table.remove(*index), number.to_string());
            assert_eq!((table.find(&number.to_string()), table.contains(*index)), (None, false));
            table.check();
        }
        assert!(table.is_empty());
    }
}
