//! Parses the command line.

use std::path::PathBuf;

use crate::dialects::Dialect;

pub const USAGE: &str = "\
load: measures a signaling server

usage: load [flags]

  --url ws://HOST:PORT/ws   the server [default: starts noroshi on a free port, without a rate limit]
  --dialect NAME            noroshi (the article's protocol), ayame or matchbox [default: noroshi]
  --mode MODE               relay, call, connect, idle or churn [default: relay]
  --pairs N                 pairs that relay, or calls or connections at a time [default: 100]
  --idle N                  idle connections, in mode idle or in addition to another mode [default: 0; 10000 in mode idle]
  --room-size N             idle connections in one room; 0 = all [default: 2]
  --joined                  idle connections join the mesh of their room
  --in-flight W             candidates in flight in each pair [default: 1]
  --payload WHAT            candidate (200 bytes), sdp (2500), or a number of bytes [default: candidate]
  --seconds S               duration of the measurement [default: 5]
  --one-room                calls one at a time in /ws, for servers without rooms
  --pid PID                 the server's process on this machine, for its CPU time and memory
  --versus URL2             alternate with another server, and print ratios
  --pid2 PID2               the process of the other server
  --plot FILE               write charts of the latency and of the rate over time, as SVG
  --json                    print one JSON object
";

pub struct Flags {
    pub url: Option<String>,
    pub dialect: Dialect,
    pub mode: ModeKind,
    pub pairs: usize,
    pub idle: usize,
    pub room_size: usize,
    pub joined: bool,
    pub in_flight: usize,
    pub payload: usize,
    pub seconds: f64,
    pub one_room: bool,
    pub pid: Option<u32>,
    pub versus: Option<String>,
    pub pid2: Option<u32>,
    pub plot: Option<PathBuf>,
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ModeKind {
    Relay,
    Call,
    Connect,
    Idle,
    Churn,
}

impl ModeKind {
    /// The name of each mode, and what it counts.
    pub const ALL: [(&'static str, &'static str, ModeKind); 5] = [
        ("relay", "candidates", ModeKind::Relay),
        ("call", "calls", ModeKind::Call),
        ("connect", "handshakes", ModeKind::Connect),
        ("idle", "connections", ModeKind::Idle),
        ("churn", "cycles", ModeKind::Churn),
    ];

    pub fn name(self) -> &'static str {
        let (name, _, _) = self.entry();
        name
    }

    /// Returns the plural of what the mode counts.
    pub fn unit(self) -> &'static str {
        let (_, unit, _) = self.entry();
        unit
    }

    fn entry(self) -> (&'static str, &'static str, ModeKind) {
        Self::ALL.into_iter().find(|(_, _, kind)| *kind == self).expect("every mode is listed")
    }
}

impl Flags {
    pub fn parse() -> Result<Option<Flags>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut flags = Flags {
            url: None,
            dialect: Dialect::Noroshi,
            mode: ModeKind::Relay,
            pairs: 100,
            idle: 0,
            room_size: 2,
            joined: false,
            in_flight: 1,
            payload: 200,
            seconds: 5.0,
            one_room: false,
            pid: None,
            versus: None,
            pid2: None,
            plot: None,
            json: false,
        };
        let positive = |text: &str| text.parse().ok().filter(|n| *n > 0).ok_or("expected a positive number");
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("url") => flags.url = Some(parser.value()?.string()?),
                Long("dialect") => {
                    flags.dialect = parser.value()?.parse_with(|text| {
                        let found = Dialect::ALL.into_iter().find(|(name, _)| *name == text);
                        found.map(|(_, dialect)| dialect).ok_or("expected noroshi, ayame or matchbox")
                    })?;
                }
                Long("mode") => {
                    flags.mode = parser.value()?.parse_with(|text| {
                        let found = ModeKind::ALL.into_iter().find(|(name, _, _)| *name == text);
                        found.map(|(_, _, kind)| kind).ok_or("expected relay, call, connect, idle or churn")
                    })?;
                }
                Long("pairs") => flags.pairs = parser.value()?.parse_with(positive)?,
                Long("idle") => flags.idle = parser.value()?.parse()?,
                Long("room-size") => flags.room_size = parser.value()?.parse()?,
                Long("joined") => flags.joined = true,
                Long("in-flight") => flags.in_flight = parser.value()?.parse_with(positive)?,
                Long("payload") => {
                    flags.payload = parser.value()?.parse_with(|text| match text {
                        "candidate" => Ok(200),
                        "sdp" => Ok(2500),
                        bytes => positive(bytes),
                    })?;
                }
                Long("seconds") => {
                    flags.seconds = parser.value()?.parse_with(|text| {
                        let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0 && *seconds < 1e6);
                        seconds.ok_or("expected a number of seconds")
                    })?;
                }
                Long("one-room") => flags.one_room = true,
                Long("pid") => flags.pid = Some(parser.value()?.parse()?),
                Long("versus") => flags.versus = Some(parser.value()?.string()?),
                Long("pid2") => flags.pid2 = Some(parser.value()?.parse()?),
                Long("plot") => flags.plot = Some(parser.value()?.into()),
                Long("json") => flags.json = true,
                Short('h') | Long("help") => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        if flags.mode == ModeKind::Idle && flags.idle == 0 {
            flags.idle = 10_000;
        }
        if flags.dialect != Dialect::Noroshi && (flags.joined || flags.one_room) {
            return Err("--joined and --one-room require --dialect noroshi".into());
        }
        if flags.dialect == Dialect::Ayame && !(1..=2).contains(&flags.room_size) {
            return Err("--room-size: expected 1 or 2 with --dialect ayame".into());
        }
        if flags.plot.is_some() && flags.mode == ModeKind::Idle {
            return Err("--plot: mode idle has no latencies".into());
        }
        if flags.pid2.is_some() && flags.versus.is_none() {
            return Err("--pid2 requires --versus".into());
        }
        Ok(Some(flags))
    }
}
