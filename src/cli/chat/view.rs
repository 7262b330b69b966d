//! How a chat looks: conversations on the left, what was said on the right, the line being typed below.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph};

use super::command::COMMANDS;
use super::model::{self, Model, Talk};

/// Columns of the list of conversations.
const LIST_WIDTH: u16 = 22;
/// Below this width the list gives its place to what was said.
const NARROW: u16 = 50;

/// What the last drawing came to; scrolling needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drawn {
    /// Rows of everything that is loaded of the open conversation.
    pub(super) rows: usize,
    /// Rows of it that fit.
    pub(super) height: usize,
}

/// Draws all of it; `now` is milliseconds since 1970.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, now: u64, colour: bool) -> Drawn {
    let [body, input, status] =
        Layout::vertical([Constraint::Min(1), Constraint::Length(3), Constraint::Length(1)]).areas(frame.area());
    let history = if body.width < NARROW {
        body
    } else {
        let [list, history] = Layout::horizontal([Constraint::Length(LIST_WIDTH), Constraint::Min(1)]).areas(body);
        draw_list(frame, list, model, now, colour);
        history
    };
    let drawn = draw_history(frame, history, model, now, colour);
    draw_input(frame, input, model, now, colour);
    draw_status(frame, status, model, colour);
    if model.help {
        draw_help(frame, frame.area());
    }
    drawn
}

fn tint(colour: bool, value: Color) -> Style {
    if colour { Style::new().fg(value) } else { Style::new() }
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, model: &Model, now: u64, colour: bool) {
    let title = match model.unread() {
        0 => " conversations ".to_owned(),
        unread => format!(" {unread} unread "),
    };
    let block = Block::new().borders(Borders::RIGHT).title(title);
    let inner = block.inner(area);
    let at = model.talks.iter().position(|talk| Some(talk.id) == model.open).unwrap_or(0);
    let height = usize::from(inner.height);
    let from = at.saturating_sub(height.saturating_sub(1));
    let lines: Vec<Line<'_>> = model
        .talks
        .iter()
        .skip(from)
        .take(height)
        .map(|talk| list_line(talk, model, inner.width, now, colour))
        .collect();
    frame.render_widget(block, area);
    if lines.is_empty() {
        let words = ["none yet:", "/open @somebody"].map(Line::from).to_vec();
        frame.render_widget(Paragraph::new(words).style(Style::new().add_modifier(Modifier::DIM)), inner);
    } else {
        frame.render_widget(Paragraph::new(lines), inner);
    }
}

fn list_line<'a>(talk: &'a Talk, model: &Model, width: u16, now: u64, colour: bool) -> Line<'a> {
    let waiting = model.unsent.iter().any(|one| one.conversation == talk.id);
    let marked = talk.settings.marked_unread;
    let called = if talk.mentions > 0 { "@" } else { "" };
    let count = match talk.unread {
        0 if marked => " •".to_owned(),
        0 if waiting => " …".to_owned(),
        0 => String::new(),
        1..=999 => format!(" {called}{}", talk.unread),
        _ => format!(" {called}999+"),
    };
    let room = usize::from(width).saturating_sub(width_of(&count) + 1);
    let (pin, mute) = (talk.settings.pinned, talk.settings.muted_until > now.saturating_sub(model.birth));
    let signs = [(pin, '^'), (mute, '~'), (talk.settings.archived, '-')];
    let signs: String = signs.iter().filter(|(is, _)| *is).map(|(_, sign)| *sign).collect();
    let name = cut(&format!("{signs}{}", talk.name), room);
    let gap = " ".repeat(room.saturating_sub(width_of(&name)));
    let open = Some(talk.id) == model.open;
    let mut style = Style::new();
    if (talk.unread > 0 && !mute) || talk.mentions > 0 || marked {
        style = tint(colour, Color::Yellow).add_modifier(Modifier::BOLD);
    }
    if open {
        style = style.add_modifier(Modifier::REVERSED);
    }
    Line::styled(format!("{name}{gap}{count}"), style)
}

fn draw_history(frame: &mut Frame<'_>, area: Rect, model: &Model, now: u64, colour: bool) -> Drawn {
    let height = usize::from(area.height);
    let Some(talk) = model.open_talk() else {
        let words = [
            "",
            "  Welcome.",
            "",
            "  /open @bob      talk with bob",
            "  /join #news     join a channel",
            "  /help           everything else",
        ];
        frame.render_widget(Paragraph::new(words.map(Line::from).to_vec()), area);
        return Drawn { rows: 0, height };
    };
    let rows = history_rows(talk, model, usize::from(area.width), now, colour);
    let count = rows.len();
    let end = count.saturating_sub(model.scroll.min(count.saturating_sub(height)));
    let begin = end.saturating_sub(height);
    let shown: Vec<Line<'_>> = rows.into_iter().skip(begin).take(end - begin).collect();
    // The newest stands right above what is typed.
    let top = height.saturating_sub(shown.len());
    let below = Rect {
        y: area.y + u16::try_from(top).unwrap_or(0),
        height: area.height - u16::try_from(top).unwrap_or(0),
        ..area
    };
    frame.render_widget(Paragraph::new(shown), below);
    Drawn { rows: count, height }
}

fn history_rows<'a>(talk: &'a Talk, model: &'a Model, width: usize, now: u64, colour: bool) -> Vec<Line<'a>> {
    let dim = Style::new().add_modifier(Modifier::DIM);
    let mut rows = Vec::new();
    let above = if talk.complete {
        "— the beginning —"
    } else if talk.loading {
        "— reading older … —"
    } else if talk.loaded_from > 1 {
        "— PgUp for older —"
    } else {
        ""
    };
    if !above.is_empty() {
        rows.push(Line::styled(format!("{above:^width$}"), dim));
    }
    let digits = talk.head_seq.to_string().len();
    let is_shown = |line: &model::Line| line.expires == 0 || model.birth + line.expires > now;
    for (seq, line) in talk.lines.range(talk.loaded_from.max(1)..).filter(|(_, line)| is_shown(line)) {
        let age = age(now.saturating_sub(model.birth + line.time));
        if line.sender == 0 {
            push_wrapped(&mut rows, &format!("{age:>4} {:>digits$} ", ""), dim, "", dim, &line.text, dim, width);
            continue;
        }
        if let Some(quote) = model.quote(talk, line.reply_to) {
            let indent = " ".repeat(5 + digits + 1);
            rows.push(Line::styled(cut(&format!("{indent}┌ {quote}"), width), dim));
        }
        let own = line.sender == model.me;
        let who = if own { tint(colour, Color::Green) } else { tint(colour, colour_of(line.sender)) };
        let name = format!("{}: ", model.name_of(line.sender));
        push_wrapped(
            &mut rows,
            &format!("{age:>4} {seq:>digits$}{}", if line.calls_me { '!' } else { ' ' }),
            if line.calls_me { tint(colour, Color::Yellow).add_modifier(Modifier::BOLD) } else { dim },
            &name,
            who.add_modifier(Modifier::BOLD),
            &line.text,
            if line.recalled { dim } else { Style::new() },
            width,
        );
        push_behind(&mut rows, &model.behind(talk, *seq, line), 5 + digits + 1, dim, width);
    }
    for one in model.unsent.iter().filter(|one| one.conversation == talk.id) {
        match &one.refused {
            None => {
                push_wrapped(&mut rows, &format!("   … {:>digits$} ", ""), dim, "you: ", dim, &one.text, dim, width)
            }
            Some(why) => {
                let red = tint(colour, Color::Red);
                push_wrapped(
                    &mut rows,
                    &format!("   ! {:>digits$} ", ""),
                    red,
                    "not sent: ",
                    red,
                    &format!("{} ({why})", one.text),
                    red,
                    width,
                );
            }
        }
    }
    rows
}

/// Puts a word behind the last row, or under it where there is no room.
fn push_behind(rows: &mut Vec<Line<'_>>, behind: &str, indent: usize, style: Style, width: usize) {
    let Some(last) = rows.last_mut().filter(|_| !behind.is_empty()) else { return };
    if last.width() + 1 + width_of(behind) <= width {
        last.push_span(Span::styled(format!(" {behind}"), style));
    } else {
        rows.push(Line::styled(cut(&format!("{}{behind}", " ".repeat(indent)), width), style));
    }
}

/// Breaks a text into rows of `width`; the first begins with time and name, the others stand under the name.
#[expect(clippy::too_many_arguments, reason = "three texts, each with its style, and a width")]
fn push_wrapped(
    rows: &mut Vec<Line<'_>>,
    time: &str,
    time_style: Style,
    name: &str,
    name_style: Style,
    text: &str,
    style: Style,
    width: usize,
) {
    let indent = width_of(time);
    let mut first = true;
    for part in text.split('\n') {
        let lead = if first { indent + width_of(name) } else { indent };
        for row in wrap(part, width.saturating_sub(lead).max(8), width.saturating_sub(indent).max(8)) {
            let mut spans = Vec::with_capacity(3);
            if first {
                spans.push(Span::styled(time.to_owned(), time_style));
                spans.push(Span::styled(name.to_owned(), name_style));
            } else {
                spans.push(Span::raw(" ".repeat(indent)));
            }
            spans.push(Span::styled(row, style));
            rows.push(Line::from(spans));
            first = false;
        }
    }
}

/// Breaks at spaces where it can; the first row may be narrower than the others.
fn wrap(text: &str, first: usize, others: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let mut limit = if rows.len() == 1 { first } else { others };
        if used > 0 && used + width_of(word.trim_end()) > limit {
            rows.push(String::new());
            used = 0;
            limit = others;
        }
        for c in word.chars() {
            let wide = width_of(c.encode_utf8(&mut [0; 4]));
            if used + wide > limit && c != ' ' {
                rows.push(String::new());
                used = 0;
                limit = others;
            }
            if let Some(row) = rows.last_mut() {
                row.push(c);
            }
            used += wide;
        }
    }
    rows
}

fn draw_input(frame: &mut Frame<'_>, area: Rect, model: &Model, now: u64, colour: bool) {
    let title = match model.open_talk() {
        Some(talk) => match model.who_is_there(now, age) {
            there if there.is_empty() => format!(" to {} ", talk.name),
            there => format!(" to {} · {there} ", talk.name),
        },
        None => " /help ".to_owned(),
    };
    let style = if model.connected { Style::new() } else { tint(colour, Color::Yellow) };
    let block = Block::bordered().title(title).border_style(style);
    let inner = block.inner(area);
    // One row: the caret is always in sight.
    let shown = model.input.text().replace('\n', "⏎");
    let before = width_of(&model.input.before().replace('\n', "⏎"));
    let room = usize::from(inner.width).saturating_sub(1);
    let hidden = before.saturating_sub(room);
    frame.render_widget(block, area);
    frame.render_widget(Paragraph::new(shown).scroll((0, u16::try_from(hidden).unwrap_or(u16::MAX))), inner);
    let column = u16::try_from(before - hidden).unwrap_or(0);
    frame.set_cursor_position(Position::new(inner.x + column, inner.y));
}

fn draw_status(frame: &mut Frame<'_>, area: Rect, model: &Model, colour: bool) {
    const KEYS: &str = "Tab next  PgUp older  /help  Ctrl-Q quit";
    let unsent = model.unsent.iter().filter(|one| one.refused.is_none()).count();
    let dot = if model.connected { "●" } else { "○" };
    let waiting = if unsent > 0 { format!("{unsent} unsent, ") } else { String::new() };
    let mut left = format!("{dot} {waiting}{}", model.connection);
    if !model.notice.is_empty() {
        left.clone_from(&model.notice);
    }
    let style = match (model.connected, model.notice.is_empty()) {
        (_, false) => tint(colour, Color::Cyan),
        (true, true) => tint(colour, Color::Green),
        (false, true) => tint(colour, Color::Yellow),
    };
    let room = usize::from(area.width);
    let left = cut(&left, room.saturating_sub(1));
    let free = room.saturating_sub(width_of(&left) + 2);
    let keys = if width_of(KEYS) <= free { KEYS } else { "" };
    let gap = " ".repeat(room.saturating_sub(width_of(&left) + width_of(keys)));
    let dim = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Line::from(vec![Span::styled(left, style), Span::raw(gap), Span::styled(keys, dim)]), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let mut lines: Vec<Line<'_>> =
        COMMANDS.iter().map(|(command, what)| Line::from(format!(" {command:<27} {what}"))).collect();
    lines.push(Line::from(""));
    for (key, what) in [
        ("Tab, Shift-Tab; Alt-Enter", "next conversation, the one before; a new line"),
        ("PgUp, PgDn", "scroll; older lines are read as they are reached"),
        ("Ctrl-W, Ctrl-U, Ctrl-R", "deletes a word, the line; connects now"),
        ("Ctrl-Q, Ctrl-C; Esc", "quits, the unsent goes out next time; closes this"),
    ] {
        lines.push(Line::from(format!(" {key:<27} {what}")));
    }
    let width = (area.width).min(80);
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" help ")), place);
}

fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// The beginning of a text that fits, with a sign where something is missing.
fn cut(text: &str, room: usize) -> String {
    if width_of(text) <= room {
        return text.to_owned();
    }
    let mut fits = String::new();
    for c in text.chars() {
        if width_of(&fits) + width_of(c.encode_utf8(&mut [0; 4])) + 1 > room {
            break;
        }
        fits.push(c);
    }
    fits.push('…');
    fits
}

/// How long ago something was, in four columns.
fn age(ms: u64) -> String {
    match ms / 1_000 {
        0..60 => "now".to_owned(),
        s @ 60..3_600 => format!("{}m", s / 60),
        s @ 3_600..86_400 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// One colour for each user, always the same.
fn colour_of(user: u64) -> Color {
    const COLOURS: [Color; 6] =
        [Color::Cyan, Color::Magenta, Color::Blue, Color::LightCyan, Color::LightMagenta, Color::LightBlue];
    COLOURS[(user.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % COLOURS.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwire_client::Item;
    use longwire_client::packet::{
        Beside, Compacted, Connected, Conversation, ConversationKind, Entry, Mark, ReactionCount, Settings,
    };
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(model: &Model, width: u16, height: u16) -> (String, Drawn) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        let mut drawn = Drawn::default();
        terminal.draw(|frame| drawn = draw(frame, model, 100_000, false)).expect("drawn");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        ((0..height).map(|y| row(y) + "\n").collect(), drawn)
    }

    fn model() -> Model {
        let mut model = Model::default();
        model.handle_connected(&Connected { user: 7, ..Default::default() });
        "connected".clone_into(&mut model.connection);
        let conversation = |id, label: &str| Conversation { id, label: label.to_owned(), ..Default::default() };
        model.handle_list(vec![
            conversation(1, "Lunch"),
            conversation(2, "A label that is much too long for its place"),
        ]);
        model.names.insert(8, "bob".to_owned());
        let content = |text: &str| text.as_bytes().to_vec().into();
        for (conversation, seq, sender, text) in [
            (1, 1, 8, "shall we meet at noon, at the place by the river where we were the last time?"),
            (1, 2, 7, "yes"),
            (2, 1, 8, "ping"),
        ] {
            let entry = Entry { conversation, seq, sender, time: 30_000, content: content(text), ..Default::default() };
            model.handle_item(&Item::Entry(entry));
        }
        model.show(1);
        model.handle_saved(3, 1, "on my way".to_owned(), 0);
        model
    }

    #[test]
    fn eighty_columns_show_list_history_unsent_and_state() {
        let (text, drawn) = screen(&model(), 80, 24);
        for expected in [
            "1 unread",
            "Lunch",
            "A label that is m… 1",
            "1m 1 bob: shall we meet",
            "you: yes",
            "…   you: on my way",
            "● 1 unsent, connected",
            "to Lunch",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
        assert_eq!(drawn.height, 20);
        assert!(drawn.rows < 20);
    }

    #[test]
    fn a_group_shows_replies_mentions_edits_reactions_and_readers() {
        let mut model = model();
        let group = |id, label: &str, settings, mentions| {
            let mut one = Conversation { id, label: label.to_owned(), unread: 3, mentions, ..Default::default() };
            one.settings = Some(settings);
            one.set_kind(ConversationKind::Group);
            one
        };
        let settings = |pinned, muted_until| Settings { pinned, muted_until, ..Settings::default() };
        model.handle_list(vec![
            group(1, "Lunch", settings(true, 0), 0),
            group(2, "Noise", settings(false, u64::MAX), 2),
        ]);
        let beside = |reply_to, mentions| Some(Box::new(Beside { reply_to, mentions, ..Beside::default() }));
        let reactions = vec![ReactionCount { reaction: "👍".to_owned(), count: 2, own: true }];
        let compacted = Some(Box::new(Compacted { edit: 9, reactions, ..Compacted::default() }));
        let entry = |seq, sender, text: &str| {
            let content = text.as_bytes().to_vec().into();
            Entry { conversation: 1, seq, sender, time: 30_000, content, ..Default::default() }
        };
        for entry in [
            Entry { beside: beside(1, vec![]), compacted, ..entry(3, 7, "at the bridge") },
            Entry { beside: beside(0, vec![7]), ..entry(4, 8, "@you where?") },
            Entry { expires: 60_000, ..entry(5, 8, "gone by now") },
        ] {
            model.handle_item(&Item::Entry(entry));
        }
        model.handle_item(&Item::Mark(Mark { conversation: 1, user: 9, seq: 3, delivered: 0 }));
        let (text, _) = screen(&model, 80, 24);
        for expected in [
            "^Lunch",
            "~Noise            @3",
            "┌ 1 bob: shall we meet at noon, at the place by th…",
            "3 you: at the bridge (edited) 👍 2* ✓ read 2",
            "4!bob: @you where?",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
        assert!(!text.contains("gone by now"), "it has expired\n{text}");
    }

    #[test]
    fn the_whole_help_fits_a_common_terminal() {
        let mut model = model();
        model.help = true;
        let (text, _) = screen(&model, 80, 24);
        for (command, what) in COMMANDS {
            assert!(text.contains(command), "{command} in\n{text}");
            assert!(text.contains(what), "{what} in\n{text}");
        }
        assert!(text.contains("closes this"), "{text}");
    }

    #[test]
    fn small_screens_show_what_fits() {
        for (width, height) in [(1, 1), (10, 4), (20, 5), (49, 10), (200, 60)] {
            let mut model = model();
            screen(&model, width, height);
            model.help = true;
            model.input.insert_text("a long line that does not fit into the narrow ones, and never could");
            screen(&model, width, height);
        }
    }

    #[test]
    fn rows_break_at_spaces_and_long_words_break_anywhere() {
        assert_eq!(wrap("one two three", 7, 9), ["one two ", "three"]);
        assert_eq!(wrap("abcdefghij", 4, 6), ["abcd", "efghij"]);
        assert_eq!(wrap("", 4, 4), [""]);
        assert_eq!(wrap("日本語", 4, 4), ["日本", "語"]);
    }
}
