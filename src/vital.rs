//! Threads and tasks without which the broker must not go on. A panic in one of them ends the process there and then:
//! nothing is unwound, so nobody else sees what it left half changed, and nothing of the store is closed by a program that
//! does not know its own state. A supervisor starts it again, and the journal has everything that was acked.
//! Why so: `docs/decisions/panics-end-the-process.md`.

use std::cell::Cell;
use std::future::Future;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};

/// The exit code of a process that ended so, after `sysexits.h`: an error inside the program.
pub const EXIT_CODE: i32 = 70;

thread_local! {
    /// Whether what this thread does just now is vital.
    static IS_VITAL: Cell<bool> = const { Cell::new(false) };
}

/// Starts a thread that the broker cannot do without.
///
/// # Errors
/// When the machine gives no thread.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    watch();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _vital = Now::is(true);
        body();
    })
}

/// A task that the broker cannot do without, wherever it is polled.
pub fn task<T>(future: impl Future<Output = T> + Send + 'static) -> impl Future<Output = T> + Send + 'static {
    watch();
    Vital(Box::pin(future))
}

/// Does what may panic without harm: whoever asks for it knows what to make of it.
///
/// # Errors
/// What it panicked with.
pub fn caught<T>(work: impl FnOnce() -> T) -> thread::Result<T> {
    let _harmless = Now::is(false);
    catch_unwind(AssertUnwindSafe(work))
}

/// Says of this thread what it does, until it is dropped.
struct Now {
    before: bool,
}

impl Now {
    fn is(vital: bool) -> Self {
        Self { before: IS_VITAL.replace(vital) }
    }
}

impl Drop for Now {
    fn drop(&mut self) {
        IS_VITAL.set(self.before);
    }
}

/// See [`task`].
struct Vital<F>(Pin<Box<F>>);

impl<F: Future> Future for Vital<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _vital = Now::is(true);
        self.0.as_mut().poll(context)
    }
}

/// From now on a panic of something vital ends the process, once it was told as panics are.
fn watch() {
    static WATCHES: Once = Once::new();
    WATCHES.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tell(panic);
            // A thread that ends has no locals any more: whatever it did is over.
            if IS_VITAL.try_with(Cell::get).unwrap_or(false) {
                let at = panic.location().map_or_else(String::new, ToString::to_string);
                let thread = thread::current().name().unwrap_or("unnamed").to_owned();
                tracing::error!(thread, at, code = EXIT_CODE, "a vital thread panicked: the process ends");
                // Where nobody logs, as in tests, whose output would be lost with them.
                if !tracing::dispatcher::has_been_set() {
                    let _ = writeln!(std::io::stderr(), "a vital thread panicked, the process ends: {panic}");
                }
                std::process::exit(EXIT_CODE);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// What the process under test shall do; none in an ordinary run.
    const CHOICE: &str = "LONGWIRE_TEST_VITAL";

    /// Nobody holds this when the process ends at once; unwinding says so.
    struct Unwound;

    impl Drop for Unwound {
        fn drop(&mut self) {
            let _ = writeln!(std::io::stderr(), "it was unwound");
        }
    }

    /// Not a test of its own: what the processes below do.
    #[test]
    fn of_a_process_that_panics() {
        let Ok(choice) = std::env::var(CHOICE) else { return };
        let panics = || {
            let _unwound = Unwound;
            panic!("as the test asked");
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        match &*choice {
            "thread" => drop(spawn("vital", panics).expect("a thread").join()),
            "task" => drop(runtime.block_on(runtime.spawn(task(async move { panics() })))),
            "caught" => {
                let tried = spawn("vital", move || drop(caught(panics).expect_err("it panics")));
                tried.expect("a thread").join().expect("it goes on");
            }
            "other" => {
                runtime.block_on(task(async {}));
                drop(thread::spawn(panics).join());
            }
            "behind" => {
                let behind = move || {
                    let _ = caught(|| ());
                    panics();
                };
                drop(spawn("vital", behind).expect("a thread").join());
            }
            choice => unreachable!("{choice}"),
        }
    }

    #[test]
    fn what_is_vital_ends_the_process_before_anything_is_unwound() {
        for (choice, ends, unwound) in [
            ("thread", true, false),
            ("task", true, false),
            ("behind", true, false),
            ("caught", false, true),
            ("other", false, true),
        ] {
            let this = std::env::current_exe().expect("this program");
            let mut command = Command::new(this);
            command.args(["--exact", "vital::tests::of_a_process_that_panics", "--nocapture"]).env(CHOICE, choice);
            let output = command.output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(if ends { EXIT_CODE } else { 0 }), "{choice}: {said}");
            assert_eq!(said.contains("it was unwound"), unwound, "{choice}: {said}");
            assert!(said.contains("as the test asked"), "{choice} is told: {said}");
        }
    }
}
