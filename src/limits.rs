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
/// The same while the server is full, when the places for requests are few.
pub const HEAD_TIME_FULL_MAX: Duration = Duration::from_secs(1);

// ---- One connection, as a WebSocket ----

/// From the upgrade to the first well-formed message; then 1008.
pub const FIRST_MESSAGE_TIME_MAX: Duration = Duration::from_secs(30);
/// For a peer's Close after ours, and then for it to close TCP.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// What is read and thrown away after our last byte, so that no reset overtakes it (RFC 9112 section 9.6).
pub const LINGER_BYTES_MAX: usize = 256 * KIB;
/// What waits to be sent to one peer, at least; see [`crate::config::Config::queue_bytes_max`].
pub const QUEUE_BYTES_MAX: usize = 256 * KIB;
/// Queue space beyond [`QUEUE_BYTES_MAX`] for messages of the server itself. Forwarded messages never use it, so that a
/// peer cannot fill another peer's queue in order to make a message of the server fail.
pub const QUEUE_BYTES_RESERVE: usize = 64 * KIB;
/// Control frames that wait to be sent ahead of the queue: eight of the longest pongs. When there is no room, only the
/// latest ping is answered (RFC 6455 section 5.5.3).
pub const CONTROL_BYTES_MAX: usize = KIB;
/// A peer whose queue is full and that takes no byte for this long is closed.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that one read takes from a socket, which is also what one session may do in one turn of the loop.
/// Three SDPs of a browser fit; two thousand of the smallest frames are a millisecond's work.
pub const READ_BYTES_MAX: usize = 16 * KIB;
/// The first read buffer of a WebSocket codec, which is for what does not come whole.
pub const CODEC_BYTES: usize = KIB;

/// Buffers that are kept for the next session that needs some: as many as are at work in one turn of a busy server.
pub const SPARE_BUFFERS_MAX: usize = 64;
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
/// Connections that wait at a time for the probe of one holder of an id. Only the first of them can get the id; further
/// ones are told `id_taken` at once.
pub const CLAIMANTS_MAX: usize = 256;
/// Peers that hold one offer at a time. All but one of them will be told `offer_taken`; further ones wait in the queue
/// of the room.
pub const OFFER_HOLDERS_MAX: usize = 64;
/// Ayame clients that wait at a time for the probe of a full room. At most two of them can get a seat; further ones are
/// rejected at once.
pub const AYAME_WAITING_MAX: usize = 16;
/// How long the holder of a claimed id has to show life.
pub const PROBE_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a room waits for an offer or an answer before it asks, or hands the offer to, the next in the line.
pub const ROOM_TIMEOUT: Duration = Duration::from_secs(30);

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
/// A file of secrets, in bytes, comments included: a secret has some hundred at most.
pub const SECRET_FILE_BYTES_MAX: usize = 64 * KIB;
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
/// Deliveries that one credit pays for, where one message makes the server tell several peers something. A delivery costs
/// about a microsecond of CPU, and the system call that writes it three to five more.
pub const RATE_DELIVERIES_PER_CREDIT: usize = 64;
/// Payload of a fragment, in bytes, from which on it costs no credit beside those of its message. Smaller fragments cost
/// one credit each: a message of 64 KiB in fragments of one byte is as much work as 65,536 messages.
pub const FRAGMENT_BYTES_FREE: usize = KIB;
/// A sender is told `rate_limited` at most once in this time.
pub const RATE_TOLD_EVERY: Duration = Duration::from_secs(1);
/// A sender that is not over the limit for this long has ended its offence.
pub const RATE_PAUSE: Duration = Duration::from_secs(2);
/// A sender that is over the limit for this long, without such a pause, is closed.
pub const RATE_OFFENCE_MAX: Duration = Duration::from_secs(5);

// ---- The process ----

/// How long an offer may take to be answered, for the metrics. Whoever is asked for a camera may think about it.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(30);
/// Offers that are followed at a time, for the metrics. Few servers have so many within a second, and all are looked through
/// with each.
pub const HANDSHAKES_MAX: usize = 1000;
/// The listen backlog. mio's 128 makes a burst of a thousand connects wait for TCP's retransmission, a second.
/// The kernel caps it at net.core.somaxconn.
pub const BACKLOG: i32 = 4096;
/// How long a start waits for another one that binds a socket in the same directory, which takes a millisecond.
pub const SOCKET_LOCK_TIME_MAX: Duration = Duration::from_secs(5);
/// How often it tries meanwhile.
pub const SOCKET_LOCK_RETRY_EVERY: Duration = Duration::from_millis(10);
/// The kernel's send buffer of a connection. Unset, Linux hides 4 MB behind a peer that does not read.
pub const SEND_BUFFER_BYTES: usize = 64 * KIB;
/// Connections accepted in one turn of the loop: about a millisecond.
pub const ACCEPTS_PER_ITERATION: usize = 256;
/// Units of work that the events of one turn of the loop may cause: one for each message handled, and one for each
/// message queued. Sessions with further input wait for the next turn. AdminTopic 5 ms of CPU.
pub const WORK_PER_ITERATION: usize = 4096;
/// Units of work that the input of one session may cause in one turn, so that one session whose messages go to many
/// peers does not delay others. What it has sent beyond that is handled in the next turn.
pub const WORK_PER_SESSION: usize = 512;
/// Timers of protocols that are handled in one turn of the loop.
pub const TIMERS_PER_ITERATION: usize = 256;
/// Ended connections that are reported to their protocols in one turn of the loop. Each may have to be announced to a
/// whole room.
pub const DEPARTURES_PER_ITERATION: usize = 256;
/// Sessions that are closed in one turn of the loop when the server stops or drains.
pub const CLOSES_PER_ITERATION: usize = 1024;
/// Sessions whose deadlines are looked at, and that are pinged where due, in one turn of the loop.
pub const SWEEP_PER_ITERATION: usize = 256;
/// How often all deadlines are looked at, and so their precision.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Places beyond `--max-connections`, for requests that are not upgrades, and for upgrades that are refused with 503. Others
/// wait in the backlog until the oldest of these gives way.
pub const REFUSED_AT_ONCE: usize = 16;
/// How long a connection that waits for its request, or has been answered, keeps its place while others wait in the backlog:
/// enough for a request that was sent with the connection. Places for [`REFUSED_AT_ONCE`] serve 320 connections a second.
pub const PLACE_TIME_MIN: Duration = Duration::from_millis(50);
/// The same for a connection whose answer is not yet sent.
pub const ANSWER_TIME_MIN: Duration = Duration::from_millis(500);
/// Connections that are looked at to find one that gives way, the oldest first.
pub const EVICTION_CANDIDATES_MAX: usize = 2 * REFUSED_AT_ONCE;
/// Connections over `--max-connections-per-ip` that are taken in from one place only to be told 429. Others are
/// closed at once.
pub const PER_IP_REFUSED_AT_ONCE: usize = 4;
/// Connections of the `--metrics` listener, which has room even when the server is full. The oldest gives way there too.
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
/// One line on stderr, in bytes, with its line feed. An id of 128 characters that are all escaped fits. A line that is longer
/// is truncated.
pub const LOG_LINE_BYTES_MAX: usize = KIB;
/// What precedes the message in a line of the log, but for the target, in bytes: the time, the level, brackets and spaces;
/// and the line feed.
pub const LOG_PREFIX_BYTES: usize = 48;
/// Lines that are written to stderr after a poll found it writable. A pipe that is writable takes 4 KiB without blocking
/// (pipe(7)).
pub const LOG_LINES_AT_ONCE: u32 = 4;
const _: () = assert!(LOG_LINES_AT_ONCE as usize * LOG_LINE_BYTES_MAX <= 4 * KIB);
/// How long the last line, which reports a panic, waits for stderr to become writable.
pub const PANIC_REPORT_TIME_MAX: Duration = Duration::from_secs(1);
/// Characters of the value of a header in a line of the log, so that a long value does not hide what comes behind it.
pub const ORIGIN_LOGGED_MAX: usize = 100;
/// How often a service_manager is told how many connections there are, at most.
pub const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How long the server waits for a service_manager to take the messages that it is ready, and that it stops. Both are sent once.
pub const NOTIFY_TIME_MAX: Duration = Duration::from_secs(1);
/// How long connections have to say goodbye when the server stops.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(2);

// ---- `noroshi health` ----

/// For each step of asking a server whether it is well: who is busy for longer is not.
pub const HEALTH_TIME_MAX: Duration = Duration::from_secs(2);
/// What is read of the answer; ours has under 200 bytes.
pub const HTTP_ANSWER_BYTES_MAX: u64 = 4096;
