//! The measurement of one server.

use std::io;
use std::time::{Duration, Instant};

use crate::calls::{Call, Calls};
use crate::connect::Connect;
use crate::dialects::Dialect;
use crate::flags::{Flags, ModeKind};
use crate::modes::{Idle, Mode, Results};
use crate::net::Net;
use crate::progress::Progress;
use crate::relay::{Relay, payload};
use crate::report::Report;
use crate::room_calls::RoomCalls;
use crate::target::Target;

/// Time for a reply, after which missing messages count as lost.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// Points in the chart of the rate over time.
const SAMPLES: u32 = 60;

/// The state of a measurement.
pub struct Test {
    pub target: Target,
    pub net: Net,
    pub mode: Box<dyn Mode>,
    /// The loop of the idle connections, which stay connected during the whole measurement.
    pub idle_net: Net,
    pub idle: Idle,
    /// Time in which the server was under load.
    pub active: Duration,
    /// CPU time of the server in that time.
    pub cpu: Option<Duration>,
    pub rss_before: Option<u64>,
    pub is_running: bool,
    /// The time between samples.
    pub sample_every: Duration,
    pub samples: Vec<(f64, u64)>,
}

impl Test {
    pub fn new(target: Target, flags: &Flags, progress: &mut Progress) -> io::Result<Test> {
        let net = Net::new(&target)?;
        let mut idle_net = Net::new(&target)?;
        let path = target.path.clone();
        let mode: Box<dyn Mode> = match flags.mode {
            ModeKind::Relay | ModeKind::Idle => Box::new(Relay::new(flags)),
            ModeKind::Call if flags.dialect != Dialect::Noroshi => Box::new(RoomCalls {
                dialect: flags.dialect,
                path: path.clone(),
                calls: (0..flags.pairs).map(|_| Call::default()).collect(),
                rooms: vec![0; flags.pairs],
                rooms_count: 0,
                is_running: false,
                complete: 0,
                sdp: format!(r#""{}""#, payload(2_500)),
                results: Results::new(),
            }),
            ModeKind::Call => {
                let concurrency = if flags.one_room { 1 } else { flags.pairs };
                Box::new(Calls {
                    path: path.clone(),
                    uses_rooms: !flags.one_room,
                    calls: (0..concurrency).map(|_| Call::default()).collect(),
                    is_running: false,
                    rooms_count: 0,
                    complete: 0,
                    sdp: format!(r#"{{"type":"offer","sdp":"{}"}}"#, payload(2_500)),
                    results: Results::new(),
                })
            }
            ModeKind::Connect | ModeKind::Churn => Box::new(Connect {
                dialect: flags.dialect,
                rooms: vec![String::new(); flags.pairs],
                rooms_count: 0,
                path: path.clone(),
                registers: flags.mode == ModeKind::Churn,
                concurrency: flags.pairs,
                is_running: false,
                open_connections: 0,
                started_at: vec![Instant::now(); flags.pairs],
                complete: 0,
                results: Results::new(),
            }),
        };
        let rss_before = target.rss();
        let mut idle = Idle {
            dialect: flags.dialect,
            path,
            room_size: flags.room_size,
            joins: flags.joined,
            registered: 0,
            total: flags.idle,
            results: Results::new(),
        };
        idle.resume(&mut idle_net)?;
        run_until_done(&mut idle_net, &mut idle, |registered| {
            progress.show_registered(registered, flags.idle);
        })?;
        check_registered(idle.registered, idle.total)?;
        let mut test = Test {
            target,
            net,
            mode,
            idle_net,
            idle,
            active: Duration::ZERO,
            cpu: None,
            rss_before,
            is_running: false,
            sample_every: Duration::from_secs_f64(flags.seconds) / SAMPLES,
            samples: vec![(0.0, 0)],
        };
        if flags.mode == ModeKind::Relay {
            for index in 0..2 * flags.pairs {
                let room = format!("relay-{}", index / 2);
                test.net.open(index, &flags.dialect.shared_path(&test.target.path, &room))?;
            }
            run_until_done(&mut test.net, test.mode.as_mut(), |_| {})?;
            check_registered(test.mode.registered(), 2 * flags.pairs)?;
        }
        Ok(test)
    }

    /// Applies load for a time, and with `stops` until the work that was started is complete.
    pub fn run_slice(&mut self, length: Duration, stops: bool) -> io::Result<()> {
        let began = Instant::now();
        let cpu = self.target.cpu();
        if !self.is_running {
            self.is_running = true;
            self.mode.resume(&mut self.net)?;
        }
        while began.elapsed() < length {
            self.net.poll_once(self.mode.as_mut(), length.saturating_sub(began.elapsed()))?;
            self.sample(self.active + began.elapsed());
        }
        if stops {
            self.is_running = false;
            self.mode.pause();
            run_until_done(&mut self.net, self.mode.as_mut(), |_| {})?;
        }
        self.active += began.elapsed();
        if let (Some(before), Some(after)) = (cpu, self.target.cpu()) {
            *self.cpu.get_or_insert_default() += after - before;
        }
        // Idle connections answer pings.
        self.idle_net.poll_once(&mut self.idle, Duration::ZERO)
    }

    /// Records how many units are complete, unless the last sample is recent.
    fn sample(&mut self, active: Duration) {
        let (last, _) = self.samples[self.samples.len() - 1];
        let now = active.as_secs_f64();
        if now - last >= self.sample_every.as_secs_f64() {
            self.samples.push((now, self.mode.units()));
        }
    }

    pub fn finish(mut self, flags: &Flags) -> io::Result<Report> {
        let is_idle = flags.mode == ModeKind::Idle;
        if is_idle {
            // Wait for the server to finish its work for the last connections.
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                self.idle_net.poll_once(&mut self.idle, Duration::from_millis(50))?;
            }
        }
        let results = std::mem::replace(self.mode.results(), Results::new());
        Ok(Report {
            units: if is_idle { self.idle.registered as u64 } else { self.mode.units() },
            seconds: self.active.as_secs_f64(),
            cpu: self.cpu.map(|cpu| cpu.as_secs_f64()),
            rss: self.rss_before.zip(self.target.rss()),
            results,
            samples: self.samples,
        })
    }
}

pub fn check_registered(registered: usize, total: usize) -> io::Result<()> {
    if registered != total {
        return Err(io::Error::other(format!("{registered} of {total} connections registered")));
    }
    Ok(())
}

/// Runs the loop until the mode is done, or makes no progress for [`ANSWER_TIME_MAX`].
pub fn run_until_done(
    net: &mut Net,
    mode: &mut dyn Mode,
    mut on_progress: impl FnMut(u64),
) -> io::Result<()> {
    let mut progress_at = Instant::now();
    let mut units = mode.units();
    while !mode.is_done() && progress_at.elapsed() < ANSWER_TIME_MAX {
        net.poll_once(mode, Duration::from_millis(100))?;
        if mode.units() != units {
            progress_at = Instant::now();
            units = mode.units();
            on_progress(units);
        }
    }
    Ok(())
}
