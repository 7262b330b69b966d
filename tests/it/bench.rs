//! `longwire bench` without a broker starts one, and leaves nothing of it behind.

use std::process::Command;

/// Runs it with a temporary folder of its own; returns what it wrote as JSON.
fn bench(args: &[&str]) -> serde_json::Value {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("figures.json");
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).expect("a folder");
    let mut longwire = Command::new(env!("CARGO_BIN_EXE_longwire"));
    longwire.arg("bench").args(args).arg("--json").arg(&json).env("TMPDIR", &temporary).env_remove("LONGWIRE_URL");
    let output = longwire.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left: Vec<_> = std::fs::read_dir(&temporary).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
    serde_json::from_slice(&std::fs::read(json).expect("figures")).expect("JSON")
}

#[test]
fn bench_publish_starts_a_broker_and_knows_its_fsyncs() {
    let figures = bench(&["publish", "--connections", "3", "--window", "8", "--count", "300"]);
    assert_eq!(figures["messages"], 300);
    let number = |name: &str| figures["fsyncs"][name].as_u64().expect(name);
    assert!(number("operations") > 300, "connects and channels too: {figures}");
    assert!((1..=number("operations")).contains(&number("fsyncs")), "{figures}");
    assert!(figures["broker"]["cpu_us_per_message"].as_f64().is_some(), "{figures}");
}

#[test]
fn bench_connections_starts_a_broker() {
    let steps = bench(&["connections", "--steps", "5,10", "--settle", "1ms"]);
    let connections: Vec<_> = steps.as_array().expect("steps").iter().map(|step| step["connections"].clone()).collect();
    assert_eq!(connections, [5, 10]);
}

/// The course of attacks runs, honest clients get everything meanwhile, and what attackers got is told by name. How fast
/// and how large everything is, is for machines that do nothing else.
#[test]
fn bench_hostile_tells_what_attackers_got() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("figures.json");
    let mut longwire = Command::new(env!("CARGO_BIN_EXE_longwire"));
    longwire.args(["bench", "hostile", "--only", "tokens,window,members", "--rounds", "1", "--window", "500ms"]);
    longwire.args(["--settle", "1s", "--publishers", "2", "--readers", "3", "--rate", "50", "--no-overload"]);
    longwire.args(["--connections", "20", "--connect-rate", "50", "--json"]).arg(&json);
    let output = longwire.env("TMPDIR", folder.path()).env_remove("LONGWIRE_URL").output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let figures = std::fs::read(json).unwrap_or_else(|error| panic!("{error}: {said}"));
    let figures: serde_json::Value = serde_json::from_slice(&figures).expect("JSON");
    assert_eq!(figures["broken"], serde_json::json!([]), "{said}");
    assert!(figures["honest_messages"].as_u64() > Some(50), "{figures}");
    let ended = |attack: usize, how: &str| figures["attacks"][attack]["ended"][how]["connections"].as_u64();
    assert!(ended(0, "unauthenticated") > Some(0) && ended(0, "token_expired") > Some(0), "{said}");
    assert!(ended(1, "window_exceeded") > Some(0), "{said}");
    assert!(figures["attacks"][2]["refused"]["rate_limited"].as_u64() > Some(0), "{said}");
}
