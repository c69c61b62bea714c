//! Unguessable, reversible connection ids, for protocols in which the server assigns ids.
//!
//! An id is a UUID: the number of the connection, encrypted with a random key. It is decoded instead of looked up, so no
//! table has to be kept beside the connections.
//!
//! A random UUID in each record and a `HashMap` of them would take 57 bytes a peer at 10,000 peers. To format an id takes
//! 1,000 instructions here and 530 with a stored UUID, to look one up 580 and 330 (valgrind's callgrind). The format itself
//! is left to the uuid crate: formatting and parsing with the standard library took 3,840 and 3,510.

use std::hash::{BuildHasher, RandomState};

use uuid::{Builder, Uuid};

use crate::protocol::Conn;

/// Encrypts connections to UUIDs and decrypts them.
///
/// The construction is that of SIV (RFC 5297), with keyed SipHash as the pseudorandom function: the lower half of a UUID
/// is an authentication tag of the connection, and the upper half is the connection, masked by a hash of the tag.
pub struct UuidCodec(RandomState);

/// Separate the two uses of the hash.
const TAG: u8 = 0;
const MASK: u8 = 1;

impl UuidCodec {
    /// Creates a codec with a key, which must be random: see [`RandomState::new`].
    pub fn new(key: RandomState) -> UuidCodec {
        UuidCodec(key)
    }

    /// Returns the UUID of a connection.
    ///
    /// It is in lower case, with hyphens (RFC 9562 section 4). Its version bits have no meaning.
    pub fn encode(&self, conn: Conn) -> String {
        let tag = self.hash(TAG, conn.bits());
        let masked = conn.bits() ^ self.hash(MASK, tag);
        Uuid::from_u64_pair(masked, tag).to_string()
    }

    /// Returns the connection whose UUID this is, even if it has ended.
    ///
    /// All spellings that [`Uuid::try_parse`] accepts are the same id.
    /// Returns `None` for a UUID that this codec does not create.
    pub fn decode(&self, uuid: &str) -> Option<Conn> {
        let (masked, tag) = Uuid::try_parse(uuid).ok()?.as_u64_pair();
        let bits = masked ^ self.hash(MASK, tag);
        (self.hash(TAG, bits) == tag).then(|| Conn::from_bits(bits))
    }

    fn hash(&self, usage: u8, input: u64) -> u64 {
        self.0.hash_one((usage, input))
    }
}

/// Returns a random UUID (version 4) of a sequence that the key and the name of its use determine.
///
/// The random bits are those of keyed SipHash, so that nobody can predict the next one without the key. Those of one use reveal
/// nothing about another.
pub fn random(key: &RandomState, usage: &str, number: u64) -> String {
    const RANDOM: u8 = 2;
    let half = |half: u8| key.hash_one((RANDOM, usage, half, number));
    let (most, least) = (half(0), half(1));
    let random_bytes = Uuid::from_u64_pair(most, least).into_bytes();
    Builder::from_random_bytes(random_bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_uuids_have_version_4_and_differ() {
        let key = RandomState::new();
        let uuids: Vec<String> = (0..1000).map(|number| random(&key, "test", number)).collect();
        for uuid in &uuids {
            let uuid = Uuid::try_parse(uuid).unwrap();
            assert_eq!((uuid.get_version_num(), uuid.get_variant()), (4, uuid::Variant::RFC4122));
        }
        let distinct: std::collections::BTreeSet<&String> = uuids.iter().collect();
        assert_eq!(distinct.len(), uuids.len());
        assert_ne!(random(&RandomState::new(), "test", 1), uuids[1]);
        assert_ne!(random(&key, "another", 1), uuids[1]);
    }

    #[test]
    fn only_encoded_connections_are_decoded() {
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
