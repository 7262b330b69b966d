//! What an outbox that was restored from a copy holds, and what became of it: searched for in history, before anything
//! is sent.
//!
//! A copy does not know what was sent after it was made. The broker does: every entry of this device stands in history
//! with its incarnation and message id (SPEC R8-3), and ids rise with seqs (R5.4-2). So each conversation concerned is
//! read backwards from its head until an own entry that is older than anything held (R5.2-9). That needs neither a
//! cursor nor an application that reads. A value: pages go in, requests and in the end a [`Verdict`] come out.

use std::collections::BTreeMap;

use longwire_protocol::packet::{
    self, EntryKind, HeadReason, HistoryPage, HistoryRequest, Role, item, publish::Action,
};

/// How many entries a page is asked for: the most that the protocol gives.
const PAGE: u32 = 200;

/// An outbox that was restored from a copy has settled what it held: handed over once, when that is on disk. It says
/// what became of each publish that may have been sent in a life that the copy does not know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    /// The incarnation of the copy.
    pub from: u64,
    /// The one that this client goes on under.
    pub incarnation: u64,
    /// Found in history: they are stored, with seq and time, and are not sent again. Without their content.
    pub stored: Vec<packet::Own>,
    /// The message ids of what is surely not stored, or does no harm twice: it is sent now, under the same ids.
    pub sent: Vec<u64>,
    /// The message ids of what may be stored or not. They are not sent: see [`Client::doubtful`].
    ///
    /// [`Client::doubtful`]: crate::Client::doubtful
    pub doubtful: Vec<u64>,
}

/// The search for what a restored outbox holds.
#[derive(Debug)]
pub(crate) struct Settling {
    from: u64,
    /// What is still to be searched; the last is under way.
    searches: Vec<Search>,
    verdict: Verdict,
}

/// What became of what was held.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) stored: Vec<packet::Own>,
    pub(crate) sent: Vec<u64>,
    pub(crate) doubtful: Vec<u64>,
}

/// The search in one conversation.
#[derive(Debug, Default)]
struct Search {
    conversation: u64,
    held: BTreeMap<u64, packet::Publish>,
    lowest: u64,
    /// Where the next page begins; 0: at the head.
    next_seq: u64,
    /// Something is gone from history that may have been what is searched.
    has_gaps: bool,
}

impl Settling {
    /// `held` is what may have been sent under incarnation `from`, or a later one that the copy does not know.
    pub(crate) fn new<'a>(from: u64, held: impl Iterator<Item = (u64, &'a packet::Publish)>) -> Self {
        let mut verdict = Verdict::default();
        let mut searches: BTreeMap<u64, Search> = BTreeMap::new();
        for (id, publish) in held {
            match publish.action {
                // Found or merged, however often: nothing is to be known.
                Some(
                    Action::OpenDirect(_)
                    | Action::OpenChannel(_)
                    | Action::SetMark(_)
                    | Action::Hide(_)
                    | Action::SetWill(_)
                    | Action::SetLevel(_)
                    | Action::ShowPresence(_)
                    | Action::HideMarks(_)
                    | Action::SetPush(_)
                    | Action::EraseUser(_),
                ) => verdict.sent.push(id),
                // No entry of their conversation carries their id, and a second time would be a second group, or undo what came after.
                Some(
                    Action::CreateGroup(_)
                    | Action::Join(_)
                    | Action::SetSettings(_)
                    | Action::Ban(_)
                    | Action::SetJoinKey(_)
                    | Action::SetProfile(_)
                    | Action::SetContact(_)
                    | Action::Block(_)
                    | Action::NameDevice(_)
                    | Action::RevokeDevice(_)
                    | Action::SetAccount(_),
                ) => verdict.doubtful.push(id),
                Some(
                    Action::Leave(_)
                    | Action::SetRole(_)
                    | Action::SetLabel(_)
                    | Action::SetInfo(_)
                    | Action::Edit(_)
                    | Action::Recall(_)
                    | Action::React(_)
                    | Action::SetRetention(_),
                )
                | None => {
                    let conversation = publish.conversation;
                    let search = searches.entry(conversation).or_insert_with(|| Search {
                        conversation,
                        lowest: id,
                        ..Search::default()
                    });
                    search.held.insert(id, publish.clone());
                }
            }
        }
        Self { from, searches: searches.into_values().rev().collect(), verdict }
    }

    /// The incarnation that the outbox has on its disk.
    pub(crate) const fn from(&self) -> u64 {
        self.from
    }

    /// The page to ask for next; `None` once everything is settled.
    pub(crate) fn next_request(&self) -> Option<HistoryRequest> {
        let search = self.searches.last()?;
        let (conversation, from_seq) = (search.conversation, search.next_seq);
        Some(HistoryRequest { conversation, from_seq, limit: PAGE, backwards: true, compact: false })
    }

    /// The page that was asked for, as a session of this incarnation got it.
    pub(crate) fn handle_page(&mut self, incarnation: u64, page: HistoryPage) {
        let Some(search) = self.searches.last_mut() else { return };
        // Whether an own entry was met that is older than anything held.
        let mut is_past = false;
        search.next_seq = page.next_seq;
        for item in page.items {
            match item.kind {
                Some(item::Kind::Own(mut own)) => {
                    if own.incarnation == 0 {
                        own.incarnation = incarnation;
                    }
                    // Also below the place where the search ends: the rest of the page is as good as any.
                    is_past |= (own.incarnation, own.message_id) < (self.from, search.lowest);
                    let is_it = own.incarnation >= self.from
                        && search.held.get(&own.message_id).zip(own.entry.as_ref()).is_some_and(|(p, e)| is_of(p, e));
                    if is_it {
                        search.held.remove(&own.message_id);
                        own.entry = None;
                        self.verdict.stored.push(own);
                    }
                }
                // Never readable to this user, so never written by it either.
                Some(item::Kind::Head(head)) if head.reason() == HeadReason::NotYours => {}
                Some(item::Kind::Head(_)) => search.has_gaps |= !is_past,
                _ => {}
            }
        }
        if is_past || page.next_seq == 0 || search.held.is_empty() {
            self.end_search();
        }
    }

    /// The conversation that was asked for cannot be read: nobody can tell what is in it.
    pub(crate) fn handle_unreadable(&mut self) {
        if let Some(search) = self.searches.last_mut() {
            search.has_gaps = true;
        }
        self.end_search();
    }

    fn end_search(&mut self) {
        let Some(search) = self.searches.pop() else { return };
        for (id, publish) in search.held {
            // A change that changed nothing has no entry; and what it was about may have moved on.
            if publish.action.is_some() || search.has_gaps {
                self.verdict.doubtful.push(id);
            } else {
                self.verdict.sent.push(id);
            }
        }
    }

    /// What became of everything, once no request is left.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        if !self.searches.is_empty() {
            return None;
        }
        let mut verdict = self.verdict.clone();
        verdict.stored.sort_unstable_by_key(|own| own.message_id);
        verdict.sent.sort_unstable();
        verdict.doubtful.sort_unstable();
        Some(verdict)
    }
}

/// Whether the entry is what this publish wrote. The id alone does not say so: a copy gives ids anew that were given
/// in the life it does not know.
fn is_of(publish: &packet::Publish, entry: &packet::Entry) -> bool {
    let membership = entry.membership.as_ref().filter(|_| entry.kind() == EntryKind::Membership);
    match &publish.action {
        None => entry.kind() == EntryKind::Message && entry.content == publish.content,
        Some(Action::SetInfo(set)) => entry.kind() == EntryKind::Info && entry.info == set.info,
        Some(Action::SetLabel(set)) => entry.kind() == EntryKind::Label && entry.label == set.label,
        Some(Action::SetRole(set)) => membership.is_some_and(|one| one.name == set.user && one.role == set.role),
        Some(Action::Edit(edit)) => {
            entry.kind() == EntryKind::Edit && entry.edit == edit.seq && entry.content == publish.content
        }
        Some(Action::Recall(recall)) => entry.recall.as_ref().is_some_and(|one| one.seq == recall.seq),
        Some(Action::React(react)) => entry.reaction.as_ref() == Some(react),
        Some(Action::Leave(_)) => membership.is_some_and(|one| one.role() == Role::None),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwire_protocol::packet::{Head, Item, Own};

    fn message(conversation: u64, content: &str) -> packet::Publish {
        packet::Publish { conversation, content: content.to_owned().into(), ..Default::default() }
    }

    fn own(incarnation: u64, message_id: u64, content: &str) -> Item {
        let entry = packet::Entry { content: content.to_owned().into(), ..Default::default() };
        let own = Own { conversation: 1, incarnation, message_id, entry: Some(entry), ..Default::default() };
        Item { kind: Some(item::Kind::Own(own)) }
    }

    fn head(reason: HeadReason) -> Item {
        Item { kind: Some(item::Kind::Head(Head { conversation: 1, reason: reason.into(), ..Default::default() })) }
    }

    fn settle(held: &[(u64, packet::Publish)], pages: Vec<Vec<Item>>) -> Verdict {
        let mut settling = Settling::new(3, held.iter().map(|(id, publish)| (*id, publish)));
        let last = pages.len() as u64;
        for (page, items) in (1..).zip(pages) {
            settling.next_request().expect("something is still searched");
            let next_seq = if page == last { 0 } else { 1_000 - page };
            settling.handle_page(5, HistoryPage { items, next_seq, head_seq: 1_000 });
        }
        settling.verdict().expect("settled")
    }

    fn ids(verdict: &Verdict) -> (Vec<u64>, &[u64], &[u64]) {
        (verdict.stored.iter().map(|own| own.message_id).collect(), &verdict.sent, &verdict.doubtful)
    }

    #[test]
    fn what_history_has_is_stored_and_the_rest_is_not() {
        let held = [(5, message(1, "five")), (6, message(1, "six")), (7, message(1, "seven"))];
        let pages = vec![vec![own(3, 9, "later"), own(3, 6, "six")], vec![own(3, 5, "five"), own(3, 4, "four")]];
        assert_eq!(ids(&settle(&held, pages)), (vec![5, 6], &[7][..], &[][..]));
    }

    #[test]
    fn an_id_that_was_given_to_something_else_is_not_it() {
        let held = [(5, message(1, "typed after the copy"))];
        let pages = vec![vec![own(3, 5, "typed in the life that the copy does not know")]];
        assert_eq!(ids(&settle(&held, pages)), (vec![], &[5][..], &[][..]));
    }

    #[test]
    fn what_an_earlier_settling_of_the_same_copy_sent_is_found() {
        let held = [(5, message(1, "five"))];
        let verdict = settle(&held, vec![vec![own(0, 9, "of this session"), own(4, 5, "five")]]);
        assert_eq!(ids(&verdict), (vec![5], &[][..], &[][..]));
        assert_eq!(verdict.stored[0].incarnation, 4);
    }

    #[test]
    fn the_search_ends_at_the_first_own_entry_that_is_older() {
        let held = [(5, message(1, "five"))];
        for older in [own(3, 4, "five"), own(2, 900, "five")] {
            let mut settling = Settling::new(3, held.iter().map(|(id, publish)| (*id, publish)));
            settling.handle_page(5, HistoryPage { items: vec![older], next_seq: 400, head_seq: 500 });
            assert_eq!(ids(&settling.verdict().expect("settled")), (vec![], &[5][..], &[][..]));
        }
    }

    #[test]
    fn what_history_has_lost_is_doubtful_but_not_above_where_the_search_ends() {
        let held = [(5, message(1, "five"))];
        let lost = vec![vec![head(HeadReason::Expired)]];
        assert_eq!(ids(&settle(&held, lost)), (vec![], &[][..], &[5][..]));
        let below = vec![vec![own(3, 4, "four"), head(HeadReason::Expired)]];
        assert_eq!(ids(&settle(&held, below)), (vec![], &[5][..], &[][..]));
        let before_the_user_came = vec![vec![head(HeadReason::NotYours)]];
        assert_eq!(ids(&settle(&held, before_the_user_came)), (vec![], &[5][..], &[][..]));
        let mut settling = Settling::new(3, held.iter().map(|(id, publish)| (*id, publish)));
        settling.handle_unreadable();
        assert_eq!(ids(&settling.verdict().expect("settled")), (vec![], &[][..], &[5][..]));
    }

    #[test]
    fn what_writes_no_entry_is_repeated_where_that_is_harmless_and_doubtful_elsewhere() {
        let act = |conversation, action| packet::Publish { conversation, action: Some(action), ..Default::default() };
        let set_label = |label: &str| act(1, Action::SetLabel(packet::SetLabel { label: label.to_owned() }));
        let held = [
            (1, act(0, Action::OpenDirect(packet::OpenDirect { user: "bob".to_owned() }))),
            (2, act(0, Action::CreateGroup(packet::CreateGroup::default()))),
            (3, act(0, Action::OpenChannel(packet::OpenChannel { name: "news".to_owned() }))),
            (4, act(2, Action::Join(packet::Join::default()))),
            (5, act(1, Action::SetMark(packet::SetMark { seq: 5 }))),
            (6, set_label("found")),
            (7, set_label("not found")),
        ];
        let mut found = own(3, 6, "");
        if let Some(item::Kind::Own(Own { entry: Some(entry), .. })) = &mut found.kind {
            entry.set_kind(EntryKind::Label);
            entry.label = "found".to_owned();
        }
        assert_eq!(ids(&settle(&held, vec![vec![found]])), (vec![6], &[1, 3, 5][..], &[2, 4, 7][..]));
    }
}
