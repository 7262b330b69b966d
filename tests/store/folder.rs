//! Folders that are there, missing, in use, newer than this program, or no folder at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use longwire::store::{Log, OpenError, RedbLog, StoreOptions, check, stats};
use redb::{Database, TableDefinition};

fn open(folder: &Path) -> Result<RedbLog, OpenError> {
    RedbLog::open(folder, StoreOptions { birth_unix_ms: 42, ..StoreOptions::default() })
}

#[test]
fn a_missing_folder_is_made_and_its_files_are_their_owners_alone() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("deep").join("store");
    let log = open(&folder).expect("opens");
    assert_eq!(log.birth_unix_ms(), 42);
    for name in ["journal.redb", "state.redb"] {
        let mode = fs::metadata(folder.join(name)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(&folder).expect("is there").permissions().mode() & 0o777, 0o700);
    Box::new(log).close().expect("closes");
    let again = RedbLog::open(&folder, StoreOptions { birth_unix_ms: 43, ..StoreOptions::default() }).expect("opens");
    assert_eq!(again.birth_unix_ms(), 42, "the birth is that of the store, not of this start");
}

#[test]
fn a_store_that_is_open_says_so_to_a_second_and_to_the_offline_commands() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path()).expect("opens");
    let second = open(folder.path()).err().expect("is refused");
    assert!(matches!(second, OpenError::AlreadyOpen { .. }), "{second:?}");
    assert!(second.to_string().contains("state.redb is in use by another process"), "{second}");
    assert!(matches!(check(folder.path(), &mut ()), Err(OpenError::AlreadyOpen { .. })));
    assert!(matches!(stats(folder.path()), Err(OpenError::AlreadyOpen { .. })));
    drop(log);
    open(folder.path()).expect("opens when the first is gone");
}

#[test]
fn a_newer_format_is_refused_and_both_versions_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    Box::new(open(folder.path()).expect("opens")).close().expect("closes");
    let state = Database::open(folder.path().join("state.redb")).expect("is a redb file");
    let transaction = state.begin_write().expect("begins");
    let format = TableDefinition::<&str, u64>::new("format");
    transaction.open_table(format).expect("is there").insert("format", 9).expect("is written");
    transaction.commit().expect("commits");
    drop(state);
    for error in
        [open(folder.path()).err().expect("is refused"), check(folder.path(), &mut ()).expect_err("is refused")]
    {
        assert!(matches!(error, OpenError::NewerFormat { found: 9, known: 1, .. }), "{error:?}");
        assert!(error.to_string().contains("has store format 9, this program reads formats up to 1"), "{error}");
    }
}

#[test]
fn a_path_that_is_no_folder_or_no_store_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "something").expect("writes");
    let error = open(&file).err().expect("is refused");
    assert!(error.to_string().contains(file.to_str().expect("is text")), "{error}");
    let error = check(&folder.path().join("nothing"), &mut ()).expect_err("there is nothing");
    assert!(error.to_string().contains("nothing/state.redb"), "{error}");
    fs::write(folder.path().join("state.redb"), "no redb file at all").expect("writes");
    let error = open(folder.path()).err().expect("is refused");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
}
