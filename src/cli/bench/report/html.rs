//! A report as a page: one file, nothing to fetch, plots as SVG.

use std::fmt::Write as _;

use super::table::{groups, lines, number};
use super::{Report, Run};

const STYLE: &str = "\
:root{--ink:#1c2430;--soft:#5c6878;--line:#d9dee6;--ground:#fff;--one:#1f6feb}\
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#98a3b3;--line:#313a46;--ground:#12161c;--one:#6ea8ff}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);max-width:60rem;margin:2.5rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{margin:.3rem 0;color:var(--soft)}\
code{font:13px ui-monospace,monospace;background:color-mix(in srgb,var(--line) 40%,transparent);padding:.15rem .35rem;border-radius:.25rem;overflow-wrap:anywhere}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left;color:var(--soft);font-weight:400}\
svg{width:100%;height:auto;overflow:visible}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}\
.key{display:inline-flex;align-items:center;gap:.4rem;margin-right:1rem;color:var(--soft);font-size:13px}.key i{width:.9rem;height:.2rem;border-radius:.1rem}";

/// One for each kind of run.
const COLOURS: [&str; 6] = ["var(--one)", "#d9480f", "#2f9e44", "#9c36b5", "#e0a100", "#0c8599"];

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 28.0;

pub(super) fn page(report: &Report) -> String {
    let mut out = head(report);
    figures(report, &mut out);
    let groups = groups(&report.runs);
    for name in names(report, |run| run.latencies.iter().map(|latency| latency.name).collect()) {
        let series = series(&groups, |run| {
            let latency = run.latencies.iter().find(|latency| latency.name == name)?;
            let seen = |at: f64| latency.count as f64 * (100.0 - at) >= 100.0;
            let points = latency.points.iter().filter(|(at, _)| *at < 100.0 && seen(*at));
            // Nines are as far from each other as they are rare.
            Some(points.map(|(at, ms)| (-(1.0 - at / 100.0).log10(), *ms)).collect())
        });
        let _ = writeln!(out, "<h2>{}: milliseconds by percentile</h2>", escaped(name));
        let ticks = [(0.0, "0"), (0.301, "50"), (1.0, "90"), (2.0, "99"), (3.0, "99.9"), (4.0, "99.99")];
        plot(&mut out, &series, &ticks.map(|(at, words)| (at, words.to_owned())));
    }
    for name in names(report, |run| run.rates.iter().map(|rate| rate.name).collect()) {
        let series = series(&groups, |run| {
            let rate = run.rates.iter().find(|rate| rate.name == name)?;
            Some(rate.per_second.iter().enumerate().map(|(at, value)| (at as f64 * rate.seconds, *value)).collect())
        });
        let _ = writeln!(out, "<h2>{}/s over time, in seconds</h2>", escaped(name));
        let end = series.iter().flat_map(|one| &one.points).map(|(at, _)| *at).fold(0.0, f64::max);
        let ticks: Vec<_> = (0..=4).map(|tick| end * f64::from(tick) / 4.0).map(|at| (at, number(at))).collect();
        plot(&mut out, &series, &ticks);
    }
    out + &foot(report)
}

/// What stands above the figures: what was done, by which command, and where.
pub(super) fn head(report: &Report) -> String {
    let machine = &report.machine;
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>longwire bench {bench}</title><style>{STYLE}</style>\n<h1>longwire bench {bench}</h1>\n<p>{setting}</p>\n\
         <p><code>{command}</code></p>\n<p>{at} · {cores} cores · {processor} · {memory} GiB · Linux {kernel}</p>\n",
        bench = escaped(report.bench),
        setting = escaped(&report.setting),
        command = escaped(&report.command),
        at = escaped(&report.at),
        cores = machine.cores,
        processor = escaped(&machine.processor),
        memory = machine.memory_gib,
        kernel = escaped(&machine.kernel),
    )
}

/// What stands below them.
pub(super) fn foot(report: &Report) -> String {
    let notes: String = report.notes.iter().map(|note| format!("<p>{}</p>\n", escaped(note))).collect();
    notes + "</html>\n"
}

fn figures(report: &Report, out: &mut String) {
    out.push_str("<h2>Figures</h2>\n<table><tr><th></th>");
    for (name, runs) in groups(&report.runs) {
        let times = if runs.len() > 1 { format!(", median of {}", runs.len()) } else { String::new() };
        let _ = write!(out, "<th>{}{times}</th>", escaped(name));
    }
    out.push_str("</tr>\n");
    for (label, cells) in lines(report) {
        let _ = write!(out, "<tr><td>{}</td>", escaped(&label));
        for cell in cells {
            let _ = write!(out, "<td>{}</td>", escaped(&cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

fn names<'a>(report: &'a Report, of: impl Fn(&'a Run) -> Vec<&'a str>) -> Vec<&'a str> {
    let mut names = Vec::new();
    for name in report.runs.iter().flat_map(of) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

struct Series<'a> {
    name: &'a str,
    colour: &'static str,
    points: Vec<(f64, f64)>,
}

fn series<'a>(groups: &[(&'a str, Vec<&'a Run>)], points: impl Fn(&Run) -> Option<Vec<(f64, f64)>>) -> Vec<Series<'a>> {
    let of = |(at, (name, runs)): (usize, &(&'a str, Vec<&'a Run>))| {
        let colour = COLOURS[at % COLOURS.len()];
        let lines = runs.iter().filter_map(|run| points(run)).filter(|points| !points.is_empty());
        lines.map(|points| Series { name, colour, points }).collect::<Vec<_>>()
    };
    groups.iter().enumerate().flat_map(of).collect()
}

fn plot(out: &mut String, series: &[Series<'_>], ticks: &[(f64, String)]) {
    let all = || series.iter().flat_map(|one| &one.points);
    let right = all().map(|(x, _)| *x).fold(0.0, f64::max).max(1e-9);
    let top = round_up(all().map(|(_, y)| *y).fold(0.0, f64::max));
    let x = |value: f64| LEFT + value / right * (WIDTH - LEFT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - 10.0);
    let _ = writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let at = y(value);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--line)\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            number(value)
        );
    }
    for (value, words) in ticks.iter().filter(|(value, _)| *value <= right * 1.001) {
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{words}</text>", x(*value), HEIGHT - 8.0);
    }
    for one in series {
        let points: Vec<_> = one.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x(*px), y(*py))).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\" stroke-linejoin=\"round\" points=\"{}\"/>",
            one.colour,
            points.join(" ")
        );
    }
    out.push_str("</svg>\n<div>");
    let mut told: Vec<&str> = Vec::new();
    for one in series {
        if !told.contains(&one.name) {
            told.push(one.name);
            let _ = write!(
                out,
                "<span class=\"key\"><i style=\"background:{}\"></i>{}</span>",
                one.colour,
                escaped(one.name)
            );
        }
    }
    out.push_str("</div>\n");
}

/// The next number that reads well.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0].iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

pub(in crate::cli::bench) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_shows_every_run() {
        let page = page(&example());
        assert!(!page.contains("http") && !page.contains("<script"), "nothing is fetched or run");
        assert!(page.contains("3 pairs &lt;b&gt;"), "what was given is escaped");
        assert_eq!(page.matches("<polyline").count(), 6, "a latency and a rate of each of three runs");
        assert!(page.contains("1,500 [1,234–2,000]") && page.contains("median of 3"));
    }

    #[test]
    fn axes_end_at_numbers_that_read_well() {
        assert_eq!([0.0, 0.7, 3.2, 42.0, 99_000.0].map(round_up), [1e-9, 0.8, 4.0, 50.0, 100_000.0]);
    }
}
