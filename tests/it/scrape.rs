//! A page of metrics as a strict reader of OpenMetrics 1.0 takes it, and the least of an HTTP client to get one.

use std::collections::{BTreeMap, BTreeSet};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::world::PATIENCE;

/// A page, understood to the last byte.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) families: Vec<Family>,
}

#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) help: String,
    /// Each sample's name with its labels, as they are written.
    samples: Vec<(String, Labels, f64)>,
}

type Labels = BTreeMap<String, String>;

impl Family {
    /// The name to ask for.
    pub(crate) fn asked_for(&self) -> String {
        match self.kind.as_str() {
            "counter" => format!("{}_total", self.name),
            "info" => format!("{}_info", self.name),
            _ => self.name.clone(),
        }
    }

    /// Its labels, each with the words that stand there.
    pub(crate) fn labels(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut found = BTreeMap::<_, BTreeSet<_>>::new();
        for (label, word) in self.samples.iter().flat_map(|(_, labels, _)| labels).filter(|(label, _)| *label != "le") {
            found.entry(label.as_str()).or_default().insert(word.as_str());
        }
        found
    }

    fn check(&self) {
        let Self { name, kind, help, samples } = self;
        assert!(!help.is_empty() && !kind.is_empty(), "{name} has no help or no type");
        let ends: &[&str] = match kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => panic!("{name} is a {kind}"),
        };
        let mut seen = BTreeSet::new();
        for (sample, labels, value) in samples {
            let end = sample.strip_prefix(name.as_str()).unwrap_or_else(|| panic!("{sample} stands in {name}"));
            assert!(ends.contains(&end), "{sample} in a {kind}");
            assert!(seen.insert((sample, labels)), "{sample} {labels:?} stands there twice");
            assert!(value.is_finite(), "{sample} is {value}");
            assert!(kind == "gauge" || *value >= 0.0, "{sample} is {value}");
        }
        if kind == "histogram" {
            let buckets: Vec<_> = samples.iter().filter(|(name, ..)| name.ends_with("_bucket")).collect();
            let bound = |labels: &Labels| labels["le"].replace("+Inf", "inf").parse::<f64>().expect("a bound");
            assert!(
                buckets.windows(2).all(|two| bound(&two[0].1) < bound(&two[1].1) && two[0].2 <= two[1].2),
                "{name}"
            );
            let last = buckets.last().expect("buckets");
            assert_eq!(last.1["le"], "+Inf", "{name}");
            let count = samples.iter().find(|(name, ..)| name.ends_with("_count")).expect("a count");
            assert!(last.2.to_bits() == count.2.to_bits(), "{name}");
        }
    }
}

fn is_name(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(rest)
}

/// Takes `name="value",...}`, and returns what stands behind it.
fn labels(mut text: &str) -> (Labels, &str) {
    let mut found = Labels::new();
    loop {
        let (name, rest) = text.split_once("=\"").unwrap_or_else(|| panic!("labels: {text}"));
        assert!(is_name(name), "{name:?} is no label");
        let (mut value, mut escaped, mut end) = (String::new(), false, None);
        for (at, c) in rest.char_indices() {
            match (escaped, c) {
                (true, '\\' | '"' | 'n') => (value.push(c), escaped = false).1,
                (true, _) => panic!("{rest:?} escapes what needs none"),
                (false, '\\') => escaped = true,
                (false, '"') => {
                    end = Some(at);
                    break;
                }
                (false, c) => value.push(c),
            }
        }
        assert!(found.insert(name.into(), value).is_none(), "{name} stands there twice");
        text = &rest[end.expect("an end") + 1..];
        match text.split_at(1) {
            (",", more) => text = more,
            ("}", more) => return (found, more),
            _ => panic!("behind a label: {text}"),
        }
    }
}

impl Scrape {
    /// Understands a page.
    pub(crate) fn parse(page: &str) -> Self {
        let mut families: Vec<Family> = Vec::new();
        let body = page.strip_suffix("# EOF\n").expect("the end of the page");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help");
                assert!(is_name(name) && families.iter().all(|family| family.name != name), "{name} comes once");
                families.push(Family { name: name.into(), help: help.into(), ..Family::default() });
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let family = families.last_mut().expect("its help");
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(family.name == name && family.kind.is_empty() && family.samples.is_empty(), "{line}");
                family.kind = kind.into();
            } else {
                let at = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line:?}"));
                let (name, rest) = line.split_at(at);
                assert!(is_name(name), "{line}");
                let (labels, rest) = match rest.strip_prefix('{') {
                    Some(rest) => labels(rest),
                    None => (Labels::new(), rest),
                };
                let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
                let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
                families.last_mut().expect("its family").samples.push((name.into(), labels, value));
            }
        }
        families.iter().for_each(Family::check);
        Self { families }
    }

    /// The one sample of this name with these labels, others aside.
    pub(crate) fn value(&self, name: &str, with: &[(&str, &str)]) -> f64 {
        let is_it = |labels: &Labels| with.iter().all(|(label, word)| labels.get(*label).is_some_and(|w| w == word));
        let samples = self.families.iter().flat_map(|family| &family.samples);
        let found: Vec<_> = samples.filter(|(n, labels, _)| n == name && is_it(labels)).collect();
        assert_eq!(found.len(), 1, "{name} {with:?}: {found:?}");
        found[0].2
    }

    /// What all samples of this name sum up to.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let samples = self.families.iter().flat_map(|family| &family.samples);
        samples.filter(|(n, ..)| n == name).map(|(_, _, value)| value).sum()
    }
}

/// Says this to a port, and hears what there is to hear until the other side closes.
pub(crate) async fn say(port: u16, text: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    // It may be closed before all of it is taken.
    let _ = socket.write_all(text.as_bytes()).await;
    hear(&mut socket).await
}

/// All that comes until the other side closes.
pub(crate) async fn hear(socket: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    // A reset ends it as well as an end.
    let _ = timeout(PATIENCE, socket.read_to_end(&mut heard)).await.expect("it is closed");
    String::from_utf8(heard).expect("text")
}

/// The status and the body of a page.
pub(crate) async fn get(port: u16, path: &str) -> (u16, String) {
    let answer = say(port, &format!("GET {path} HTTP/1.1\r\nhost: broker\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("an answer: {answer:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|status| status.parse().ok());
    assert!(head.contains("cache-control: no-store"), "{head}");
    (status.expect("a status"), body.to_owned())
}

/// What a broker counts.
pub(crate) async fn scrape(port: u16) -> Scrape {
    let (status, page) = get(port, "/metrics").await;
    assert_eq!(status, 200, "{page}");
    Scrape::parse(&page)
}
