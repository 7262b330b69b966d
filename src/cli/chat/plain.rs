//! The chat without a screen: lines in, lines out. For pipes, and for terminals that are none.

use std::collections::HashMap;
use std::io::{self, BufRead as _, Write as _};

use longwire_client::{Deliveries, State};
use tokio::sync::{mpsc, watch};
use tokio::time::interval;

use super::super::Fail;
use super::model::{Line, Model, Talk};
use super::{Chat, TICK, Told, command, terminated, unix_ms};

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
    // A command that waits until what was said before it is stored: it may name that.
    let mut held: Option<String> = None;
    loop {
        if let Some(line) = held.take_if(|_| printed.answered >= chat.said && chat.running == 0) {
            command::enter(&mut chat.model, &line, unix_ms());
        }
        chat.do_wishes();
        printed.print(chat)?;
        if let Some(outcome) = chat.quit.take() {
            return outcome;
        }
        // The last line is stored before this ends.
        if ended && held.is_none() && printed.answered >= chat.said && chat.running == 0 {
            return Ok(());
        }
        tokio::select! {
            // A line waits for what the one before it asked for: after /open, it is for the conversation opened.
            line = lines.recv(), if !ended && held.is_none() && chat.running == 0 && chat.model.connected => match line {
                Some(line) if line.starts_with('/') => held = Some(line),
                Some(line) => command::enter(&mut chat.model, &line, unix_ms()),
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
    answered: u64,
}

impl Printed {
    fn count(&mut self, told: &Told) {
        self.answered += u64::from(matches!(told, Told::Acked(_) | Told::Refused { .. } | Told::Unsendable(_)));
    }

    fn print(&mut self, chat: &mut Chat) -> Result<(), Fail> {
        let altered = chat.model.take_altered();
        let model = &chat.model;
        let mut out = io::stdout().lock();
        for talk in &model.talks {
            // What was there before this began is history; a first page of it is printed all the same.
            let last = self.seqs.entry(talk.id).or_insert(0);
            let printed = *last;
            // A name that is being asked for is waited for.
            let named = |line: &Line| line.sender == 0 || model.names.contains_key(&line.sender) || chat.running == 0;
            // What changed since it was printed is printed again.
            let again =
                altered.range((talk.id, 0)..=(talk.id, printed)).filter_map(|(_, seq)| talk.lines.get_key_value(seq));
            for (seq, line) in again.chain(talk.lines.range(printed + 1..).take_while(|(_, line)| named(line))) {
                *last = (*last).max(*seq);
                writeln!(out, "[{}] {}", talk.name, plain_line(model, talk, *seq, line))?;
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

/// A line with its number, by which commands name it; what calls this user is marked.
fn plain_line(model: &Model, talk: &Talk, seq: u64, line: &Line) -> String {
    let text = line.text.replace('\n', "\n    ");
    if line.sender == 0 {
        return text;
    }
    let called = if line.calls_me { "! " } else { "" };
    let quote = model.quote(talk, line.reply_to).map_or_else(String::new, |quote| format!("(to {quote}) "));
    let behind = model.behind(talk, seq, line);
    let gap = if behind.is_empty() { "" } else { "  " };
    format!("{seq} {called}{}: {quote}{text}{gap}{behind}", model.name_of(line.sender))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_says_all_that_the_screen_says() {
        let mut model = Model::default();
        model.me = 7;
        model.names.extend([(7, "you".to_owned()), (8, "bob".to_owned())]);
        let mut talk = Talk::default();
        let asked = Line { sender: 8, text: "noon?".to_owned(), calls_me: true, ..Line::default() };
        talk.lines.insert(3, asked.clone());
        assert_eq!(plain_line(&model, &talk, 3, &asked), "3 ! bob: noon?");
        let reply = Line { sender: 7, text: "yes".to_owned(), reply_to: 3, edited: true, ..Line::default() };
        assert_eq!(plain_line(&model, &talk, 4, &reply), "4 you: (to 3 bob: noon?) yes  (edited)");
    }
}
