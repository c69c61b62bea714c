//! Draws the results: the distribution of latencies, and the rate over time.

use std::io;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::SeriesLabelPosition::{LowerRight, UpperRight};
use plotters::prelude::*;

use crate::flags::Flags;
use crate::report::Report;

/// Width and height of the picture, in pixels.
const SIZE: (u32, u32) = (960, 720);

const COLORS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40)];

const NAMES: [&str; 2] = ["first server", "second server"];

/// A line of a chart for each server.
type Lines = Vec<Vec<(f64, f64)>>;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes an SVG file.
pub fn draw(path: &Path, reports: &[Report], flags: &Flags) -> io::Result<()> {
    let unit = flags.mode.unit();
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(io::Error::other)?;
    let (top, bottom) = area.split_vertically(SIZE.1 / 2);

    let lines: Lines = reports.iter().map(latencies).collect();
    let all = || lines.iter().flatten().map(|(ms, _)| *ms);
    let (min, max) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    let (min, max) = if min < max { (min, max) } else { (0.1, 1.0) };
    let title = format!("Latency of {unit}: percentage that takes at most this time");
    chart(&top, &title, (min..max).log_scale(), 0.0..100.0, ["ms", "%"], &lines, LowerRight)?;

    let lines: Lines = reports.iter().map(rates).collect();
    let max = lines.iter().flatten().map(|(_, rate)| *rate).fold(1.0, f64::max);
    let title = format!("{unit} a second over time");
    chart(
        &bottom,
        &title,
        0.0..flags.seconds,
        0.0..1.25 * max,
        ["seconds", "per second"],
        &lines,
        UpperRight,
    )?;
    area.present().map_err(io::Error::other)
}

/// Returns the cumulative distribution: milliseconds, and the percentage of latencies up to them.
fn latencies(report: &Report) -> Vec<(f64, f64)> {
    let latencies = &report.results.latencies;
    let mut count = 0;
    let points = latencies.iter_recorded().map(|step| {
        count += step.count_at_value();
        (step.value_iterated_to() as f64 / 1e6, 100.0 * count as f64 / latencies.len() as f64)
    });
    points.collect()
}

/// Returns seconds, and the rate between each sample and the previous one.
fn rates(report: &Report) -> Vec<(f64, f64)> {
    let rate = |two: &[(f64, u64)]| {
        let [(before, fewer), (after, more)] = [two[0], two[1]];
        (after, (more - fewer) as f64 / (after - before))
    };
    report.samples.windows(2).map(rate).collect()
}

fn chart<X, Y>(
    area: &Area,
    title: &str,
    x: X,
    y: Y,
    names: [&str; 2],
    lines: &Lines,
    legend: SeriesLabelPosition,
) -> io::Result<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)
        .map_err(io::Error::other)?;
    let [x_name, y_name] = names;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(x_name)
        .y_desc(y_name)
        .draw()
        .map_err(io::Error::other)?;
    for ((line, color), name) in lines.iter().zip(COLORS).zip(NAMES) {
        let series = LineSeries::new(line.iter().copied(), color.stroke_width(2));
        let drawn = chart.draw_series(series).map_err(io::Error::other)?;
        drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
    }
    if lines.len() > 1 {
        let mut labels = chart.configure_series_labels();
        labels.background_style(WHITE).border_style(BLACK).position(legend);
        labels.draw().map_err(io::Error::other)?;
    }
    Ok(())
}
