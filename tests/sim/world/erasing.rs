//! What must be so of users that are erased, beside what the model and the devices hold: it comes to an end, and what they
//! wrote is in no file then, whatever became of the process meanwhile.

use longwire::store::PageLimit;

use super::*;

impl World {
    /// Whose erasure has not come to its end, which a log in memory, without files, never says.
    pub(super) fn unfinished(&self) -> Option<u64> {
        let has_files = matches!(self.ground, Ground::Disk(..));
        let is_over = |erased: &crate::model::Erased| erased.is_done || (!has_files && erased.cleared.is_some());
        self.model.erased.iter().find(|(_, erased)| !is_over(erased)).map(|(user, _)| *user)
    }

    /// An erasure that said it is done is: nothing that the user wrote can be read, nor stands in any file.
    pub(super) fn check_erased_files(&mut self) {
        let done: Vec<u64> =
            self.model.erased.iter().filter(|(_, erased)| erased.is_done).map(|(user, _)| *user).collect();
        let Some(broker) = self.broker.as_ref().filter(|_| !done.is_empty()) else { return };
        let history = broker.with_log(|log| log.log().history());
        let page = PageLimit { entries: usize::MAX, bytes: usize::MAX };
        let mut words = BTreeSet::new();
        for (id, seqs) in done.iter().flat_map(|user| self.model.written_by(*user)) {
            for seq in seqs {
                let entry = self.model.conversations[&id].entry(seq).expect("it was written");
                words.extend(self.words(entry.sender, &entry.item));
                let (of, seq) = (ConversationId(id), longwire_protocol::Seq(seq));
                let Ok(read) = history.range(of, seq, seq, false, page) else { continue };
                let is_blank = read.iter().all(|stored| stored.item != entry.item);
                assert!(is_blank, "{id}/{seq} is erased, and can be read");
            }
        }
        let Ground::Disk(disk, _) = &self.ground else { return };
        for name in disk.names() {
            let bytes = disk.bytes(&name);
            let found = marks(&bytes).find(|word| words.contains(*word));
            let found = found.map(String::from_utf8_lossy);
            assert_eq!(found, None, "what was erased stands in {name}");
        }
        self.coverage.count("files searched for what was erased");
    }

    /// What people say begins so: the number of the device, and a number; long enough to be nobody else's.
    fn words(&self, user: u64, item: &[u8]) -> Vec<Vec<u8>> {
        let name = self.model.name(user);
        let is_own = |word: &&[u8]| {
            let device = usize::from(word[0] - b'0');
            word.len() > 7 && self.devices.get(device).map(|device| device.user.as_str()) == name
        };
        marks(item).filter(is_own).map(<[u8]>::to_vec).collect()
    }
}

/// Whatever looks like the beginning of what somebody said.
fn marks(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let dashes = bytes.windows(3).enumerate();
    let begins = dashes.filter(|(_, of)| of[0].is_ascii_digit() && of[1] == b'-' && of[2].is_ascii_digit());
    begins.map(|(at, _)| {
        let digits = bytes[at + 2..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        &bytes[at..at + 2 + digits]
    })
}
