//! What an id of a peer may be, in messages and in tokens.

use crate::limits::ID_BYTES_MAX;

/// Returns whether a peer can have this id: 1 to [`ID_BYTES_MAX`] bytes without control characters (U+0000 to U+001F, U+007F).
///
/// A control character takes six bytes of JSON (`\u0001`), and is invisible in a log.
pub fn is_valid(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && !id.bytes().any(|byte| byte.is_ascii_control())
}
