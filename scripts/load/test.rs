//! A test of one server.

use std::io;
use std::time::{Duration, Instant};

use crate::calls::{Call, Calls};
use crate::connect::Connect;
use crate::flags::{Flags, Kind};
use crate::modes::{Idle, Mode, Tally};
use crate::net::Net;
use crate::relay::{Relay, payload};
use crate::report::Report;
use crate::target::Target;

/// The server has this long to answer before what is missing counts as lost.
pub const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Test {
    pub target: Target,
    pub net: Net,
    pub mode: Box<dyn Mode>,
    /// The idle ones, which stay connected.
    pub idle: (Net, Idle),
    pub active: Duration,
    pub cpu: Option<Duration>,
    pub rss_before: Option<u64>,
    pub running: bool,
}

impl Test {
    pub fn new(target: Target, flags: &Flags) -> io::Result<Test> {
        let (net, mut idle_net) = (Net::new(&target)?, Net::new(&target)?);
        let path = target.path.clone();
        let mode: Box<dyn Mode> = match flags.mode {
            Kind::Relay | Kind::Idle => Box::new(Relay::new(flags)),
            Kind::Call => Box::new(Calls {
                path: path.clone(),
                rooms: !flags.one_room,
                calls: (0..if flags.one_room { 1 } else { flags.pairs }).map(|_| Call::default()).collect(),
                running: false,
                rooms_used: 0,
                done: 0,
                sdp: format!(r#"{{"type":"offer","sdp":"{}"}}"#, payload(2_500)),
                tally: Tally::new(),
            }),
            Kind::Connect | Kind::Churn => Box::new(Connect {
                path: path.clone(),
                registers: flags.mode == Kind::Churn,
                at_once: flags.pairs,
                running: false,
                open: 0,
                began: vec![Instant::now(); flags.pairs],
                done: 0,
                tally: Tally::new(),
            }),
        };
        let rss_before = target.rss();
        let Flags { room_size, joined, idle: of, .. } = *flags;
        let mut idle = Idle { path, room_size, joined, ready: 0, of, tally: Tally::new() };
        idle.resume(&mut idle_net)?;
        until(&mut idle_net, &mut idle)?;
        all_registered(idle.ready, idle.of)?;
        let mut test = Test {
            target,
            net,
            mode,
            idle: (idle_net, idle),
            active: Duration::ZERO,
            cpu: None,
            rss_before,
            running: false,
        };
        if flags.mode == Kind::Relay {
            for name in 0..2 * flags.pairs {
                test.net.open(name, &test.target.path)?;
            }
            until(&mut test.net, test.mode.as_mut())?;
            all_registered(test.mode.registered(), 2 * flags.pairs)?;
        }
        Ok(test)
    }

    /// Works for so long, and if `stops`, until what was begun is done.
    pub fn slice(&mut self, length: Duration, stops: bool) -> io::Result<()> {
        let (began, cpu) = (Instant::now(), self.target.cpu());
        if !std::mem::replace(&mut self.running, true) {
            self.mode.resume(&mut self.net)?;
        }
        while began.elapsed() < length {
            self.net.turn(self.mode.as_mut(), length.saturating_sub(began.elapsed()))?;
        }
        if stops {
            self.running = false;
            self.mode.pause();
            until(&mut self.net, self.mode.as_mut())?;
        }
        self.active += began.elapsed();
        if let (Some(before), Some(after)) = (cpu, self.target.cpu()) {
            *self.cpu.get_or_insert_default() += after - before;
        }
        // The idle answer pings.
        self.idle.0.turn(&mut self.idle.1, Duration::ZERO)
    }

    pub fn finish(mut self, flags: &Flags) -> io::Result<Report> {
        let idle = flags.mode == Kind::Idle;
        if idle {
            // What the last of them caused is over then.
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                self.idle.0.turn(&mut self.idle.1, Duration::from_millis(50))?;
            }
        }
        let tally = std::mem::replace(self.mode.tally(), Tally::new());
        Ok(Report {
            units: if idle { self.idle.1.ready as u64 } else { self.mode.units() },
            seconds: self.active.as_secs_f64(),
            cpu: self.cpu.map(|cpu| cpu.as_secs_f64()),
            rss: self.rss_before.zip(self.target.rss()),
            tally,
        })
    }
}

pub fn all_registered(ready: usize, of: usize) -> io::Result<()> {
    if ready == of {
        Ok(())
    } else {
        Err(io::Error::other(format!("{ready} of {of} connections registered")))
    }
}

/// Turns until the mode is done, or nothing has happened for too long: what is missing then is lost.
pub fn until(net: &mut Net, mode: &mut dyn Mode) -> io::Result<()> {
    let (mut since, mut units) = (Instant::now(), mode.units());
    while !mode.is_done() && since.elapsed() < ROOM_TIMEOUT {
        net.turn(mode, Duration::from_millis(100))?;
        if mode.units() != units {
            (since, units) = (Instant::now(), mode.units());
        }
    }
    Ok(())
}
