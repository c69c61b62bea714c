//! noroshi (狼煙, a signal fire): a WebRTC signaling server on one thread.
//!
//! Two browsers that want to talk to each other must first exchange offers, answers and candidates through
//! somebody they both know. What is said is in the README; this is the map of how it is done.
//!
//! ```text
//! main ─→ server ─→ session ─→ http ─→ page          config: what an operator chose    limits: and what not
//!    │          │           └──→ dispatcher                address: where peers are, and how many in one place
//!    │          │                                    origin: where pages are from     token: who may come in
//!    │          │                                    budget: how much memory is used  metrics: what is counted
//!    ├─→ logger ├──→ hub ─→ dispatcher ─→ protocol         rate: how much one peer may send
//!    │          │      ├──→ message ─→ json          stamp: a moment in eight bytes
//!    └─→ health │      └──→ ice ──────↗              named: enums whose values have names
//!               │                                    paths: what is served where    id: what an id may be
//!               │                                    query: the fields behind a `?`
//!               └──→ ayame, matchbox: as the hub,    slots: what is known of each connection
//!                    and ─→ uuid                     order: who is before whom
//! ```
//!
//! Imports point downward in the list of modules below; what serves connections (`session`, `http`) and the rules of a
//! protocol (`hub`) do not know each other. Between them is the `dispatcher`: there every protocol is the same to those who
//! carry bytes, and all connections are numbers to the protocol. A test holds the files to this, and to the following.
//!
//! - Only `server` knows mio. Only `session` and `http` know tungstenite, only `http` knows httparse, only
//!   `json` knows serde_json, only `config` knows lexopt, only `token` and `ice` know what signs.
//! - Only `main`, `server`, `session`, `logger` and `health` do I/O, and `config` reads the files that its flags name; only
//!   `server` reads the clock, and `main` for a token; only `main` and `server` write to the log.
//! - Time is an argument: the time since the start, looked up once a turn of the loop by `server`.
//! - Everything that can grow has a limit, with a name, a unit and a reason, in [`limits`] or, with a flag,
//!   in [`config`].
//! - Nothing a peer sends is an error of ours. Asserts and `expect` state what no input can change.
//!
//! The words: a *peer* is who speaks, under an id, in a *room*. A *connection* ([`protocol::Conn`]) is how it is
//! reached, and has a number that is never used again. A *session* is a connection as bytes. *Offer*, *answer*,
//! *candidate* and *SDP* are WebRTC's (RFC 8829), and are never looked into. *Poll*, *token* and *interest* are
//! mio's; a peer's token is the JWT that lets it in, and those of a rate are what a message costs.
//!
//! To read it, follow a candidate: [`server`] (`Server::turn`, `receive`), [`session`] (`read`, `next_event`), [`dispatcher`]
//! (`Dispatcher::handle`), [`hub`] (`handle`, `obey`), [`message`] (`parse`), `candidates` in `hub/pairing.rs`, and back out:
//! `Reply::text`, `Turn::forward`, `push` in `server/connections.rs`, and at the end of the turn `Session::flush`. All
//! else may be taken at its name until you want to know how it is done.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

// In the order of imports, which the blank lines keep.
pub mod server;

pub mod health;

pub mod session;

pub mod http;

pub mod web;

pub mod protocols;

pub mod metrics;

pub mod protocol;

pub mod rate_limit;

pub mod timestamp;

pub mod logger;

pub mod memory_budget;

pub mod config;

pub mod token;

pub mod json;

pub mod id;

pub mod limits;

pub mod paths;

pub mod query;

pub mod origin;

pub mod address;

pub mod named_enum;
