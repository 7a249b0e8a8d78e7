//! `bench plot`: figures from the JSON files of other scenarios.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use plotters::{coord::Shift, prelude::*};
use serde_json::Value;

use crate::{failure::Failure, rate::IN_TIME_SHARE_MIN};

const SIZE: (u32, u32) = (900, 520);
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(120, 120, 120),
];

/// Arguments of `bench plot`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlotArgs {
    /// JSON files written by hold (memory against connections), rate (latency against rate), vs (CPU and memory by
    /// server) and pairs with several nodes (CPU by the way messages take)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Folder for the figures
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    out: PathBuf,
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Runs `bench plot`.
pub(crate) fn run(args: &PlotArgs) -> Result<(), Failure> {
    let mut reports = Vec::new();
    for path in &args.files {
        let text =
            fs::read_to_string(path).map_err(|error| Failure::system(&format!("reading {}", path.display()), error))?;
        let report: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::Setup(format!("{} is no JSON: {error}", path.display())))?;
        reports.push(report);
    }
    let of = |bench: &str| reports.iter().filter(|report| report["bench"] == bench).collect::<Vec<_>>();
    fs::create_dir_all(&args.out).map_err(|error| Failure::system(&format!("making {}", args.out.display()), error))?;
    let mut drawn = Vec::new();
    let mut draw = |name: &str, figure: &dyn Fn(&Path) -> Drawn| -> Result<(), Failure> {
        let path = args.out.join(name);
        figure(&path).map_err(|error| Failure::Setup(format!("drawing {}: {error}", path.display())))?;
        drawn.push(path);
        Ok(())
    };
    let holds = of("hold");
    if !holds.is_empty() {
        draw("memory.svg", &|path| memory(path, &holds))?;
    }
    let rates = of("rate");
    if !rates.is_empty() {
        draw("latency.svg", &|path| latency(path, &rates))?;
    }
    for report in of("vs") {
        draw("cpu.svg", &|path| cpu(path, report))?;
        draw("idle.svg", &|path| idle(path, report))?;
    }
    let clusters: Vec<&Value> =
        of("pairs").into_iter().filter(|report| report["arguments"]["nodes"].as_u64() > Some(1)).collect();
    if !clusters.is_empty() {
        draw("cluster.svg", &|path| cluster(path, &clusters))?;
    }
    if drawn.is_empty() {
        return Err(Failure::Setup(
            "none of these files is of hold, rate, vs or pairs with several nodes: there is nothing to draw".to_owned(),
        ));
    }
    drawn.iter().for_each(|path| println!("{}", path.display()));
    Ok(())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn memory(path: &Path, holds: &[&Value]) -> Drawn {
    let kinds = [("process", "user_rss"), ("kernel, server's end", "kernel"), ("together", "together")];
    let series = kinds.map(|(name, field)| {
        let mut points: Vec<(f64, f64)> =
            holds.iter().map(|hold| (number(&hold["arguments"]["conns"]), number(&hold["memory"][field]))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (name, points)
    });
    let picture = Lines {
        title: "Memory of a logged-in idle connection",
        axes: ("connections", "bytes for each"),
        notes: Vec::new(),
        hollow: Vec::new(),
        logarithmic: false,
    };
    picture.draw(path, &series)
}

fn latency(path: &Path, rates: &[&Value]) -> Drawn {
    let empty = Vec::new();
    let steps: Vec<&Value> = rates.iter().flat_map(|rate| rate["steps"].as_array().unwrap_or(&empty)).collect();
    let kinds = [("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us")];
    let series = kinds.map(|(name, field)| {
        let point = |step: &&Value| (number(&step["rate"]), number(&step["messages"][field]).max(1.0));
        let mut points: Vec<(f64, f64)> = steps.iter().map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        (name, points)
    });
    let full: Vec<(f64, String)> =
        steps.iter().filter_map(|step| Some((number(&step["rate"]), fullness(step)?))).collect();
    let note = |(rate, why): &(f64, String)| {
        format!("open circles: {} a second is more than there is room for, {why}", grouped(*rate))
    };
    let picture = Lines {
        title: "Latency from the time a message was to be sent",
        axes: ("messages per second", "µs, logarithmic"),
        notes: full.iter().map(note).collect(),
        hollow: full.iter().map(|(rate, _)| *rate).collect(),
        logarithmic: true,
    };
    picture.draw(path, &series)
}

/// Why a rate could not be kept up: a core was full, or messages were not there in time. `None` where it could.
fn fullness(step: &Value) -> Option<String> {
    let [server, bench] = ["cores", "bench_cores"].map(|field| number(&step[field]));
    let delivered = number(&step["delivered_rate"]) / number(&step["rate"]).max(1.0);
    let in_time = step["in_time_share"].as_f64().unwrap_or(delivered);
    if in_time >= IN_TIME_SHARE_MIN && server < FULL_CORES_MIN && bench < FULL_CORES_MIN {
        return None;
    }
    Some(format!("the server used {server:.2} of its core and the bench {bench:.2}"))
}

/// A core of which this much is used has no room for what comes unevenly.
const FULL_CORES_MIN: f64 = 0.95;

/// Lines with a point for each measurement, below their legend, so that it covers none.
struct Lines {
    title: &'static str,
    axes: (&'static str, &'static str),
    /// Below the title.
    notes: Vec<String>,
    /// Where on the first axis circles are open.
    hollow: Vec<f64>,
    logarithmic: bool,
}

/// Pixels of a line of text.
const LINE_PX: i32 = 22;

impl Lines {
    fn draw(&self, path: &Path, series: &[(&'static str, Vec<(f64, f64)>)]) -> Drawn {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(self.title, (FONT, 22))?;
        let (head, area) = root.split_vertically(LINE_PX * (1 + self.notes.len() as i32) + 8);
        let mut x = 90;
        for ((name, _), colour) in series.iter().zip(COLOURS) {
            head.draw(&PathElement::new([(x, LINE_PX / 2), (x + 24, LINE_PX / 2)], colour.stroke_width(2)))?;
            head.draw(&Circle::new((x + 12, LINE_PX / 2), 3, colour.filled()))?;
            head.draw(&Text::new(*name, (x + 32, LINE_PX / 2 - 7), (FONT, 14)))?;
            x += 56 + 8 * name.len() as i32;
        }
        for (line, note) in (1..).zip(&self.notes) {
            head.draw(&Text::new(note.clone(), (90, LINE_PX * line + LINE_PX / 2 - 7), (FONT, 14)))?;
        }
        self.draw_chart(&area, series)?;
        area.present()?;
        Ok(())
    }

    fn draw_chart(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        series: &[(&'static str, Vec<(f64, f64)>)],
    ) -> Drawn {
        let (axes, logarithmic) = (self.axes, self.logarithmic);
        let points = || series.iter().flat_map(|(_, points)| points);
        let x_max = points().map(|point| point.0).fold(1.0, f64::max) * 1.05;
        let y_max = points().map(|point| point.1).fold(1.0, f64::max) * 1.15;
        let mut builder = ChartBuilder::on(area);
        builder.margin(14).margin_top(4).x_label_area_size(46).y_label_area_size(76);
        // The two kinds of axes are of different types.
        macro_rules! draw {
            ($chart:expr) => {{
                let mut chart = $chart;
                chart
                    .configure_mesh()
                    .x_desc(axes.0)
                    .y_desc(axes.1)
                    .x_label_formatter(&|x| grouped(*x))
                    .y_label_formatter(&|y| grouped(*y))
                    .label_style((FONT, 14))
                    .light_line_style(WHITE)
                    .draw()?;
                for ((_, points), colour) in series.iter().zip(COLOURS) {
                    chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
                    let (open, closed): (Vec<(f64, f64)>, Vec<_>) =
                        points.iter().copied().partition(|(x, _)| self.hollow.contains(x));
                    chart.draw_series(closed.into_iter().map(|point| Circle::new(point, 3, colour.filled())))?;
                    chart.draw_series(open.iter().map(|point| Circle::new(*point, 4, WHITE.filled())))?;
                    chart.draw_series(open.iter().map(|point| Circle::new(*point, 4, colour.stroke_width(2))))?;
                }
            }};
        }
        if logarithmic {
            let y_min = points().map(|point| point.1).fold(y_max, f64::min) * 0.7;
            draw!(builder.build_cartesian_2d(0.0..x_max, (y_min..y_max).log_scale())?);
        } else {
            draw!(builder.build_cartesian_2d(0.0..x_max, 0.0..y_max)?);
        }
        Ok(())
    }
}

/// The smallest first: the order in which servers were measured says nothing.
fn sorted(bars: impl Iterator<Item = (String, f64)>) -> Vec<(String, f64)> {
    let mut bars: Vec<_> = bars.collect();
    bars.sort_by(|a, b| a.1.total_cmp(&b.1));
    bars
}

fn cpu(path: &Path, report: &Value) -> Drawn {
    let empty = Vec::new();
    let servers = report["servers"].as_array().unwrap_or(&empty);
    let windows = report["arguments"]["window"].as_array().unwrap_or(&empty);
    let root = SVGBackend::new(path, (SIZE.0, SIZE.1 * windows.len().max(1) as u32 / 2 + 60)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, window) in root.split_evenly((windows.len().max(1), 1)).iter().zip(windows) {
        let bars = servers.iter().map(|server| {
            let rounds = server["rounds"].as_array().unwrap_or(&empty).iter();
            let of_window = rounds.filter(|round| round["window"] == *window);
            let cpu = crate::report::median(of_window.map(|round| number(&round["cpu_us_per_message"])));
            (server["name"].as_str().unwrap_or_default().to_owned(), cpu)
        });
        bars_into(
            area,
            &format!("CPU of the server for a message, µs, {window} in flight"),
            &sorted(bars.filter(|bar| bar.1 > 0.0)),
        )?;
    }
    root.present()?;
    Ok(())
}

fn cluster(path: &Path, reports: &[&Value]) -> Drawn {
    let empty = Vec::new();
    let root = SVGBackend::new(path, (SIZE.0, SIZE.1 * reports.len() as u32 / 2 + 60)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, report) in root.split_evenly((reports.len(), 1)).iter().zip(reports) {
        let cases = report["cases"].as_array().unwrap_or(&empty).iter();
        let bars = cases.map(|case| {
            let name = case["name"].as_str().unwrap_or_default().to_owned();
            (name, number(&case["median_cpu_us_per_message"]))
        });
        let Value::Object(arguments) = &report["arguments"] else { continue };
        let ack = if arguments.get("ack") == Some(&Value::Bool(true)) { ", with ACK" } else { "" };
        let (nodes, window) = (&report["arguments"]["nodes"], &report["arguments"]["window"]);
        let title = format!("CPU of {nodes} nodes for a message, µs, {window} in flight{ack}");
        bars_into(area, &title, &bars.collect::<Vec<_>>())?;
    }
    root.present()?;
    Ok(())
}

fn idle(path: &Path, report: &Value) -> Drawn {
    let empty = Vec::new();
    let servers = report["servers"].as_array().unwrap_or(&empty).iter();
    let bars = servers.filter(|server| server["idle"].is_object()).map(|server| {
        let both = number(&server["idle"]["user"]) + number(&server["idle"]["kernel"]);
        (server["name"].as_str().unwrap_or_default().to_owned(), both)
    });
    let root = SVGBackend::new(path, (SIZE.0, SIZE.1 / 2 + 60)).into_drawing_area();
    root.fill(&WHITE)?;
    bars_into(&root, "Memory of an idle connection, process and kernel, bytes", &sorted(bars))?;
    root.present()?;
    Ok(())
}

/// About how wide a character of a name is, in pixels.
const NAME_CHAR_WIDTH: f64 = 6.6;

/// Horizontal bars with their values, the names at the left.
fn bars_into(area: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, bars: &[(String, f64)]) -> Drawn {
    let most = bars.iter().map(|bar| bar.1).fold(1e-9, f64::max);
    // As much of the width as the longest name takes, and at least a sixth.
    let width = f64::from(area.dim_in_pixel().0);
    let longest = bars.iter().map(|bar| bar.0.chars().count()).max().unwrap_or(0);
    let names = (NAME_CHAR_WIDTH * longest as f64 + 24.0).clamp(width / 6.0, width / 2.0);
    let left = 1.15 * most * names / (width - names);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 18))
        .margin(12)
        .build_cartesian_2d(-left..1.15 * most, 0.0..bars.len().max(1) as f64)?;
    for (row, (name, value)) in bars.iter().rev().enumerate() {
        let (bottom, top) = (row as f64 + 0.15, row as f64 + 0.85);
        let colour = if name.starts_with("trunkline") { COLOURS[1] } else { COLOURS[0] };
        chart.draw_series([Rectangle::new([(0.0, bottom), (*value, top)], colour.filled())])?;
        let label = if *value < 100.0 { format!("{value:.2}") } else { grouped(*value) };
        chart.draw_series([Text::new(label, (value + 0.01 * most, top - 0.25), (FONT, 14))])?;
        chart.draw_series([Text::new(name.clone(), (-left, top - 0.25), (FONT, 14))])?;
    }
    Ok(())
}

/// A number with its thousands set apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0.0, 999.0, 1_000.0, 1_234_567.0].map(grouped).each_ref().map(String::as_str)
        );
    }

    /// A picture of a report, as text.
    fn drawn(name: &str, report: &Value, figure: fn(&Path, &Value) -> Drawn) -> String {
        let path = std::env::temp_dir().join(format!("bench-plot-{}-{name}.svg", std::process::id()));
        figure(&path, report).expect("drawn");
        let text = fs::read_to_string(&path).expect("there");
        fs::remove_file(&path).expect("there");
        text
    }

    #[test]
    fn servers_are_drawn_in_the_order_of_their_figures() {
        let server = |name: &str, cpu: f64| {
            let round = serde_json::json!({ "window": 1, "cpu_us_per_message": cpu });
            serde_json::json!({ "name": name, "rounds": [round] })
        };
        let absent = serde_json::json!({ "name": "absent" });
        let servers = [server("slow", 9.0), server("fast", 1.0), server("medium", 4.0), absent];
        let report = serde_json::json!({ "arguments": { "window": [1] }, "servers": servers });
        let text = drawn("cpu", &report, cpu);
        let at = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name} is not in the picture"));
        // From the bottom up.
        assert!(at("slow") < at("medium") && at("medium") < at("fast"));
        assert!(!text.contains("absent"), "nothing was measured of it");
    }

    #[test]
    fn a_latency_says_its_axis_and_which_rates_were_too_much() {
        let step = |rate: u32, cores: f64| {
            let messages = serde_json::json!({ "p50_us": 100.0, "p99_us": 900.0, "p999_us": 2000.0 });
            serde_json::json!({
                "rate": rate, "cores": cores, "bench_cores": 0.4, "in_time_share": 1.0, "messages": messages
            })
        };
        let report = serde_json::json!({ "steps": [step(10_000, 0.3), step(100_000, 0.99)] });
        let text = drawn("latency", &report, |path, report| latency(path, &[report]));
        assert!(text.contains("logarithmic"));
        assert!(text.contains("100,000 a second is more than there is room for, the server used 0.99"), "{text}");
        assert!(!text.contains("10,000 a second is more"));
    }

    #[test]
    fn files_that_hold_nothing_to_draw_are_refused() {
        let path = std::env::temp_dir().join(format!("bench-plot-{}.json", std::process::id()));
        let out = std::env::temp_dir();
        for (text, part) in [("{\"bench\":\"floor\"}", "nothing to draw"), ("what", "no JSON")] {
            fs::write(&path, text).expect("written");
            let sentence =
                run(&PlotArgs { files: vec![path.clone()], out: out.clone() }).expect_err("refused").to_string();
            assert!(sentence.contains(part), "{sentence}");
        }
        fs::remove_file(&path).expect("there");
        assert!(run(&PlotArgs { files: vec![path], out }).is_err());
    }
}
