//! `longwire bench` without a broker starts one, and leaves nothing of it behind.

use std::process::Command;

/// Runs it with a temporary folder of its own; returns what it wrote as JSON.
fn bench(args: &[&str]) -> serde_json::Value {
    bench_with(args, &[])
}

/// The same, with more in its environment.
fn bench_with(args: &[&str], environment: &[(&str, &str)]) -> serde_json::Value {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("figures.json");
    let temporary = folder.path().join("tmp");
    std::fs::create_dir(&temporary).expect("a folder");
    let mut longwire = Command::new(env!("CARGO_BIN_EXE_longwire"));
    longwire.arg("bench").args(args).arg("--json").arg(&json).env("TMPDIR", &temporary).env_remove("LONGWIRE_URL");
    longwire.envs(environment.iter().copied());
    let output = longwire.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let left: Vec<_> = std::fs::read_dir(&temporary).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
    serde_json::from_slice(&std::fs::read(json).expect("figures")).expect("JSON")
}

#[test]
fn bench_publish_starts_a_broker_and_knows_its_fsyncs() {
    let figures = bench(&["publish", "--connections", "3", "--window", "8", "--count", "300"]);
    let number = |name: &str| figures["runs"][0]["figures"][name].as_f64().expect(name);
    assert_eq!(number("messages"), 300.0);
    assert!(number("operations") > 300.0, "connects and channels too: {figures}");
    assert!(number("fsyncs") >= 1.0 && number("fsyncs") <= number("operations"), "{figures}");
    assert!(number("broker_cpu_us_per_message") >= 0.0, "{figures}");
}

/// Everything that a benchmark says of its only run.
fn figures(args: &[&str]) -> impl Fn(&str) -> f64 + use<> {
    let said = bench(args);
    move |name| said["runs"][0]["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {said}"))
}

#[test]
fn bench_pairs_delivers_what_it_counts() {
    let figure = figures(&["pairs", "--pairs", "3", "--window", "4", "--count", "100"]);
    assert_eq!(figure("messages"), 100.0);
}

#[test]
fn bench_fanout_reaches_every_reader_without_tls() {
    let figure =
        figures(&["fanout", "--plain", "--readers", "20", "--channels", "2", "--window", "3", "--count", "10"]);
    assert_eq!(figure("messages"), 200.0, "each of 10 messages at each of 20 readers of its channel");
}

#[test]
fn bench_groups_has_everyone_get_everything() {
    let figure = figures(&["groups", "--users", "12", "--rate", "200", "--duration", "2s"]);
    assert!(figure("conversations") > 100.0);
    assert!(figure("messages") >= 1.0 && figure("deliveries") >= figure("messages"));
    // 12 users, and 228 who are never there.
    assert!(figure("channels") >= 1.0 && figure("members_most") > 200.0);
    for done in ["marks", "reactions", "signals", "signals_heard", "returns"] {
        assert!(figure(done) >= 1.0, "{done}");
    }
}

/// More of what is rare than people do, so that it happens in a moment: all that is delivered is still held against what was
/// sent.
#[test]
fn bench_groups_has_everyone_get_everything_while_much_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let mix = folder.path().join("mix.toml");
    let text = include_str!("../../src/cli/bench/mix.toml")
        .replace("edits_per_message = 0.03", "edits_per_message = 0.3")
        .replace("recalls_per_message = 0.01", "recalls_per_message = 0.3")
        .replace("membership_changes_per_message = 0.005", "membership_changes_per_message = 0.3")
        .replace("vanish = 0.01", "vanish = 0.5");
    std::fs::write(&mix, text).expect("written");
    let mix = mix.to_str().expect("a name");
    let figure = figures(&["groups", "--users", "30", "--rate", "150", "--duration", "3s", "--mix", mix]);
    for done in ["edits", "recalls", "membership_changes", "returns", "vanished"] {
        assert!(figure(done) >= 1.0, "{done}");
    }
}

#[test]
fn bench_flooded_delivers_what_is_direct_and_reports_what_is_withheld() {
    let args = ["flooded", "--groups", "12", "--rate", "600", "--direct", "40", "--duration", "500ms", "--level"];
    let full = figures(&[&args[..], &["full"]].concat());
    assert!(full("direct") >= 10.0 && full("came") >= 1.0 && full("reported") == 0.0);
    let none = figures(&[&args[..], &["none"]].concat());
    assert!(none("direct") >= 10.0 && none("came") == 0.0, "nothing of the groups");
}

#[test]
fn bench_offline_has_everyone_return() {
    let figure = figures(&["offline", "--devices", "20", "--messages", "70"]);
    assert_eq!(figure("messages"), 1_400.0);
}

#[test]
fn bench_slow_compares_with_and_without_those_who_never_ack() {
    let said = bench(&["slow", "--channels", "2", "--readers", "3", "--count", "50"]);
    let deliveries = |run: usize| said["runs"][run]["figures"]["messages"].as_f64();
    assert_eq!((deliveries(0), deliveries(1)), (Some(150.0), Some(150.0)), "{said}");
}

#[test]
fn bench_storm_has_everyone_back() {
    let figure = figures(&["storm", "--connections", "30", "--publishers", "2", "--rate", "100", "--quiet", "200ms"]);
    assert!(figure("tries_per_connection") >= 1.0);
}

#[test]
fn bench_kill_finds_everything_that_was_acked() {
    let figure = figures(&["kill", "--kills", "3", "--life", "300ms", "--pairs", "3"]);
    assert!(figure("kills") == 3.0 && figure("messages") > 0.0);
}

#[test]
fn bench_writes_a_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let html = folder.path().join("page.html");
    bench(&["publish", "--connections", "1", "--count", "10", "--html", html.to_str().expect("a name")]);
    assert!(std::fs::read_to_string(html).expect("a page").contains("<svg"));
}

#[test]
fn bench_says_what_is_wrong_with_what_it_is_given() {
    for (args, words) in [
        (&["kill", "--url", "longwire://127.0.0.1:1", "--issuer-key", "x"][..], "only a broker of its own is killed"),
        (&["groups", "--mix", "/nowhere.toml"], "--mix /nowhere.toml"),
        (&["connections", "--transport", "memory", "--syscalls"], "no --syscalls"),
        (&["pairs", "--pairs", "0"], "is not a number from 1 on"),
        #[cfg(not(feature = "mqtt-peer"))]
        (&["pairs", "--peer", "mqtt://127.0.0.1:1", "--count", "1", "--pairs", "1"], "--features mqtt-peer"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_longwire")).arg("bench").args(args).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(words), "{args:?}: {said}");
    }
}

#[test]
fn bench_connections_starts_a_broker() {
    let steps = bench(&["connections", "--steps", "5,10", "--settle", "1ms"]);
    let runs = steps["runs"].as_array().expect("steps");
    let connections: Vec<_> = runs.iter().map(|run| run["figures"]["connections"].clone()).collect();
    assert_eq!(connections, [5.0, 10.0]);
}

/// A `perf` that counts 3,000 calls, whatever the machine has or allows.
const PERF: &str = "\
#!/usr/bin/env -S --default-signal=INT sh
trap 'echo 3000,,raw_syscalls:sys_enter,1,100.00,, >&2; exit' INT
for n in $(seq 3000); do sleep 0.02; done
";

#[test]
fn bench_counts_calls_into_the_kernel_of_connects_heartbeats_and_storms() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let perf = folder.path().join("perf");
    std::fs::write(&perf, PERF).expect("written");
    std::fs::set_permissions(&perf, std::fs::Permissions::from_mode(0o755)).expect("made a program");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
    let args = ["--settle", "1ms", "--idle", "2s", "--heartbeat", "15s", "--syscalls"];
    let said = bench_with(&[&["connections", "--steps", "600"], &args[..]].concat(), &[("PATH", &path)]);
    let figure = |name: &str| said["runs"][0]["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {said}"));
    assert_eq!(figure("broker_syscalls_per_connect"), 5.0);
    assert_eq!(figure("broker_syscalls_per_heartbeat"), 3_000.0 / (600.0 * 2.0 / 15.0));
    let args = ["storm", "--connections", "300", "--publishers", "1", "--quiet", "1ms", "--jitter", "2s", "--syscalls"];
    let said = bench_with(&args, &[("PATH", &path)]);
    let figure = |name: &str| said["runs"][0]["figures"][name].as_f64();
    assert_eq!((figure("ramp_syscalls_per_connect"), figure("storm_syscalls_per_connect")), (Some(10.0), Some(10.0)));
}

/// What it shows while it runs, on a terminal or where its errors go to a file.
fn shown(args: &[&str], on_a_terminal: bool) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    // A terminal is made by Python, as the client of the conformance suite needs it anyhow.
    let spawn = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))";
    let mut command = Command::new("python3");
    match on_a_terminal {
        true => command.args(["-c", spawn, env!("CARGO_BIN_EXE_longwire")]),
        false => {
            command = Command::new(env!("CARGO_BIN_EXE_longwire"));
            &mut command
        }
    };
    command.arg("bench").args(args).env("TMPDIR", folder.path()).env("TERM", "xterm").env_remove("LONGWIRE_URL");
    let output = command.stdin(std::process::Stdio::null()).output().expect("it runs");
    let shown = if on_a_terminal { output.stdout } else { output.stderr };
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(output.status.success(), "{shown}");
    shown
}

#[test]
fn bench_says_on_a_terminal_how_far_it_is() {
    for (args, lines) in [
        (&["connections", "--steps", "2000", "--settle", "1ms"][..], &[" connected, "][..]),
        (&["connections", "--steps", "2000", "--settle", "1ms", "--transport", "memory"], &[" connected, "]),
        (
            &["storm", "--connections", "100", "--publishers", "1", "--quiet", "1ms", "--jitter", "600ms"],
            &[" connected, ", " returned, "],
        ),
    ] {
        let shown_to_a_person = shown(args, true);
        for line in lines {
            assert!(shown_to_a_person.contains(line), "{args:?}: {shown_to_a_person}");
        }
        assert_eq!(shown(args, false), "", "{args:?}");
    }
}

/// Runs these attacks, each for half a second; returns what it told and what it printed.
fn attacked(attacks: &str, args: &[&str]) -> (serde_json::Value, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("figures.json");
    let mut longwire = Command::new(env!("CARGO_BIN_EXE_longwire"));
    longwire.args(["bench", "hostile", "--only", attacks, "--rounds", "1", "--window", "500ms"]);
    longwire.args(["--settle", "1s", "--publishers", "2", "--readers", "3", "--rate", "50", "--no-overload"]);
    longwire.args(["--connections", "20", "--connect-rate", "50", "--json"]).arg(&json).args(args);
    let output = longwire.env("TMPDIR", folder.path()).env_remove("LONGWIRE_URL").output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let figures = std::fs::read(json).unwrap_or_else(|error| panic!("{error}: {said}"));
    let figures: serde_json::Value = serde_json::from_slice(&figures).expect("JSON");
    assert_eq!(figures["broken"], serde_json::json!([]), "{said}");
    (figures, said.into_owned())
}

/// How many connections of an attack ended so, and how many publishes were refused so.
fn got(figures: &serde_json::Value, attack: usize) -> impl Fn(&str) -> Option<u64> {
    let told = &figures["attacks"][attack];
    move |what| told["ended"][what]["connections"].as_u64().or(told["refused"][what].as_u64())
}

/// The course of attacks runs, honest clients get everything meanwhile, and what attackers got is told by name, on a page
/// too. How fast and how large everything is, is for machines that do nothing else.
#[test]
fn bench_hostile_tells_what_attackers_got() {
    let folder = tempfile::tempdir().expect("a folder");
    let html = folder.path().join("page.html");
    let (figures, said) = attacked("tokens,window,members", &["--html", html.to_str().expect("a name")]);
    assert!(figures["honest_messages"].as_u64() > Some(50), "{figures}");
    let tokens = got(&figures, 0);
    assert!(tokens("unauthenticated") > Some(0) && tokens("token_expired") > Some(0), "{said}");
    assert!(got(&figures, 1)("window_exceeded") > Some(0) && got(&figures, 2)("rate_limited") > Some(0), "{said}");
    let page = std::fs::read_to_string(html).expect("a page");
    assert!(page.contains("window_exceeded") && page.contains("% of the throughput") && !page.contains("<script"));
}

/// What nobody may get nobody got, and who is attacked while it is there goes on and gets everything.
#[test]
fn bench_hostile_watches_those_whom_attackers_would_like_to_be() {
    let attacks = ["future", "huge", "compressed", "names", "impostors", "replays"];
    let (figures, said) = attacked(&attacks.join(","), &["--no-throughput"]);
    for (attack, what) in [
        (0, "ack_of_the_unsent"),
        (1, "payload_too_large"),
        (3, "invalid_argument"),
        (4, "unauthenticated"),
        (4, "token_expired"),
        (5, "token_expired"),
        (5, "revoked"),
    ] {
        assert!(got(&figures, attack)(what) > Some(0), "{}, {what}: {said}", attacks[attack]);
    }
    assert!(figures["attacks"][2]["accepted"].as_u64() > Some(0), "contents were stored and read back: {said}");
    for (attack, name) in attacks.iter().enumerate() {
        assert_eq!(figures["attacks"][attack]["wrong"], serde_json::json!({}), "{name}: {said}");
        let reached = figures["attacks"][attack]["to_victim"].as_u64();
        assert!(reached > Some(0) || !["names", "impostors"].contains(name), "{name}: {said}");
    }
}

/// Publishes, pages and starts at two sizes; acks and pages are checked by the bench itself.
#[test]
fn bench_growth_costs_what_it_did_before() {
    let said = bench(&[
        "growth",
        "--entries",
        "200,400",
        "--conversations",
        "30",
        "--connections",
        "3",
        "--window",
        "4",
        "--duration",
        "200ms",
        "--pages",
        "40",
    ]);
    for (run, least) in [(0, 200.0), (1, 400.0)] {
        let figures = &said["runs"][run]["figures"];
        let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("no {name}: {said}"));
        assert!(number("entries") > least && number("messages_per_second") > 0.0, "{said}");
        assert!(number("restart_seconds") > 0.0 && number("publish_ratio") > 0.0, "{said}");
    }
}

#[test]
fn bench_list_asks_for_the_newest() {
    let said = bench(&["list", "--conversations", "3,30", "--asks", "5"]);
    let asked = |run: usize| said["runs"][run]["latencies"][0]["count"].as_f64();
    assert_eq!((asked(0), asked(1)), (Some(5.0), Some(5.0)), "{said}");
}
