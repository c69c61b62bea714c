//! Unguessable, reversible connection ids, for protocols in which the server assigns ids.
//!
//! An id is a UUID: the number of the connection, encrypted with a random key. It is decoded instead of looked up, so no
//! table has to be kept beside the connections. A random UUID with a table would take 16 bytes for the key and 8 for the
//! connection in each entry of a hash table.

use std::hash::{BuildHasher, RandomState};

use crate::protocol::Conn;

/// Encrypts connections to UUIDs and decrypts them.
///
/// The cipher is a permutation of 128 bits: a Feistel network of four rounds, with keyed SipHash as the round function.
pub struct UuidCodec(RandomState);

const ROUNDS: u8 = 4;

impl UuidCodec {
    /// Creates a codec with a key, which must be random: see [`RandomState::new`].
    pub fn new(key: RandomState) -> UuidCodec {
        UuidCodec(key)
    }

    /// Returns the UUID of a connection.
    ///
    /// It is in lower case, with hyphens (RFC 9562 section 4). Its version bits have no meaning.
    pub fn encode(&self, conn: Conn) -> String {
        let mut left = conn.bits();
        let mut right = 0;
        for round in 0..ROUNDS {
            let next_right = left ^ self.0.hash_one((round, right));
            left = right;
            right = next_right;
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

    /// Returns the connection whose UUID this is, even if it has ended.
    ///
    /// Returns `None` for a UUID that this codec does not create.
    pub fn decode(&self, uuid: &str) -> Option<Conn> {
        let digits: String = uuid.split('-').collect();
        let is_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        if uuid.len() != 36 || digits.len() != 32 || !is_hexadecimal {
            return None;
        }
        let (left_digits, right_digits) = digits.split_at(16);
        let mut left = u64::from_str_radix(left_digits, 16).ok()?;
        let mut right = u64::from_str_radix(right_digits, 16).ok()?;
        for round in (0..ROUNDS).rev() {
            let previous_left = right ^ self.0.hash_one((round, left));
            right = left;
            left = previous_left;
        }
        (right == 0).then(|| Conn::from_bits(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encoded_codec_are_decoded() {
        let codec = UuidCodec::new(RandomState::new());
        let conns: Vec<Conn> = (0..1000).map(|i| Conn::new(i * 7, i as usize)).collect();
        for conn in conns {
            let uuid = codec.encode(conn);
            assert_eq!(codec.decode(&uuid), Some(conn));
            let is_valid = |(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            };
            assert!(uuid.len() == 36 && uuid.bytes().enumerate().all(is_valid), "{uuid}");
            assert_eq!(UuidCodec::new(RandomState::new()).decode(&uuid), None);
        }
        for text in
            ["", "not a uuid", "00000000-0000-4000-8000-000000000000", &"-".repeat(36), &"é".repeat(18)]
        {
            assert_eq!(codec.decode(text), None, "{text}");
        }
    }
}
