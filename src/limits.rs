//! Every limit of the program that has no flag, named with its unit, and why it has the value that it has.

use std::time::Duration;

/// 1024 bytes.
pub const KIB: usize = 1024;
/// 1024 of those.
pub const MIB: usize = 1024 * KIB;
/// 1024 of those.
pub const GIB: usize = 1024 * MIB;

// ---- One connection, before it speaks WebSocket ----

/// The head of a request: what nginx lets through. Browsers send under 2 KiB, but two cookies of 4 KiB and a token are
/// nothing rare.
pub const HEAD_BYTES_MAX: usize = 32 * KIB;
/// The method that it begins with. The longest that is registered (RFC 9110 section 16.1) has 17 bytes.
pub const METHOD_BYTES_MAX: usize = 32;
/// Headers in it. Browsers send twenty.
pub const HEADERS_MAX: usize = 100;
/// From accept to the end of the head, one deadline for all of it, so that a byte a second buys nothing.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

// ---- One connection, as a WebSocket ----

/// From the upgrade to the first well-formed message; then 1008.
pub const FIRST_MESSAGE_TIME_MAX: Duration = Duration::from_secs(30);
/// For a peer's Close after ours, and then for it to close TCP.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// What is read and thrown away after our last byte, so that no reset overtakes it (RFC 9112 section 9.6).
pub const DRAIN_BYTES_MAX: usize = 256 * KIB;
/// What waits to be sent to one peer, at least; see [`crate::config::Config::queue_bytes_max`].
pub const QUEUE_BYTES_MAX: usize = 256 * KIB;
/// Room beyond the queue for pongs, which must not fail when messages do. Without that, the last ping waits for its pong.
pub const QUEUE_BYTES_SPARE: usize = KIB;
/// A peer whose queue is full and that takes no byte for this long is closed.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that one read takes from a socket, which is also what one session may do in one turn of the loop.
/// Three SDPs of a browser fit; two thousand of the smallest frames are a millisecond's work.
pub const READ_BYTES_MAX: usize = 16 * KIB;
/// The first read buffer of a WebSocket codec, which is for what does not come whole.
pub const CODEC_BYTES: usize = KIB;

/// Buffers that are kept for the next session that needs some: as many as are at work in one turn of a busy server.
pub const SPARE_WORKS_MAX: usize = 64;
/// The largest of them that are kept: an SDP with video fits.
pub const SPARE_BYTES_MAX: usize = 8 * KIB;

/// Bytes of the name in `--client-ip-header`, which the log shows: three times the longest that proxies use.
pub const HEADER_NAME_BYTES_MAX: usize = 64;

/// Bytes of the name in `--metrics-host`: the longest name of a host (RFC 1035 section 2.3.4, without the root).
pub const HOST_NAME_BYTES_MAX: usize = 253;

// ---- One peer ----

/// An id, in bytes of UTF-8: a UUID three times over.
pub const ID_BYTES_MAX: usize = 128;
/// The name of a room of our own protocol, in bytes: a SHA-256 in hexadecimal.
pub const ROOM_BYTES_MAX: usize = 64;
/// The name of a room of other protocols, in bytes: any text, such as names of users joined.
pub const ROOM_TEXT_BYTES_MAX: usize = 256;
/// How often an Ayame client hears a ping. momo gives up after 30 s without one.
pub const AYAME_PING_EVERY: Duration = Duration::from_secs(25);
/// Candidates in one `candidates` array, and stored for one peer. A browser gathers ten or twenty.
pub const CANDIDATES_MAX: usize = 64;
/// Bytes of the candidates stored for one peer: a KiB each, five times what a browser writes.
pub const STORED_BYTES_MAX: usize = 64 * KIB;
/// What a claimant of an id sends while the holder is probed, beside its first message.
pub const KEPT_BYTES_MAX: usize = 64 * KIB;
/// The same in messages, because an empty one costs memory too. Well-formed ones fill the bytes before: the
/// shortest has 23.
pub const KEPT_MESSAGES_MAX: usize = KEPT_BYTES_MAX / 16;
/// How long the holder of a claimed id has to show life.
pub const PROBE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a room waits for an offer or an answer before it asks, or hands the offer to, the next in the line.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// `--ice-server` flags. Browsers grow slow from the fifth server on.
pub const ICE_SERVERS_MAX: usize = 8;
/// One of them, in bytes: the longest name of a host, and what is around it.
pub const ICE_SERVER_BYTES_MAX: usize = 300;
/// How long credentials for TURN can be used: a day's work. Who has them longer is told new ones.
pub const TURN_CREDENTIALS_TTL: Duration = Duration::from_secs(12 * 60 * 60);

/// How long after its token has ended a peer can still use the relay, because its call goes on: an evening. A TURN server
/// looks at a password again every ten minutes (RFC 8656 section 3.2).
pub const CALL_TIME_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// A secret of `--token-secret-file`, in bytes: as many as the hash that it goes into has (RFC 7518 section 3.2).
pub const TOKEN_SECRET_BYTES_MIN: usize = 32;
/// Secrets in that file: a new one, and the one before it. A bad token costs a hash for each.
pub const TOKEN_SECRETS_MAX: usize = 2;
/// A token, in bytes: ten times what one for a room and an id takes, and what a hash of costs 10 µs.
pub const TOKEN_BYTES_MAX: usize = 4 * KIB;
/// The last `exp`, `nbf` or `iat` of a token, in seconds since 1970: 12 digits, the year 33658. Larger numbers are
/// milliseconds, of which now has 13 digits. The end of the year 9999, which stands for "never", has 12.
pub const TOKEN_DATE_SECONDS_MAX: u64 = 999_999_999_999;
/// How far the clock of whoever signs tokens may be wrong.
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(30);

/// The burst of `--max-rate`, in seconds of it: a peer that has been quiet may send this much at once.
pub const RATE_BURST_SECONDS: u32 = 10;
/// A message counts once for every block of this size that it begins.
pub const RATE_BLOCK_BYTES: usize = 4 * KIB;
/// A sender is told `rate_limited` at most once in this time.
pub const RATE_TOLD_EVERY: Duration = Duration::from_secs(1);
/// A sender that is not over the limit for this long has ended its offence.
pub const RATE_PAUSE: Duration = Duration::from_secs(2);
/// A sender that is over the limit for this long, without such a pause, is closed.
pub const RATE_OFFENCE_MAX: Duration = Duration::from_secs(5);

// ---- The process ----

/// The listen backlog. mio's 128 makes a burst of a thousand connects wait for TCP's retransmission, a second.
/// How long an offer may take to be answered, for the metrics. Whoever is asked for a camera may think about it.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(30);
/// Offers that are followed at a time, for the metrics. Few servers have so many within a second, and all are looked through
/// with each.
pub const HANDSHAKES_MAX: usize = 1000;
/// The kernel caps it at net.core.somaxconn.
pub const BACKLOG: i32 = 4096;
/// The kernel's send buffer of a connection. Unset, Linux hides 4 MB behind a peer that does not read.
pub const SEND_BUFFER_BYTES: usize = 64 * KIB;
/// Connections accepted in one turn of the loop: about a millisecond.
pub const ACCEPTS_PER_TURN: usize = 256;
/// Sessions whose deadlines are looked at, and that are pinged where due, in one turn of the loop.
pub const SWEEP_PER_TURN: usize = 256;
/// How often all deadlines are looked at, and so their precision.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Connections over `--max-connections` that are taken in only to be told 503. Others wait in the backlog.
pub const REFUSED_AT_ONCE: usize = 16;
/// Connections over `--max-connections-per-ip` that are taken in from one place only to be told 429. Others are
/// closed at once.
pub const CROWD_REFUSED_AT_ONCE: usize = 4;
/// Connections of the `--metrics` listener, which has room even when the server is full.
pub const METRICS_AT_ONCE: usize = 4;
/// Members on one page of `GET /rooms`: all are looked at for each page, and so many are remembered.
pub const MEMBERS_LISTED_MAX: usize = 1000;
/// Bytes after which a page of `GET /rooms` gets no more members. All that [`METRICS_AT_ONCE`] may be told is small beside
/// [`BASE_BYTES`].
pub const ROOMS_BYTES_MAX: usize = 64 * KIB;
/// Descriptors beside the connections: standard streams, epoll, signals, listeners and what a library may open.
pub const DESCRIPTORS_SPARE: usize = REFUSED_AT_ONCE + METRICS_AT_ONCE + 12;
/// What `--max-memory` counts for the program itself, its tables and spare buffers.
pub const BASE_BYTES: usize = 4 * MIB;
/// What it counts for a connection: its peer with the longest names, a room of its own, and what it may always hold.
/// Most take 300 bytes.
pub const CONNECTION_BYTES: usize = 2 * KIB;
/// A head that comes in pieces, or what waits to be sent to a peer, may always be as long as this: a used-up budget
/// disturbs only those who use much of it.
pub const ALWAYS_HELD_BYTES: usize = KIB;
/// Refused upgrades that have a line each in the log in one second. The others are counted in one more.
pub const REFUSALS_LOGGED_MAX: usize = 10;
/// Characters of the `Origin` and the `Host` in that line.
pub const ORIGIN_LOGGED_MAX: usize = 100;
/// Lines of the log that are written after stderr was found to take some. A pipe that does has room for 4 KiB (pipe(7)),
/// and the longest line, with an id of nothing but control characters, has a little more than 1 KiB.
pub const LOG_LINES_AT_ONCE: u32 = 3;
/// How often a supervisor is told how many connections there are, at most.
pub const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How long connections have to say goodbye when the server stops.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(2);

// ---- `noroshi health` ----

/// For each step of asking a server whether it is well: who is busy for longer is not.
pub const HEALTH_TIME_MAX: Duration = Duration::from_secs(2);
/// What is read of the answer; ours has under 200 bytes.
pub const HTTP_ANSWER_BYTES_MAX: u64 = 4096;
