//! noroshi (狼煙, a signal fire): a WebRTC signaling server on one thread.
//!
//! Two browsers that want to talk to each other must first exchange offers, answers and candidates through
//! somebody they both know. What is said is in the README; this is the map of how it is done.
//!
//! ```text
//! main ─→ server ─→ session ─→ http ─→ page           config: what an operator chose    limits: and what not
//!    │          │           │       └──→ metrics      address: where peers are, and how many in one place
//!    │          │           └──→ budget               origin: where pages are from     token: who may come in
//!    │          │                                     budget: how much memory is used
//!    └─→ logger └─→ hub ─→ message ─→ json            rate: how much one peer may send
//!                     ├──→ ice ──────↗                stamp: a moment in eight bytes
//!                     ├──→ rate
//!                     └──→ protocol
//! ```
//!
//! Imports point downward in the list of modules below, and the two arms of the drawing do not know each other;
//! `config`, `limits`, `address`, `token` and `stamp` may be used by all. A test holds the files to this, and to the
//! following.
//!
//! - Only `server` knows mio. Only `session` and `http` know tungstenite, only `http` knows httparse, only
//!   `json` knows serde_json, only `config` knows lexopt, only `token` and `ice` know what signs.
//! - Only `main`, `server`, `session` and `logger` do I/O, and `config` reads the files that its flags name; only
//!   `server` reads the clock, and `main` for a token; only `main` and `server` write to the log.
//! - Time is an argument: the time since the start, looked up once a turn of the loop by `server`.
//! - Everything that can grow has a limit, with a name, a unit and a reason, in [`limits`] or, with a flag,
//!   in [`config`].
//! - Nothing a peer sends is an error of ours. Asserts and `expect` state what no input can change.
//!
//! The words: a *peer* is who speaks, under an id, in a *room*. A *connection* ([`protocol::Conn`]) is how it is
//! reached, and has a number that is never used again. A *session* is a connection as bytes. *Offer*, *answer*,
//! *candidate* and *SDP* are WebRTC's (RFC 8829), and are never looked into. *Poll*, *token* and *interest* are
//! mio's; the token that lets somebody in is a *JWT*.
//!
//! To read it all, follow a message: [`server`] (`Server::turn`), [`session`] (`fill`, `next`), [`hub`]
//! (`handle`, `obey`, and `candidates` in `hub/pairing.rs`), [`message`] (`parse`, `Reply`), and back out through
//! `Outbox` and `Session::flush`.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

// In the order of imports, which the blank lines keep.
pub mod server;

pub mod session;

pub mod http;

pub mod page;

pub mod hub;

pub mod message;

pub mod ice;

pub mod gate;

pub mod metrics;

pub mod protocol;

pub mod rate;

pub mod stamp;

pub mod logger;

pub mod budget;

pub mod config;

pub mod token;

pub mod json;

pub mod limits;

pub mod origin;

pub mod address;

pub mod named;
