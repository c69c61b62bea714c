//! Attacks on the server: no peer, network or operator can stop it.
//!
//! During each attack on a server process, a well-behaved pair in its own room exchanges candidates. Afterwards the metrics
//! and /proc show that nothing is left of the attackers, and that the peak memory is below a bound that the test states.
//!
//! Attacks that need no process are tests of other groups (`…` stands for the rest of one or several names):
//!
//! - Slow heads: `request_head_is_limited_in_size_and_time`, `unregistered_peer_is_closed_…` (protocol/session).
//! - Stalled readers: limits of the queue (protocol/session); `peer_that_does_not_read_…` (server/sockets).
//! - Flooding senders: `pings_from_a_stalled_reader_…` (protocol/session), `continuous_sender_…` (server/sockets), `rate_…`
//!   (transcripts).
//! - Vanished peers: `tcp_end_…`, silence to the second (protocol/session); `silent_peers_…` (server/sockets).
//! - Descriptors: `few_descriptors_cause_a_warning` (server/command_line).
//! - Storms: `crowded_room_…` (protocol/simulation).
//! - JSON: valid and invalid JSON (unit tests of json and message); `bad_…`, `keys_of_all_kinds`, `byte_for_byte`
//!   (transcripts).
//! - Ids: `id_of_…`, `length_of_ids`, `claimants_…`, `…_probe` (transcripts); `log_lists_…_and_cannot_be_forged`
//!   (server/command_line).
//! - Rooms: `room_full` (transcripts), `candidates_are_limited_by_size` (protocol/noroshi).
//! - Operators: flags, addresses, signals, stderr (server/command_line); `pending_input_…` (server/sockets);
//!   `only_the_monotonic_clock_is_used` (protocol/architecture).

mod bounded_work;
mod connection_storms;
mod gstreamer;
mod healthz;
mod memory_budget;
mod misbehaving_peers;
mod noroshi_rules;
mod other_protocols;
mod peerjs;
mod rate_limit;
mod vanished_peers;
mod ywebrtc;

use noroshi_test_support as common;
