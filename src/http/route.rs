//! Which path leads to which protocol.

use percent_encoding::percent_decode_str;

use super::About;
use crate::config::{Config, ROOM_BYTES_MAX, ROOM_TEXT_BYTES_MAX};
use crate::page;
use crate::paths;
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

/// What a path leads to, if it is for WebSockets, or why it cannot. Where the rooms of matchbox are at the top, a plain
/// request for what else is there is not for them.
pub(super) fn target(
    path: &str,
    query: &str,
    is_upgrade: bool,
    config: &Config,
) -> Option<Result<Target, &'static str>> {
    let (dialect, room) = if let Some(room) = below(paths::WEBSOCKET, path) {
        (Dialect::Noroshi, our_room(room))
    } else if config.ayame.as_deref() == Some(path) {
        (Dialect::Ayame, Ok(String::new()))
    } else {
        let is_page = config.page && page::at(path).is_some();
        let prefix = config.matchbox.as_deref().filter(|_| is_upgrade || !is_page)?;
        (Dialect::Matchbox, decoded(below(prefix, path)?))
    };
    Some(room.map(|room| Target { dialect, room, query: query.to_owned() }))
}

/// What is behind a path and a slash, if there is one.
fn below<'a>(prefix: &str, path: &'a str) -> Option<Option<&'a str>> {
    match path.strip_prefix(prefix)? {
        "" => Some(None),
        rest => rest.strip_prefix('/').map(Some),
    }
}

fn our_room(room: Option<&str>) -> Result<String, &'static str> {
    let name = room.unwrap_or_default();
    let is_fine = room.is_none() || is_room(name);
    is_fine.then(|| name.to_owned()).ok_or("a room is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")
}

/// A room of matchbox is one segment of a path, of any text; none is a room of its own.
fn decoded(room: Option<&str>) -> Result<String, &'static str> {
    let room = room.unwrap_or_default();
    let text = percent_decode_str(room).decode_utf8().ok();
    text.filter(|text| !room.contains('/') && text.len() <= ROOM_TEXT_BYTES_MAX)
        .map(String::from)
        .ok_or("a room is one segment of the path, of at most 256 bytes of UTF-8")
}

fn is_room(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    (1..=ROOM_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_fine) && name != "." && name != ".."
}

/// What is asked about the rooms, by the query: its name, percent-encoded, and where the page before has ended, as that says.
pub(super) fn rooms(query: &str) -> Option<About> {
    let (mut room, mut after) = (None, None);
    for field in query.split('&').filter(|field| !field.is_empty()) {
        match field.split_once('=')? {
            ("room", name) => room = Some(percent_decode_str(name).decode_utf8().ok()?.into_owned()),
            ("after", place) => {
                let (room, conn) = place.split_once('.')?;
                after = Some((u64::from_str_radix(room, 16).ok()?, u64::from_str_radix(conn, 16).ok()?));
            }
            _ => return None,
        }
    }
    Some(About::Rooms { room, after })
}

/// Whether an operator asks here whether the server is there. Those who come from other servers ask where they did.
pub(super) fn is_health(path: &str, config: &Config) -> bool {
    match path {
        paths::HEALTH => true,
        paths::AYAME_HEALTH => config.ayame.is_some(),
        paths::MATCHBOX_HEALTH => config.matchbox.is_some(),
        _ => false,
    }
}
