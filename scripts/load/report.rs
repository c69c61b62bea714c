//! What came of it, for people and for programs.

use crate::flags::{Flags, Kind};
use crate::modes::Tally;

pub struct Report {
    pub units: u64,
    pub seconds: f64,
    pub cpu: Option<f64>,
    /// Before and after, in bytes.
    pub rss: Option<(u64, u64)>,
    pub tally: Tally,
}

impl Report {
    pub fn is_fine(&self) -> bool {
        let Tally { lost, doubled, disordered, errors, rate_limited, .. } = &self.tally;
        lost + doubled + disordered + errors + rate_limited == 0 && self.units > 0
    }

    pub fn per_second(&self) -> f64 {
        self.units as f64 / self.seconds
    }

    /// CPU time of the server for one unit, in microseconds.
    pub fn cpu_per_unit(&self) -> Option<f64> {
        self.cpu.map(|cpu| cpu * 1e6 / self.units as f64)
    }

    pub fn rows(&self, flags: &Flags) -> Vec<(&'static str, String)> {
        let (_, unit) = flags.mode.names();
        let mut rows = vec![(unit, self.units.to_string())];
        if flags.mode != Kind::Idle {
            rows.push(("per second", format!("{:.0}", self.per_second())));
            for (name, quantile) in [("p50 ms", 0.5), ("p99 ms", 0.99), ("p99.9 ms", 0.999), ("max ms", 1.0)]
            {
                let time = self.tally.times.value_at_quantile(quantile);
                rows.push((name, format!("{:.3}", time as f64 / 1e6)));
            }
            if let Some(cpu) = self.cpu_per_unit() {
                rows.push(("CPU µs each", format!("{cpu:.2}")));
            }
        }
        if let Some((before, after)) = self.rss {
            rows.push(("RSS KB before", (before / 1024).to_string()));
            rows.push(("RSS KB after", (after / 1024).to_string()));
            if flags.mode == Kind::Idle {
                rows.push((
                    "bytes each",
                    format!("{:.0}", (after as f64 - before as f64) / self.units as f64),
                ));
            }
        }
        for (name, count) in [
            ("lost", self.tally.lost),
            ("doubled", self.tally.doubled),
            ("out of order", self.tally.disordered),
            ("errors", self.tally.errors),
            ("rate_limited", self.tally.rate_limited),
        ] {
            if count > 0 {
                rows.push((name, count.to_string()));
            }
        }
        rows
    }
}

/// The ratios of the first server to the second, where they mean something.
pub fn ratios(reports: &[Report]) -> Option<(f64, Option<f64>)> {
    let [ours, theirs] = reports else { return None };
    let cpu = ours.cpu_per_unit().zip(theirs.cpu_per_unit()).map(|(ours, theirs)| ours / theirs);
    Some((ours.per_second() / theirs.per_second(), cpu))
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
        let ms = |quantile| report.tally.times.value_at_quantile(quantile) as f64 / 1e6;
        serde_json::json!({
            "units": report.units,
            "seconds": report.seconds,
            "per_second": report.per_second(),
            "ms": {"p50": ms(0.5), "p99": ms(0.99), "p99.9": ms(0.999), "max": ms(1.0)},
            "cpu_us_each": report.cpu_per_unit(),
            "rss_before": report.rss.map(|(before, _)| before),
            "rss_after": report.rss.map(|(_, after)| after),
            "lost": report.tally.lost,
            "doubled": report.tally.doubled,
            "out_of_order": report.tally.disordered,
            "errors": report.tally.errors,
            "rate_limited": report.tally.rate_limited,
        })
    };
    serde_json::json!({
        "mode": flags.mode.names().0,
        "servers": reports.iter().map(report).collect::<Vec<_>>(),
        "ratio_per_second": ratios(reports).map(|(rate, _)| rate),
        "ratio_cpu_each": ratios(reports).and_then(|(_, cpu)| cpu),
    })
}
