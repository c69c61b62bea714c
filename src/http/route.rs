//! Which path leads to which protocol.

use crate::config::ROOM_BYTES_MAX;
use crate::protocol::{Dialect, Target};

/// A request target without scheme and host (RFC 9112 section 3.2.2), in two.
pub(super) fn path_and_query(target: &str) -> (&str, &str) {
    let target = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
        }
        _ => target,
    };
    let target = target.split('#').next().unwrap_or_default();
    target.split_once('?').unwrap_or((target, ""))
}

/// What a path leads to, if it is for WebSockets, or why it cannot.
pub(super) fn target(path: &str, query: &str) -> Option<Result<Target, &'static str>> {
    let room = match path.strip_prefix("/ws")? {
        "" => Ok(""),
        room => Some(room.strip_prefix('/')?)
            .filter(|room| is_room(room))
            .ok_or("a room is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -"),
    };
    Some(room.map(|room| Target {
        dialect: Dialect::Noroshi,
        room: room.to_owned(),
        query: query.to_owned(),
    }))
}

fn is_room(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    (1..=ROOM_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine) && name != "." && name != ".."
}
