//! A report for a terminal: a line for each figure, a column for each kind of run.

use std::fmt::Write as _;

use super::{Report, Run};

/// Of one name, in the order of their first runs.
pub(super) fn groups(runs: &[Run]) -> Vec<(&str, Vec<&Run>)> {
    let mut groups: Vec<(&str, Vec<&Run>)> = Vec::new();
    for run in runs {
        match groups.iter_mut().find(|(name, _)| *name == run.name) {
            Some((_, of)) => of.push(run),
            None => groups.push((&run.name, vec![run])),
        }
    }
    groups
}

/// Each line's label, and its cell in each group.
pub(super) fn lines(report: &Report) -> Vec<(String, Vec<String>)> {
    let groups = groups(&report.runs);
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    let mut line = |label: String, values: &dyn Fn(&Run) -> Option<f64>| {
        if lines.iter().all(|(known, _)| *known != label) {
            let cells = groups.iter().map(|(_, runs)| cell(runs.iter().filter_map(|run| values(run)).collect()));
            lines.push((label, cells.collect()));
        }
    };
    for figure in report.runs.iter().flat_map(|run| &run.figures.0) {
        let key = figure.key;
        line(figure.label.to_owned(), &|run| {
            run.figures.0.iter().find(|figure| figure.key == key).map(|figure| figure.value)
        });
    }
    for name in report.runs.iter().flat_map(|run| &run.latencies).map(|latency| latency.name) {
        for (words, at) in [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 101.0)] {
            line(format!("{name}, ms, {words}"), &|run| {
                run.latencies.iter().find(|latency| latency.name == name).map(|latency| latency.at(at))
            });
        }
    }
    lines
}

/// The median, and where there are several runs the least and the most.
fn cell(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => "-".to_owned(),
        [one] => number(*one),
        several => {
            let (least, most) = (several[0], several[several.len() - 1]);
            format!("{} [{}–{}]", number(several[several.len() / 2]), number(least), number(most))
        }
    }
}

/// With as many decimals as say something, and thousands apart.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if value.fract() == 0.0 || size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut out = sign.to_owned();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

pub(super) fn of(report: &Report) -> String {
    let groups = groups(&report.runs);
    let lines = lines(report);
    let mut out = format!("{}: {}\n", report.bench, report.setting);
    let label_width = lines.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..groups.len())
        .map(|column| {
            let cells = lines.iter().map(|(_, cells)| cells[column].chars().count());
            cells.chain([groups[column].0.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let mut row = |label: &str, cells: &[String]| {
        let _ = write!(out, "  {label:<label_width$}");
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(out, "  {cell:>width$}");
        }
        out.push('\n');
    };
    if groups.len() > 1 {
        row("", &groups.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
    }
    for (label, cells) in &lines {
        row(label, cells);
    }
    for note in &report.notes {
        let _ = writeln!(out, "  {note}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn numbers_say_as_much_as_they_know() {
        let said = [1_234_567.8, 1_000.0, 12.34, 3.456, 0.0123, 0.0, -1_500.0].map(number);
        assert_eq!(said, ["1,234,568", "1,000", "12.3", "3.46", "0.0123", "0", "-1,500"]);
    }

    #[test]
    fn repetitions_become_a_median_and_its_spread() {
        let text = of(&example());
        let line = |label: &str| text.lines().find(|line| line.contains(label)).expect(label).to_owned();
        assert!(
            line("messages/s").ends_with("1,500 [1,234–2,000]                   63")
                || line("messages/s").contains("1,500 [1,234–2,000]")
        );
        assert!(line("publish to ack, ms, p99 ").contains("990 [990–990]"), "{text}");
        assert!(text.contains("both on one machine"));
    }
}
