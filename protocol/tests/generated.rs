//! The committed code is what the `.proto` says. `LONGWIRE_GENERATE=1 cargo test -p longwire-protocol --test generated`
//! writes it anew after a change of the `.proto`.

use std::path::Path;

#[test]
fn committed_packets_are_what_the_proto_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("src/packet/longwire.v1.rs");
    let files =
        protox::compile([root.join("proto/longwire.proto")], [root.join("proto")]).expect("the .proto compiles");
    let out = std::env::temp_dir().join(format!("longwire-generated-{}", std::process::id()));
    std::fs::create_dir_all(&out).expect("a folder for the output");
    // What holds a token, a password or a key shows itself without it: see `packet/secrets.rs`.
    let secret = [
        "Connect",
        "Connected",
        "Join",
        "Login",
        "RefreshAnswer",
        "RefreshRequest",
        "SetAccount",
        "SetJoinKey",
        "SetPush",
    ];
    let secret = secret.map(|message| format!(".longwire.v1.{message}"));
    let mut config = prost_build::Config::new();
    // What few packets have takes no room in all the others.
    for rare in [
        "Publish.beside",
        "Entry.beside",
        "Entry.info",
        "Entry.compacted",
        "CreateGroup.info",
        "SetInfo.info",
        "Connect.login",
    ] {
        config.boxed(format!(".longwire.v1.{rare}"));
    }
    config.bytes(["."]).skip_debug(secret).out_dir(&out).compile_fds(files).expect("code for the .proto");
    let generated = std::fs::read_to_string(out.join("longwire.v1.rs")).expect("generated code");
    std::fs::remove_dir_all(&out).expect("remove the output folder");
    if std::env::var_os("LONGWIRE_GENERATE").is_some() {
        std::fs::write(&committed, &generated).expect("write the generated code");
    }
    let committed = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(generated == committed, "the committed packets differ from the .proto: run with LONGWIRE_GENERATE=1");
}
