//! Holds the promises of routing against what a check of the store has read: the state, with the frames after it, must
//! say of every conversation what its entries say.

use std::collections::HashMap;

use longwire_protocol::{ConversationId, Seq};

use super::fold::fold_frame;
use super::rows::{Key, Row};
use super::state::State;
use super::view::{Overlay, Reader, Rows as _, View};
use crate::store::{Frame, Head, Visitor};

/// See the module. Give it to the store's check.
#[derive(Debug, Default)]
pub struct Audit {
    state: State,
    overlay: Overlay,
    heads: HashMap<ConversationId, Head>,
    begins: HashMap<ConversationId, Seq>,
    problems: Vec<String>,
}

impl Visitor for Audit {
    fn state_row(&mut self, key: &[u8], value: &[u8]) {
        if let Err(error) = self.state.load_row(key, value) {
            self.problems.push(error.to_string());
        }
    }

    fn frame(&mut self, frame: &Frame) {
        if let Err(error) = fold_frame(&mut View::new(&self.state, &mut self.overlay), frame) {
            self.problems.push(error.to_string());
        }
        self.overlay.merge(&mut self.state);
    }

    fn begins(&mut self, conversation: ConversationId, seq: Seq) {
        self.begins.insert(conversation, seq);
    }

    fn head(&mut self, head: Head) {
        self.heads.insert(head.conversation, head);
    }

    fn problems(&mut self) -> Vec<String> {
        let mut problems = std::mem::take(&mut self.problems);
        let reader = Reader::new(&self.state);
        for (key, row) in self.state.rows() {
            let (Key::Conversation(id), Row::Conversation(conversation)) = (key, row) else { continue };
            let (id, head) = (*id, conversation.head);
            match self.heads.remove(&id) {
                Some(found)
                    if (found.seq, found.position, found.countable) != (head.seq, head.position, head.countable) =>
                {
                    problems.push(format!(
                        "conversation {id}: its state ends with entry {} at {}, its entries with {} at {}",
                        head.seq, head.position.0, found.seq, found.position.0
                    ));
                }
                Some(_) => {}
                None if head.seq >= conversation.more.kept.first.max(Seq(1)) && head.position >= self.state.floor => {
                    problems
                        .push(format!("conversation {id}: its state has {} entries, its entries are gone", head.seq));
                }
                None => {}
            }
            if let Some(seq) = self.begins.remove(&id).filter(|seq| *seq > conversation.more.kept.first) {
                problems.push(format!("conversation {id} begins with entry {seq}"));
            }
            let members = || reader.members(id).iter().filter_map(|user| Some((user, reader.member(id, *user)?)));
            let active = members().filter(|(_, member)| member.is_active()).count();
            if active != conversation.members as usize {
                problems.push(format!("conversation {id}: {active} members, but {} are counted", conversation.members));
            }
            for (user, member) in members() {
                if member.mark > head.seq || member.mark_countable > head.countable {
                    problems.push(format!("conversation {id}: user {user} has read beyond its end"));
                }
                if reader.user(*user).is_none() {
                    problems.push(format!("conversation {id}: its member {user} is unknown"));
                }
            }
        }
        for id in self.heads.keys() {
            problems.push(format!("conversation {id} has entries and no state"));
        }
        problems
    }
}
