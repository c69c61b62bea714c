//! Validates peer ids, in messages and in tokens.

use crate::limits::ID_BYTES_MAX;

/// Returns whether a text is a valid peer id.
///
/// An id has 1 to [`ID_BYTES_MAX`] bytes and no control characters (U+0000 to U+001F, U+007F). A control character takes
/// six bytes of JSON (`\u0001`) and is invisible in a log.
pub fn is_valid(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && !id.bytes().any(|byte| byte.is_ascii_control())
}
