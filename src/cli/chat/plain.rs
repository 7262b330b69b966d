//! The chat without a screen: lines in, lines out. For pipes, and for terminals that are none.

use std::collections::HashMap;
use std::io::{self, BufRead as _, Write as _};

use longwire_client::{Deliveries, State};
use tokio::sync::{mpsc, watch};
use tokio::time::interval;

use super::super::Fail;
use super::{Chat, TICK, Told, command, terminated};

pub(super) async fn run(
    chat: &mut Chat,
    mut deliveries: Deliveries,
    mut told: mpsc::UnboundedReceiver<Told>,
    mut states: watch::Receiver<State>,
) -> Result<(), Fail> {
    let mut lines = stdin();
    let mut tick = interval(TICK);
    let mut printed = Printed::default();
    let mut ended = false;
    loop {
        chat.do_wishes();
        printed.print(chat)?;
        if let Some(outcome) = chat.quit.take() {
            return outcome;
        }
        // The last line is stored before this ends.
        if ended && printed.answered >= printed.typed && chat.running == 0 {
            return Ok(());
        }
        tokio::select! {
            // A line waits for what the one before it asked for: after /open, it is for the conversation opened.
            line = lines.recv(), if !ended && chat.running == 0 && chat.model.connected => match line {
                Some(line) => {
                    let said = chat.model.open.is_some() && !line.trim().is_empty() && !line.starts_with('/');
                    printed.typed += u64::from(said);
                    command::enter(&mut chat.model, &line);
                }
                None => ended = true,
            },
            Some(delivery) = deliveries.next() => chat.handle_delivery(delivery),
            Some(told) = told.recv() => {
                printed.count(&told);
                chat.handle_told(told);
            }
            Ok(()) = states.changed() => chat.handle_state(&states.borrow_and_update().clone()),
            _ = tick.tick() => chat.look_at_unsent(),
            () = terminated() => return Ok(()),
        }
    }
}

fn stdin() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// What was printed already.
#[derive(Debug, Default)]
struct Printed {
    /// Conversation → the highest seq printed.
    seqs: HashMap<u64, u64>,
    notice: String,
    connection: String,
    typed: u64,
    answered: u64,
}

impl Printed {
    fn count(&mut self, told: &Told) {
        self.answered += u64::from(matches!(told, Told::Acked(_) | Told::Refused { .. } | Told::Unsendable(_)));
    }

    fn print(&mut self, chat: &Chat) -> Result<(), Fail> {
        let model = &chat.model;
        let mut out = io::stdout().lock();
        for talk in &model.talks {
            // What was there before this began is history; a first page of it is printed all the same.
            let last = self.seqs.entry(talk.id).or_insert(0);
            for (seq, line) in talk.lines.range(*last + 1..) {
                *last = *seq;
                let text = line.text.replace('\n', "\n    ");
                if line.sender == 0 {
                    writeln!(out, "[{}] {text}", talk.name)?;
                } else {
                    writeln!(out, "[{}] {}: {text}", talk.name, model.name_of(line.sender))?;
                }
            }
        }
        out.flush()?;
        if self.notice != model.notice && !model.notice.is_empty() {
            eprintln!("{}", model.notice);
        }
        self.notice.clone_from(&model.notice);
        if self.connection != model.connection {
            eprintln!("({})", model.connection);
            self.connection.clone_from(&model.connection);
        }
        Ok(())
    }
}
