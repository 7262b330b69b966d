//! An evening of 200 people with three devices each, by the command that shows it: at its end every device has what it
//! should have, and nothing else.

use std::process::Command;

#[test]
fn every_device_has_what_it_should_have_and_nothing_else() {
    let seed = fastrand::u64(..).to_string();
    let mut longwire = Command::new(env!("CARGO_BIN_EXE_longwire"));
    let output = longwire.args(["demo", "--evening", "6s", "--seed", &seed]).output().expect("it runs");
    let (told, shown) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "--seed {seed}: {told}{shown}");
    assert!(told.contains("the broker was killed, and started again"), "{told}");
    assert!(shown.contains("Every device has what it should have, and nothing else."), "{shown}");
}
