//! The report as a page: a table with a line for each attack, and how much the others kept as bars.

use std::fmt::Write as _;

use super::super::super::Fail;
use super::super::report;
use super::super::report::html::escaped;
use super::Args;
use super::report::{Held, Report, Told};

/// Rows of this report are words, and bars stand beside numbers.
const STYLE: &str = "\
<style>body{max-width:76rem}th,td,th:first-child,td:first-child{text-align:left;vertical-align:top;color:var(--ink)}\
td small{color:var(--soft)}.bar{display:block;height:.35rem;border-radius:.2rem;background:var(--one)}.miss{color:#d9480f}</style>\n";

impl Report {
    /// Writes the page, where one is asked for.
    pub(super) fn page(&self, args: &Args) -> Result<(), Fail> {
        let Args { publishers, readers, rate, rounds, .. } = args;
        let window = humantime::format_duration(args.window);
        let setting = format!(
            "{publishers} honest publishers, {readers} readers, {rate} messages/s for latency; windows of {window}, {rounds} rounds"
        );
        let mut page = report::Report::new("hostile", setting);
        page.note("throughput is that of the honest beside the attack, in the quiet one, without what the attackers' own side took of the cores");
        page.publish_page(args.broker.html.as_deref(), &self.figures())
    }

    fn figures(&self) -> String {
        let mut out = STYLE.to_owned();
        let verdict = match self.broken_promises() {
            0 => "No promise was broken.".to_owned(),
            broken => format!("<b class=\"miss\">{broken} promises were broken.</b>"),
        };
        let _ = writeln!(
            out,
            "<p>{} messages of the honest were acked, each read once and in order by every reader. {verdict}</p>",
            self.honest_messages
        );
        for what in &self.broken {
            let _ = writeln!(out, "<p class=\"miss\">{}</p>", escaped(what));
        }
        out.push_str("<h2>Attacks</h2>\n<table><tr><th>attack</th><th>gets</th><th>costs the broker</th><th>the others</th><th>limits</th></tr>\n");
        self.attacks.iter().for_each(|told| row(told, &mut out));
        out.push_str("</table>\n");
        if !self.overload_limits.is_empty() {
            let _ = writeln!(out, "<h2>Five times what it manages</h2>\n<p>{}</p>", limits(&self.overload_limits));
        }
        out
    }
}

fn row(told: &Told, out: &mut String) {
    let mut gets: Vec<String> = told.ended.iter().map(|(how, lives)| format!("{} {how}", lives.connections)).collect();
    gets.extend(told.refused.iter().map(|(why, count)| format!("{count} refused: {why}")));
    gets.extend(told.wrong.iter().map(|(what, count)| format!("{count} WRONG: {what}")));
    let mut costs = vec![format!("{} connections, {} packets", told.connections, told.packets)];
    costs.extend(told.broker_us_each.map(|us| format!("{us:.1} µs each")));
    costs.extend(told.memory.map(|memory| {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        format!(
            "{:.1} MiB before, {:.1} at the most, {:.1} after",
            mib(memory.before),
            mib(memory.peak),
            mib(memory.after)
        )
    }));
    let mut others = format!("p99 {:.2} → {:.2} ms", told.quiet_p99_ms, told.attack_p99_ms);
    if let Some(kept) = told.throughput_ratio() {
        let percent = kept * 100.0;
        let _ = write!(
            others,
            "<br>{percent:.0} % of the throughput<span class=\"bar\" style=\"width:{:.0}%\"></span>",
            percent.clamp(0.0, 100.0)
        );
    }
    let _ = writeln!(
        out,
        "<tr><td>{}<br><small>{}</small></td><td>{}</td><td>{}</td><td>{others}</td><td>{}</td></tr>",
        escaped(&told.attack.name()),
        escaped(told.attack.does()),
        lines(&gets),
        lines(&costs),
        limits(&told.limits)
    );
}

fn lines(all: &[String]) -> String {
    all.iter().map(|line| escaped(line)).collect::<Vec<_>>().join("<br>")
}

fn limits(all: &[Held]) -> String {
    let one = |held: &Held| {
        let told = format!("{}: {:.3} (limit {:.3})", escaped(held.what), held.is, held.limit);
        if held.holds { told } else { format!("<b class=\"miss\">{told}</b>") }
    };
    all.iter().map(one).collect::<Vec<_>>().join("<br>")
}
