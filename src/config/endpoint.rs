//! Where a protocol is served, and by which flag.

use crate::http::paths;

/// Where a protocol is served, and by which flag.
#[derive(Debug)]
pub struct Endpoint {
    /// The flag `--NAME[=PATH]`, the variable `NOROSHI_NAME`, and the label in metrics, `/rooms` and the log. Lowercase
    /// letters, digits and hyphens.
    pub name: &'static str,
    /// The name in sentences.
    pub title: &'static str,
    /// The path without `=PATH`.
    pub default_path: &'static str,
    /// Whether it is served at the default path without a flag. Then it has no flag.
    pub is_always_on: bool,
    /// Whether clients connect to `PATH/ROOM`.
    pub has_rooms_below: bool,
    /// Whether clients may also connect to any path below `PATH`, which has no meaning then.
    pub ignores_path_below: bool,
    /// Whether `PATH` may be `/`, so that the paths below it are at the top level. The protocol takes those that belong to no
    /// other one.
    pub may_be_root: bool,
    /// Whether the outbound queues of its connections have a capacity of at least
    /// [`LARGE_QUEUE_BYTES_MAX_FLOOR`](crate::limits::LARGE_QUEUE_BYTES_MAX_FLOOR).
    pub has_large_queues: bool,
    /// Whether the server ends a connection without a Close frame: it sends what is queued, and then ends TCP. A Close frame of the
    /// client is answered with a Close frame. For protocols whose clients notice the end of TCP, but not a Close frame.
    pub ends_without_close_frame: bool,
    /// The path at which clients of the original server check its health. It is served while the protocol is.
    pub health_path: Option<&'static str>,
    /// Bytes that the protocol may store for one connection, beyond a message and stored candidates.
    pub stored_bytes_max: usize,
}

impl Endpoint {
    /// Parses the path at which a flag mounts the protocol. `/` becomes the empty path.
    ///
    /// # Errors
    /// What was expected.
    pub(super) fn parse_path(&self, path: &str, endpoints: &[&Endpoint]) -> Result<String, String> {
        const EXPECTED: &str = "a path such as /signaling";
        if path == "/" && self.may_be_root {
            return Ok(String::new());
        }
        if let Some(reserved) = reserved_path(path, endpoints) {
            return Err(format!("{EXPECTED} that the server does not use itself (it uses {reserved})"));
        }
        let is_path_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~-".contains(&byte);
        if path.starts_with('/') && !path.ends_with('/') && path.bytes().all(is_path_byte) {
            Ok(path.to_owned())
        } else {
            Err(format!("{EXPECTED}, of A-Z a-z 0-9 . _ ~ - and /, without a slash at its end"))
        }
    }

    /// Returns the help of the flag, in columns: the flag, and what it does.
    pub(super) fn help(&self) -> String {
        let flag = format!("--{}[=PATH]", self.name);
        let (room, default) = match self.has_rooms_below {
            true => ("/ROOM", self.default_path.trim_end_matches('/')),
            false => ("", self.default_path),
        };
        let title = self.title;
        let effect =
            format!("also serve {title}'s protocol, at PATH{room} or at {default}{room} [default: off]");
        if flag.len() > 21 {
            format!("      {flag}\n{:29}{effect}\n", "")
        } else {
            format!("      {flag:<22} {effect}\n")
        }
    }
}

/// Returns the path of the server that a protocol at this path would hide.
fn reserved_path<'a>(path: &str, endpoints: &[&'a Endpoint]) -> Option<&'a str> {
    let own = [paths::HEALTH].into_iter().chain(paths::PAGES);
    let health = endpoints.iter().filter_map(|endpoint| endpoint.health_path);
    if let Some(reserved) = own.chain(health).find(|reserved| *reserved == path) {
        return Some(reserved);
    }
    let always_on = endpoints.iter().filter(|endpoint| endpoint.is_always_on);
    let folders = always_on.map(|endpoint| endpoint.default_path).chain([paths::MODULES]);
    folders.into_iter().find(|reserved| {
        path.strip_prefix(reserved).is_some_and(|below| below.is_empty() || below.starts_with('/'))
    })
}

#[cfg(test)]
pub(super) mod examples {
    //! Endpoints for the tests of flags and variables.

    use super::Endpoint;

    /// Protocols as `protocols` describes them.
    pub const ENDPOINTS: &[&Endpoint] = &[&NOROSHI, &AYAME, &MATCHBOX];

    pub static NOROSHI: Endpoint = Endpoint {
        name: "noroshi",
        title: "noroshi",
        default_path: "/ws",
        is_always_on: true,
        has_rooms_below: true,
        ignores_path_below: false,
        may_be_root: false,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: None,
        stored_bytes_max: 0,
    };

    pub static AYAME: Endpoint = Endpoint {
        name: "ayame",
        title: "Ayame",
        default_path: "/signaling",
        is_always_on: false,
        has_rooms_below: false,
        ignores_path_below: false,
        may_be_root: false,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: Some("/.ok"),
        stored_bytes_max: 0,
    };

    pub static MATCHBOX: Endpoint = Endpoint {
        name: "matchbox",
        title: "matchbox",
        default_path: "/",
        is_always_on: false,
        has_rooms_below: true,
        ignores_path_below: false,
        may_be_root: true,
        has_large_queues: false,
        ends_without_close_frame: false,
        health_path: Some("/health"),
        stored_bytes_max: 0,
    };
}
