//! Prints the results, as a table or as JSON.

use crate::flags::{Flags, ModeKind};
use crate::modes::Results;

/// The results for one server.
pub struct Report {
    pub units: u64,
    pub seconds: f64,
    /// CPU time of the server, in seconds.
    pub cpu: Option<f64>,
    /// Resident memory of the server before and after, in bytes.
    pub rss: Option<(u64, u64)>,
    pub results: Results,
    /// Seconds of load, and how many units were complete by then.
    pub samples: Vec<(f64, u64)>,
}

impl Report {
    pub fn is_ok(&self) -> bool {
        self.results.lost + self.results.failures() == 0 && self.units > 0
    }

    pub fn per_second(&self) -> f64 {
        self.units as f64 / self.seconds
    }

    /// CPU time of the server for one unit, in microseconds.
    pub fn cpu_per_unit(&self) -> Option<f64> {
        self.cpu.map(|cpu| cpu * 1e6 / self.units as f64)
    }

    pub fn rows(&self, flags: &Flags) -> Vec<(&'static str, String)> {
        let mut rows = vec![(flags.mode.unit(), self.units.to_string())];
        if flags.mode != ModeKind::Idle {
            rows.push(("per second", format!("{:.0}", self.per_second())));
            for (name, quantile) in [("p50 ms", 0.5), ("p99 ms", 0.99), ("p99.9 ms", 0.999), ("max ms", 1.0)]
            {
                let latency = self.results.latencies.value_at_quantile(quantile);
                rows.push((name, format!("{:.3}", latency as f64 / 1e6)));
            }
            if let Some(cpu) = self.cpu_per_unit() {
                rows.push(("CPU µs each", format!("{cpu:.2}")));
            }
        }
        if let Some((before, after)) = self.rss {
            rows.push(("RSS KB before", (before / 1024).to_string()));
            rows.push(("RSS KB after", (after / 1024).to_string()));
            if flags.mode == ModeKind::Idle {
                let growth = after as f64 - before as f64;
                rows.push(("bytes each", format!("{:.0}", growth / self.units as f64)));
            }
        }
        for (name, count) in [
            ("lost", self.results.lost),
            ("doubled", self.results.duplicates),
            ("out of order", self.results.reordered),
            ("errors", self.results.errors),
            ("rate_limited", self.results.rate_limited),
        ] {
            if count > 0 {
                rows.push((name, count.to_string()));
            }
        }
        rows
    }
}

/// Returns the ratios of two servers, the first to the second: of units a second, and of CPU time.
pub fn ratios(reports: &[Report]) -> Option<(f64, Option<f64>)> {
    let [first, second] = reports else { return None };
    let cpu = first.cpu_per_unit().zip(second.cpu_per_unit()).map(|(first, second)| first / second);
    Some((first.per_second() / second.per_second(), cpu))
}

pub fn table(reports: &[Report], flags: &Flags) {
    for (i, report) in reports.iter().enumerate() {
        if reports.len() > 1 {
            println!("{}", ["first server", "second server"][i]);
        }
        for (name, value) in report.rows(flags) {
            println!("{name:>15}  {value}");
        }
    }
    if let Some((rate, cpu)) = ratios(reports) {
        println!("first to second");
        println!("{:>15}  {rate:.3}", "per second");
        if let Some(cpu) = cpu {
            println!("{:>15}  {cpu:.3}", "CPU each");
        }
    }
}

pub fn json(reports: &[Report], flags: &Flags) -> serde_json::Value {
    let report = |report: &Report| {
        let ms = |quantile| report.results.latencies.value_at_quantile(quantile) as f64 / 1e6;
        serde_json::json!({
            "units": report.units,
            "seconds": report.seconds,
            "per_second": report.per_second(),
            "ms": {"p50": ms(0.5), "p99": ms(0.99), "p99.9": ms(0.999), "max": ms(1.0)},
            "cpu_us_each": report.cpu_per_unit(),
            "rss_before": report.rss.map(|(before, _)| before),
            "rss_after": report.rss.map(|(_, after)| after),
            "lost": report.results.lost,
            "doubled": report.results.duplicates,
            "out_of_order": report.results.reordered,
            "errors": report.results.errors,
            "rate_limited": report.results.rate_limited,
        })
    };
    serde_json::json!({
        "dialect": flags.dialect.name(),
        "mode": flags.mode.name(),
        "servers": reports.iter().map(report).collect::<Vec<_>>(),
        "ratio_per_second": ratios(reports).map(|(rate, _)| rate),
        "ratio_cpu_each": ratios(reports).and_then(|(_, cpu)| cpu),
    })
}
