//! Attacks on the server: no peer, network or operator can stop it.

mod bounded_work;
mod connection_storms;
mod healthz;
mod memory_budget;
mod misbehaving_peers;
mod noroshi_rules;
mod other_protocols;
mod rate_limit;
mod vanished_peers;

use noroshi_test_support as common;
