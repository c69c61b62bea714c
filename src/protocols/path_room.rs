//! Rooms that the path of a request names, for protocols whose clients connect to `PATH/ROOM`.

use percent_encoding::percent_decode_str;

use crate::limits::ROOM_TEXT_BYTES_MAX;
use crate::protocol::Route;

/// Returns the room that a path names. `below` is as for [`Descriptor::route`](crate::protocol::Descriptor::route).
///
/// The name is one segment of the path, percent-encoded, of any text. An empty name is a room too, and so is a missing one.
pub fn route(below: Option<&str>) -> Route {
    const EXPECTED: &str = "expected a room of one path segment with at most 256 bytes of UTF-8";
    let segment = below.unwrap_or_default();
    if segment.contains('/') {
        return Route::Invalid(EXPECTED);
    }
    match percent_decode_str(segment).decode_utf8() {
        Ok(room) if room.len() <= ROOM_TEXT_BYTES_MAX => Route::Room(room.into_owned()),
        _ => Route::Invalid(EXPECTED),
    }
}
