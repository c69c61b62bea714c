//! Routing: which path belongs to which protocol, room or resource.

use std::borrow::Cow;

use percent_encoding::{percent_decode_str, percent_encode_byte};

use super::AdminTopic;
use crate::config::{Config, ROOM_BYTES_MAX, ROOM_TEXT_BYTES_MAX};
use crate::http::paths;
use crate::http::query::Query;
use crate::protocol::{ProtocolId, Target};
use crate::web;

/// The schemes of a request target in absolute form.
const SCHEMES: [&str; 4] = ["http", "https", "ws", "wss"];

/// Splits a request target into its normalized path and its query.
///
/// Scheme and host of an absolute form (RFC 9112 section 3.2.2) are ignored; RFC 6455 section 4.2.1 allows a client to
/// write the URL of a WebSocket there.
pub(super) fn path_and_query(target: &str) -> (Cow<'_, str>, Query) {
    let origin_form = strip_scheme_and_host(target);
    let without_fragment = origin_form.split('#').next().unwrap_or_default();
    let (path, query) = without_fragment.split_once('?').unwrap_or((without_fragment, ""));
    (decode_unreserved(path), Query::new(query))
}

fn strip_scheme_and_host(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else { return target };
    if !SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return target;
    }
    let host_end = rest.find(['/', '?']).unwrap_or(rest.len());
    &rest[host_end..]
}

/// Returns whether a byte means the same with and without percent-encoding.
///
/// Source: RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Decodes the unreserved characters of a path, and nothing else.
///
/// Source: RFC 3986 section 6.2.2.2.
fn decode_unreserved(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(percent) = rest.find('%') {
        decoded.push_str(&rest[..percent]);
        rest = &rest[percent..];
        match encoded_byte(rest) {
            Some(byte) => {
                if is_unreserved(byte) {
                    decoded.push(char::from(byte));
                } else {
                    decoded.push_str(percent_encode_byte(byte));
                }
                rest = &rest[3..];
            }
            // A percent sign without two hexadecimal digits stands for itself.
            None => {
                decoded.push('%');
                rest = &rest[1..];
            }
        }
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

/// Returns the byte that the first three characters encode (`%7E`).
fn encoded_byte(text: &str) -> Option<u8> {
    let digits = text.get(1..3)?;
    // `from_str_radix` accepts a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// Returns the protocol and room of a WebSocket path.
///
/// `None`: the path is not for WebSockets. If the rooms of matchbox are at the top level (`--matchbox` without a
/// prefix), a plain request for a page is still answered with the page, and the paths of health checks are never rooms.
///
/// # Errors
/// A sentence for the client: the room or the query is not valid.
pub(super) fn target(
    path: &str,
    query: &Query,
    is_upgrade: bool,
    config: &Config,
) -> Option<Result<Target, &'static str>> {
    let (protocol, room) = if let Some(room) = path_below(paths::WEBSOCKET, path) {
        (ProtocolId::Noroshi, noroshi_room(room))
    } else if config.ayame.as_deref() == Some(path) {
        (ProtocolId::Ayame, Ok(String::new()))
    } else {
        let prefix = config.matchbox.as_deref()?;
        let is_page = config.page && web::find(path).is_some();
        if is_health(path, config) || (is_page && !is_upgrade) {
            return None;
        }
        (ProtocolId::Matchbox, matchbox_room(path_below(prefix, path)?))
    };
    let room = match room {
        Ok(room) => room,
        Err(sentence) => return Some(Err(sentence)),
    };
    let target = Target { protocol, room, query: query.clone() };
    Some(check_query(target, config))
}

/// Checks that the fields of the query that the protocol reads are UTF-8.
///
/// Other fields may hold any bytes.
fn check_query(target: Target, config: &Config) -> Result<Target, &'static str> {
    let is_utf8 = |name| target.query.values(name).all(|value| value.is_ok());
    if target.protocol == ProtocolId::Matchbox && !is_utf8("next") {
        return Err("query field next: expected UTF-8");
    }
    if target.protocol != ProtocolId::Ayame && config.token_secrets.is_some() && !is_utf8("token") {
        return Err("query field token: expected UTF-8");
    }
    Ok(target)
}

fn without_trailing_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

/// Returns the part of a path below a prefix.
///
/// `None`: the path does not begin with the prefix. `Some(None)`: the path is the prefix itself.
fn path_below<'a>(prefix: &str, path: &'a str) -> Option<Option<&'a str>> {
    match path.strip_prefix(prefix)? {
        "" => Some(None),
        rest => rest.strip_prefix('/').map(Some),
    }
}

/// Returns the room of our protocol that a path names. No name is the default room.
fn noroshi_room(path: Option<&str>) -> Result<String, &'static str> {
    let path = path.unwrap_or_default();
    if path.is_empty() {
        return Ok(String::new());
    }
    let room = without_trailing_slash(path);
    if is_noroshi_room(room) {
        Ok(room.to_owned())
    } else {
        Err("expected a room of 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")
    }
}

fn is_noroshi_room(name: &str) -> bool {
    (1..=ROOM_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_unreserved)
        && name != "."
        && name != ".."
}

/// Returns the room of matchbox's protocol that a path names.
///
/// The name is one segment of the path, percent-encoded, of any text. An empty name is a room too.
fn matchbox_room(path: Option<&str>) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected a room of one path segment with at most 256 bytes of UTF-8";
    let segment = path.unwrap_or_default();
    if segment.contains('/') {
        return Err(EXPECTED);
    }
    match percent_decode_str(segment).decode_utf8() {
        Ok(room) if room.len() <= ROOM_TEXT_BYTES_MAX => Ok(room.into_owned()),
        _ => Err(EXPECTED),
    }
}

/// Parses the query of `/rooms`: the name of one room, and the cursor of the next page.
///
/// If a field is repeated, its last value counts. `None`: the query has an unknown field, or a malformed one.
pub(super) fn rooms_topic(query: &Query) -> Option<AdminTopic> {
    let mut room = None;
    let mut after = None;
    for field in query.fields() {
        let (name, value) = field.ok()?;
        match name.as_str() {
            "room" => room = Some(value),
            "after" => after = Some(parse_cursor(&value)?),
            _ => return None,
        }
    }
    Some(AdminTopic::Rooms { room, after })
}

/// Parses two hexadecimal numbers with a dot between them.
fn parse_cursor(text: &str) -> Option<(u64, u64)> {
    let (room, conn) = text.split_once('.')?;
    let room = u64::from_str_radix(room, 16).ok()?;
    let conn = u64::from_str_radix(conn, 16).ok()?;
    Some((room, conn))
}

/// Returns whether a path is that of a health check.
///
/// Clients of Ayame's and matchbox's servers use the paths of those.
pub(super) fn is_health(path: &str, config: &Config) -> bool {
    match without_trailing_slash(path) {
        paths::HEALTH => true,
        paths::AYAME_HEALTH => config.ayame.is_some(),
        paths::MATCHBOX_HEALTH => config.matchbox.is_some(),
        _ => false,
    }
}
