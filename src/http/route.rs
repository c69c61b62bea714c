//! Which path leads to which protocol.

use std::borrow::Cow;

use percent_encoding::{percent_decode_str, percent_encode_byte};

use super::AdminTopic;
use crate::config::{Config, ROOM_BYTES_MAX, ROOM_TEXT_BYTES_MAX};
use crate::paths;
use crate::protocol::{ProtocolId, Target};
use crate::query::Query;
use crate::web;

/// Splits a request target into its path, normalized, and its query. Scheme and host of an absolute form (RFC 9112
/// section 3.2.2) are ignored; RFC 6455 section 4.2.1 lets a client write the URL of a WebSocket there.
pub(super) fn path_and_query(target: &str) -> (Cow<'_, str>, Query) {
    let is_scheme =
        |scheme: &str| ["http", "https", "ws", "wss"].iter().any(|it| scheme.eq_ignore_ascii_case(it));
    let target = match target.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => &rest[rest.find(['/', '?']).unwrap_or(rest.len())..],
        _ => target,
    };
    let target = target.split('#').next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (decode_unreserved(path), Query::new(query))
}

/// Returns whether a byte of a path means the same with and without percent-encoding (RFC 3986 section 2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Decodes the unreserved characters of a path, and nothing else (RFC 3986 section 6.2.2.2).
fn decode_unreserved(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(percent) = rest.find('%') {
        decoded.push_str(&rest[..percent]);
        rest = &rest[percent..];
        // Two digits behind the percent sign, or none: then it stands for itself.
        let triplet =
            rest.get(..3).filter(|triplet| triplet[1..].bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = triplet.and_then(|triplet| u8::from_str_radix(&triplet[1..], 16).ok());
        match byte {
            Some(byte) if is_unreserved(byte) => decoded.push(char::from(byte)),
            Some(byte) => decoded.push_str(percent_encode_byte(byte)),
            None => decoded.push('%'),
        }
        rest = &rest[if byte.is_some() { 3 } else { 1 }..];
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

/// Returns what a path leads to, if it is for WebSockets, or why it cannot. Where the rooms of matchbox are at the top,
/// a plain request for a page that is there is not for them, and nothing at the path of a health check is.
pub(super) fn target(
    path: &str,
    query: &Query,
    is_upgrade: bool,
    config: &Config,
) -> Option<Result<Target, &'static str>> {
    let (dialect, room) = if let Some(room) = below(paths::WEBSOCKET, path) {
        (ProtocolId::Noroshi, our_room(room))
    } else if config.ayame.as_deref() == Some(path) {
        (ProtocolId::Ayame, Ok(String::new()))
    } else {
        let is_page = config.page && web::find(path).is_some();
        let is_free = !is_health(path, config) && (is_upgrade || !is_page);
        let prefix = config.matchbox.as_deref().filter(|_| is_free)?;
        (ProtocolId::Matchbox, decoded(below(prefix, path)?))
    };
    let target = room.map(|room| Target { protocol: dialect, room, query: query.clone() });
    Some(target.and_then(|target| check_query(target, config)))
}

/// Refuses a query of which a field that is read is not UTF-8. Other fields may hold anything.
fn check_query(target: Target, config: &Config) -> Result<Target, &'static str> {
    let is_utf8 = |name| target.query.values(name).all(|value| value.is_ok());
    if target.protocol == ProtocolId::Matchbox && !is_utf8("next") {
        return Err("next in the query is not UTF-8");
    }
    if target.protocol != ProtocolId::Ayame && config.token_secrets.is_some() && !is_utf8("token") {
        return Err("token in the query is not UTF-8");
    }
    Ok(target)
}

/// Ignores a slash at the end of a path.
fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

/// What is behind a path and a slash, if there is one.
fn below<'a>(prefix: &str, path: &'a str) -> Option<Option<&'a str>> {
    match path.strip_prefix(prefix)? {
        "" => Some(None),
        rest => rest.strip_prefix('/').map(Some),
    }
}

fn our_room(room: Option<&str>) -> Result<String, &'static str> {
    match room {
        None | Some("") => Ok(String::new()),
        Some(room) if is_room(without_slash(room)) => Ok(without_slash(room).to_owned()),
        Some(_) => Err("a room is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -"),
    }
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
    (1..=ROOM_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_unreserved)
        && name != "."
        && name != ".."
}

/// Returns what is asked about the rooms: the name of one, and where the page before has ended, as that says. Of equal
/// fields the last counts. `None`: the query has another field, or one that cannot be read.
pub(super) fn rooms(query: &Query) -> Option<AdminTopic> {
    let (mut room, mut after) = (None, None);
    for field in query.fields() {
        let (name, value) = field.ok()?;
        match &*name {
            "room" => room = Some(value),
            "after" => {
                let (room, conn) = value.split_once('.')?;
                after = Some((u64::from_str_radix(room, 16).ok()?, u64::from_str_radix(conn, 16).ok()?));
            }
            _ => return None,
        }
    }
    Some(AdminTopic::Rooms { room, after })
}

/// Returns whether a path is that of a health check. Clients of other servers use the path of theirs.
pub(super) fn is_health(path: &str, config: &Config) -> bool {
    match without_slash(path) {
        paths::HEALTH => true,
        paths::AYAME_HEALTH => config.ayame.is_some(),
        paths::MATCHBOX_HEALTH => config.matchbox.is_some(),
        _ => false,
    }
}
