//! Names for connections, for protocols in which the server gives them: UUIDs that nobody can guess, and that lead back
//! to their connection without a table.

use std::hash::{BuildHasher, RandomState};

use crate::protocol::Conn;

/// A permutation of 128 bits, by a key that nobody else knows: four rounds of a Feistel network over SipHash.
pub struct Uuids(RandomState);

const ROUNDS: u8 = 4;

impl Uuids {
    /// The key is where the randomness is, see [`RandomState::new`].
    pub fn new(key: RandomState) -> Uuids {
        Uuids(key)
    }

    /// The UUID of a connection: lower case, with hyphens (RFC 9562 section 4), of no version.
    pub fn of(&self, conn: Conn) -> String {
        let (mut left, mut right) = (conn.bits(), 0);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.0.hash_one((round, right)));
        }
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            left >> 32,
            left >> 16 & 0xffff,
            left & 0xffff,
            right >> 48,
            right & 0xffff_ffff_ffff
        )
    }

    /// The connection that has this UUID, or had it.
    pub fn conn(&self, uuid: &str) -> Option<Conn> {
        let digits: String = uuid.split('-').collect();
        let is_one = uuid.len() == 36 && digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let (left, right) = is_one.then(|| digits.split_at(16))?;
        let (mut left, mut right) =
            (u64::from_str_radix(left, 16).ok()?, u64::from_str_radix(right, 16).ok()?);
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ self.0.hash_one((round, left)), left);
        }
        (right == 0).then(|| Conn::from_bits(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_lead_back_and_nothing_else_does() {
        let uuids = Uuids::new(RandomState::new());
        let conns: Vec<Conn> = (0..1000).map(|i| Conn::new(i * 7, i as usize)).collect();
        for conn in conns {
            let uuid = uuids.of(conn);
            assert_eq!(uuids.conn(&uuid), Some(conn));
            let is_fine = |(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            };
            assert!(uuid.len() == 36 && uuid.bytes().enumerate().all(is_fine), "{uuid}");
            assert_eq!(Uuids::new(RandomState::new()).conn(&uuid), None);
        }
        for text in
            ["", "not a uuid", "00000000-0000-4000-8000-000000000000", &"-".repeat(36), &"é".repeat(18)]
        {
            assert_eq!(uuids.conn(text), None, "{text}");
        }
    }
}
