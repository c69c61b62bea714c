//! All limits without a flag: each has a name with its unit, and the reason for its value.

use std::time::Duration;

/// 1,024 bytes.
pub const KIB: usize = 1024;
/// 1,024 KiB.
pub const MIB: usize = 1024 * KIB;
/// 1,024 MiB.
pub const GIB: usize = 1024 * MIB;

// ---- A connection before the upgrade ----

/// Bytes of a request head, as in the default of nginx. Browsers send under 2 KiB, but two cookies of 4 KiB and a token
/// are common.
pub const HEAD_BYTES_MAX: usize = 32 * KIB;
/// Bytes of the method. The longest registered one (RFC 9110 section 16.1) has 17 bytes.
pub const METHOD_BYTES_MAX: usize = 32;
/// Header fields of a request. Browsers send about 20.
pub const HEADERS_MAX: usize = 100;
/// Time from accept to the end of the request head. A client that sends one byte a second does not extend it.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// [`HEAD_TIME_MAX`] while the server is full and has only [`REJECTED_AT_ONCE`] connections for requests.
pub const HEAD_TIME_FULL_MAX: Duration = Duration::from_secs(1);

// ---- A connection after the upgrade ----

/// Time from the upgrade to the registration of an id; then the connection is closed with 1008.
pub const REGISTRATION_TIME_MAX: Duration = Duration::from_secs(30);
/// Time for each of the three closing phases: for the Close frame of the peer after that of the server, for sending the
/// queued output, and for the end of the TCP connection.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);
/// Bytes that are read and discarded after the last byte was sent, so that no reset overtakes it (RFC 9112 section 9.6).
pub const LINGER_BYTES_MAX: usize = 256 * KIB;
/// Least capacity of the outbound queue of a peer, in bytes. It is larger with a larger `--max-message` or
/// `--max-mesh-peers`: [`crate::config::Config::queue_bytes_max`] is the capacity in use.
pub const QUEUE_BYTES_MAX_FLOOR: usize = 256 * KIB;
/// Least capacity of the outbound queue of a peer in a protocol whose messages go to all members of a room, in bytes. After a
/// restart of the server, each of 34 y-webrtc clients of a document receives 1.7 MB at once.
pub const LARGE_QUEUE_BYTES_MAX_FLOOR: usize = 2 * MIB;
/// Bytes of memory that a frame which several queues share takes in addition to its bytes: the counters and lengths of the
/// allocation, and its place in a queue.
pub const SHARED_FRAME_OVERHEAD_BYTES: usize = 64;
/// Frames that one call of writev(2) writes from a queue with shared frames: 24 KB of candidates.
pub const WRITE_SLICES_MAX: usize = 64;
/// Queue space beyond [`crate::config::Config::queue_bytes_max`] for messages that the server sends. Forwarded messages never use it, so that no
/// peer can fill the queue of another and block messages from the server.
pub const QUEUE_BYTES_RESERVE: usize = 64 * KIB;
/// Least queue space beyond [`QUEUE_BYTES_RESERVE`] for messages that the server sends while the peer takes bytes: as much as a
/// full burst of one sender at the default `--max-rate` can cause. [`crate::config::Config::queue_bytes_burst_max`] is the space
/// in use.
pub const QUEUE_BURST_BYTES_FLOOR: usize = 256 * KIB;
/// Bytes of messages from the server to one peer that a sender can cause for one credit: a `leave` and a `join` cost five
/// credits, and their notices have at most 570 bytes, with an id of 128 characters that are escaped.
pub const BURST_BYTES_PER_CREDIT: usize = 120;
/// Largest value of [`crate::config::Config::queue_bytes_burst_max`], which grows with `--max-rate`.
pub const QUEUE_BURST_BYTES_CEILING: usize = 16 * MIB;
/// Bytes of pings and pongs that are queued separately, ahead of the messages: eight pongs of maximum length. When they are
/// full, only the latest ping gets a pong (RFC 6455 section 5.5.3). While the stream is not blocked, control frames may exceed
/// the message queue by as much.
pub const CONTROL_QUEUE_BYTES_MAX: usize = KIB;
/// Time after which a peer with a full queue is closed if it has read nothing.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes that a session reads in one iteration of the poll loop. They hold three SDPs of a browser, or 2,000 frames of
/// minimum size, which take 1 ms.
pub const READ_BYTES_MAX: usize = 16 * KIB;
/// Initial read buffer of the WebSocket codec, which is used for messages that arrive in parts.
pub const CODEC_BYTES: usize = KIB;

/// Buffers in the pool for sessions: about as many as a busy server uses in one iteration.
pub const SPARE_BUFFERS_MAX: usize = 128;
/// Capacity above which the buffers of a session are not returned to the pool: an SDP with video fits.
pub const SPARE_BYTES_MAX: usize = 8 * KIB;

/// Bytes of the name in `--client-ip-header`, which is logged: three times the longest name that proxies use.
pub const HEADER_NAME_BYTES_MAX: usize = 64;

/// Bytes of the name in `--metrics-host`: the longest host name (RFC 1035 section 2.3.4, without the root).
pub const HOST_NAME_BYTES_MAX: usize = 253;

// ---- A peer ----

/// Bytes of an id in UTF-8: more than three UUIDs.
pub const ID_BYTES_MAX: usize = 128;
/// Bytes of a room name in the noroshi protocol: a SHA-256 in hexadecimal.
pub const ROOM_BYTES_MAX: usize = 64;
/// Bytes of a room name in other protocols, which allow any text, for example several joined user names.
pub const ROOM_TEXT_BYTES_MAX: usize = 256;
/// Topics of a y-webrtc connection. A page has one for each open document.
pub const TOPICS_PER_CONNECTION_MAX: usize = 1024;
/// Bytes that `--max-memory` counts for a subscription, in addition to the name of its topic. A topic with one subscriber takes
/// as much.
pub const SUBSCRIPTION_BYTES: usize = 256;
/// Bytes that `--max-memory` counts for all subscriptions of a y-webrtc connection at most.
pub const SUBSCRIPTIONS_WORST_CASE_BYTES: usize =
    TOPICS_PER_CONNECTION_MAX * (SUBSCRIPTION_BYTES + ROOM_TEXT_BYTES_MAX);
/// Interval of pings to Ayame clients. The client momo disconnects after 30 s without one.
pub const AYAME_PING_EVERY: Duration = Duration::from_secs(25);
/// Candidates in one `candidates` array, and candidates stored for one peer. A browser gathers 10 to 20.
pub const CANDIDATES_MAX: usize = 64;
/// Bytes of candidates stored for one peer: 1 KiB each, five times the size that a browser sends.
pub const STORED_BYTES_MAX: usize = 64 * KIB;
/// Connections that wait for the probe of one holder of an id. Only the first of them can get the id; connections beyond
/// this limit get `id_taken` at once.
pub const CLAIMANTS_MAX: usize = 256;
/// Peers that hold one offer at a time. All but one of them get `offer_taken` later; peers beyond this limit wait in the
/// queue of the room.
pub const OFFER_HOLDERS_MAX: usize = 64;
/// Ayame clients that wait for the probe of a full room. At most two of them can get a seat; clients beyond this limit are
/// rejected at once.
pub const AYAME_WAITING_MAX: usize = 16;
/// Time for which a PeerJS message is held for an absent peer, as in the original: two pages that open at the same moment must
/// find each other.
pub const HOLD_TIME: Duration = Duration::from_secs(5);
/// Time for which the end of [`HOLD_TIME`] is remembered. A browser gathers candidates for up to 20 s, and those that it sends
/// late belong to the same attempt.
pub const HOLD_REMEMBERED_TIME: Duration = Duration::from_secs(30);
/// Least limit of the bytes of held messages of one PeerJS client. It is larger with a larger `--max-message`. A page may call
/// ten absent peers at once: an offer with video has 6 KiB, and its candidates have 3 KiB.
pub const HELD_BYTES_MAX_FLOOR: usize = 256 * KIB;
/// Held messages of one PeerJS client: an offer and eight candidates to each of 56 absent peers.
pub const HELD_MESSAGES_MAX: usize = 512;
/// Absent peers for which one PeerJS client has held messages, or to which its attempt is remembered. Further offers are answered
/// with `EXPIRE` at once.
pub const HELD_PAIRS_MAX: usize = 128;
/// Held messages for one absent peer, and their senders. When the peer registers, all of them are delivered in one iteration: 1 to
/// 2 ms. Its outbound queue has no space for more.
pub const HELD_PER_RECEIVER_MAX: usize = 1024;
/// PeerJS clients that are no longer connected and whose messages are still held: as many as leave within [`HOLD_TIME`] while they
/// call an absent peer. The messages of further ones are dropped.
pub const HELD_DEPARTED_SENDERS_MAX: usize = 256;
/// Bytes that `--max-memory` counts for a held message, beyond its text.
pub const HELD_MESSAGE_BYTES: usize = 128;
/// Bytes that `--max-memory` counts for a sender with an absent receiver: two ids of maximum length, their entries in tables, and a
/// room.
pub const HELD_PAIR_BYTES: usize = KIB;
/// Bytes that are held for one PeerJS client at most, without those of a message beyond [`HELD_BYTES_MAX_FLOOR`].
pub const HELD_WORST_CASE_BYTES: usize =
    HELD_BYTES_MAX_FLOOR + HELD_MESSAGES_MAX * HELD_MESSAGE_BYTES + HELD_PAIRS_MAX * HELD_PAIR_BYTES;
/// Elements of the `roles` of a GStreamer client, which may repeat the three roles.
pub const GSTREAMER_ROLES_MAX: usize = 16;
/// Bytes of the `meta` of a GStreamer client: a name, and a few hundred fields.
pub const GSTREAMER_META_BYTES_MAX: usize = 16 * KIB;
/// Bytes of all `meta` in a room, so that a list of peers fits into an outbound queue.
pub const GSTREAMER_ROOM_META_BYTES_MAX: usize = 128 * KIB;
/// Bytes of the entries of a list of peers, with `meta`: 3,000 producers without one. The list fits into an empty outbound queue.
pub const GSTREAMER_LIST_BYTES_MAX: usize = 192 * KIB;
/// Listeners of a room: one status is delivered to all of them in one iteration, which takes less than 1 ms.
pub const GSTREAMER_LISTENERS_MAX: usize = 1024;
/// Sessions of one consumer with one producer. A page that shows a camera twice has two; each costs the producer an encoder.
pub const GSTREAMER_SESSIONS_PER_PAIR_MAX: usize = 8;
/// Sessions of one consumer: a wall of 8 by 8 cameras.
pub const GSTREAMER_SESSIONS_PER_CONSUMER_MAX: usize = 64;
/// Sessions of one producer, more than any has encoders for. All of them end in one iteration when it leaves: 1 ms.
pub const GSTREAMER_SESSIONS_PER_PRODUCER_MAX: usize = 1024;
/// Bytes that `--max-memory` counts for a session: its id, its entries in tables, and those of its two peers.
pub const GSTREAMER_SESSION_BYTES: usize = 256;
/// Bytes that `--max-memory` counts for a GStreamer client at most, beyond [`CONNECTION_BYTES`].
pub const GSTREAMER_WORST_CASE_BYTES: usize =
    GSTREAMER_META_BYTES_MAX + GSTREAMER_SESSIONS_PER_CONSUMER_MAX * GSTREAMER_SESSION_BYTES;
/// Time for the holder of a claimed id to respond to a probe.
pub const PROBE_TIME_MAX: Duration = Duration::from_secs(5);
/// Time by which the end of a probe is postponed while input of the probed peer is not yet read.
pub const PROBE_POSTPONED: Duration = Duration::from_millis(100);
/// Time without an offer or an answer after which a room advances to the next peer in its queue.
pub const ROOM_TIMEOUT: Duration = Duration::from_secs(30);

/// `--ice-server` flags. Browsers warn that five or more servers slow down discovery.
pub const ICE_SERVERS_MAX: usize = 8;
/// Bytes of an `--ice-server` URL: the longest host name, with scheme, port and query.
pub const ICE_SERVER_BYTES_MAX: usize = 300;
/// Lifetime of TURN credentials. 12 h, so that a page that stays open for a working day needs no new ones; a client gets
/// new ones each time that it connects.
pub const TURN_CREDENTIALS_TTL: Duration = Duration::from_secs(12 * 60 * 60);

/// Time for which TURN credentials outlive the token of a peer, so that a call that has begun can continue. The assumed
/// maximum duration of a call is 4 h. A TURN server checks the credentials again at every refresh, usually every 10 min (RFC
/// 8656 section 3.2).
pub const CALL_TIME_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// Bytes of a secret in `--token-secret-file`: as many as the output of SHA-256 (RFC 7518 section 3.2).
pub const TOKEN_SECRET_BYTES_MIN: usize = 32;
/// Bytes of a secret file with its comments. A secret has about 100 bytes at most.
pub const SECRET_FILE_BYTES_MAX: usize = 64 * KIB;
/// Secrets in `--token-secret-file`: the current and the previous one. An invalid token costs one hash for each.
pub const TOKEN_SECRETS_MAX: usize = 2;
/// Bytes of a token: ten times the size of one with a room and an id. Its hash takes 10 µs.
pub const TOKEN_BYTES_MAX: usize = 4 * KIB;
/// The latest `exp`, `nbf` or `iat` of a token, in seconds since 1970: 12 digits, the year 33658. A larger number is in
/// milliseconds: the current time in milliseconds has 13 digits. The end of the year 9999, which is used for "never", has 12.
pub const TOKEN_DATE_SECONDS_MAX: u64 = 999_999_999_999;
/// Permitted difference between the clocks of this server and of the signer of a token.
pub const TOKEN_LEEWAY: Duration = Duration::from_secs(30);

/// Burst, as seconds of `--max-rate`: an idle peer may send this much at once.
pub const RATE_BURST_SECONDS: u32 = 10;
/// Bytes for which a message costs one credit; a part of a block counts as a whole one.
pub const RATE_BLOCK_BYTES: usize = 4 * KIB;
/// Deliveries for one credit, if one message causes messages to several peers. A delivery takes about 1 µs of CPU, and the
/// system call that writes it 3 to 5 µs.
pub const RATE_DELIVERIES_PER_CREDIT: usize = 64;
/// Payload bytes from which a fragment costs no credit beyond those of its message. A smaller fragment costs one credit:
/// a message of 64 KiB in fragments of one byte takes as much work as 65,536 messages.
pub const FRAGMENT_BYTES_FREE: usize = KIB;
/// Minimum time between two `rate_limited` errors to one sender.
pub const RATE_NOTICE_INTERVAL: Duration = Duration::from_secs(1);
/// Time below the limit after which a rate violation ends.
pub const RATE_PAUSE: Duration = Duration::from_secs(2);
/// Duration of a rate violation after which the sender is closed.
pub const RATE_VIOLATION_TIME_MAX: Duration = Duration::from_secs(5);

// ---- The process ----

/// Time after which the metrics count an offer as unanswered. It includes the time that a user takes to permit the camera.
pub const OFFER_TRACKED_TIME_MAX: Duration = Duration::from_secs(30);
/// Unanswered offers that the metrics track. Few servers have 1,000 offers within the time of an answer, and each new offer
/// scans all of them.
pub const OFFERS_TRACKED_MAX: usize = 1000;
/// Listen backlog. With mio's default of 128, a burst of 1,000 connects waits 1 s for TCP retransmissions. The kernel limits
/// it to net.core.somaxconn.
pub const BACKLOG: i32 = 4096;
/// Time to wait at the start for another process that binds a socket in the same directory, which takes 1 ms.
pub const SOCKET_LOCK_TIME_MAX: Duration = Duration::from_secs(5);
/// Interval of attempts to get the lock.
pub const SOCKET_LOCK_RETRY_EVERY: Duration = Duration::from_millis(10);
/// Kernel send buffer of a connection (SO_SNDBUF). By default, Linux buffers up to 4 MB for a peer that does not read.
pub const SEND_BUFFER_BYTES: usize = 64 * KIB;
/// Connections accepted in one iteration of the poll loop: about 1 ms.
pub const ACCEPTS_PER_ITERATION: usize = 256;
/// Units of work in one iteration: one for each message handled, and one for each message queued. Sessions with further
/// input wait for the next iteration. About 5 ms of CPU.
pub const WORK_PER_ITERATION: usize = 4096;
/// Units of work for the input of one session in one iteration, so that a session whose messages go to many peers does not
/// delay others. Its further input is handled in the next iteration.
pub const WORK_PER_SESSION: usize = 512;
/// Protocol timers fired in one iteration.
pub const TIMERS_PER_ITERATION: usize = 256;
/// Departures reported to protocols in one iteration. Each may cause a message to every peer of a room.
pub const DEPARTURES_PER_ITERATION: usize = 256;
/// Sessions closed in one iteration when the server stops or drains.
pub const CLOSES_PER_ITERATION: usize = 1024;
/// Sessions whose deadlines and pings are checked in one iteration.
pub const SWEEP_PER_ITERATION: usize = 256;
/// Interval in which all deadlines are checked, which is also their precision.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Connections beyond `--max-connections`, for plain requests and for upgrades that are rejected with 503. Further ones wait
/// in the backlog until the oldest of these is evicted.
pub const REJECTED_AT_ONCE: usize = 16;
/// Age from which a connection that waits for its request, or has its response, may be evicted for one in the backlog. It is
/// sufficient for a request that follows the connect at once. [`REJECTED_AT_ONCE`] connections then serve 320 a second.
pub const EVICTION_TIME_MIN: Duration = Duration::from_millis(50);
/// [`EVICTION_TIME_MIN`] for a connection whose response is not yet sent.
pub const RESPONSE_TIME_MIN: Duration = Duration::from_millis(500);
/// Connections examined to find one to evict, the oldest first.
pub const EVICTION_CANDIDATES_MAX: usize = 2 * REJECTED_AT_ONCE;
/// Connections over `--max-connections-per-ip` of one host that get a 429 response. Further ones are closed without a
/// response.
pub const PER_IP_REJECTED_AT_ONCE: usize = 4;
/// Connections of the operator listener (`--metrics`), which are accepted even when the server is full. The oldest is evicted.
pub const OPERATOR_CONNECTIONS_MAX: usize = 4;
/// Members on one page of `GET /rooms`. Each page scans all members and collects at most this many.
pub const MEMBERS_LISTED_MAX: usize = 1000;
/// Bytes after which a page of `GET /rooms` ends. [`OPERATOR_CONNECTIONS_MAX`] pages are small compared to [`BASE_BYTES`].
pub const ROOMS_BYTES_MAX: usize = 64 * KIB;
/// File descriptors in addition to the connections: standard streams, epoll, signals, listeners, and those that a library
/// may open.
pub const DESCRIPTORS_SPARE: usize = REJECTED_AT_ONCE + OPERATOR_CONNECTIONS_MAX + 12;
/// Bytes that `--max-memory` counts for the program itself, its tables and its buffer pool.
pub const BASE_BYTES: usize = 4 * MIB;
/// Bytes that `--max-memory` counts for a connection: its peer with names of maximum length, a room, and
/// [`ALWAYS_HELD_BYTES`]. Most connections use 300 bytes.
pub const CONNECTION_BYTES: usize = 2 * KIB;
/// Bytes of a partial request head, or of an outbound queue, that are allowed even at the memory limit, so that it affects
/// only connections that use much memory.
pub const ALWAYS_HELD_BYTES: usize = KIB;
/// Rejected upgrades logged one by one in one second. The others are summarized in one line.
pub const REJECTIONS_LOGGED_MAX: usize = 10;
/// Bytes of one line on stderr, with its line feed. A longer line is truncated. A line with an id of 128 escaped characters
/// fits.
pub const LOG_LINE_BYTES_MAX: usize = KIB;
/// Bytes of a log line in addition to the message and the target: time, level, brackets, spaces and line feed.
pub const LOG_PREFIX_BYTES: usize = 48;
/// Lines written to stderr after one poll that found it writable. A writable pipe accepts 4 KiB without blocking (pipe(7)).
pub const LOG_LINES_AT_ONCE: u32 = 4;
const _: () = assert!(LOG_LINES_AT_ONCE as usize * LOG_LINE_BYTES_MAX <= 4 * KIB);
/// Time that the report of a panic waits for stderr to become writable.
pub const PANIC_REPORT_TIME_MAX: Duration = Duration::from_secs(1);
/// Characters of a header value in a log line, so that a long value does not hide the text after it.
pub const ORIGIN_LOGGED_MAX: usize = 100;
/// Minimum time between two status messages to the service manager.
pub const STATUS_EVERY: Duration = Duration::from_secs(1);
/// Time to wait until the service manager accepts the messages `READY=1` and `STOPPING=1`, which are sent once.
pub const NOTIFY_TIME_MAX: Duration = Duration::from_secs(1);
/// Time for the close handshakes of all connections when the server stops.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(2);

// ---- `noroshi health` ----

/// Time for each step of a health check. A server that takes longer is unhealthy.
pub const HEALTH_TIME_MAX: Duration = Duration::from_secs(2);
/// Bytes read of a health response. The server's own has under 200.
pub const HTTP_RESPONSE_BYTES_MAX: u64 = 4096;
