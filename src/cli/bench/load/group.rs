//! A group of many members, most of whom are never there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use longwire_client::packet::{self, Role, publish::Action};

use super::crew;
use super::party::{Broker, Party, Place};
use super::wire::WireError;
use crate::cli::Fail;

/// How many add members at the same time. None of them may make more than ten thousand at once.
const ADMINS: usize = 16;
/// Those and the owner: members beside the ones that are asked for, and never there.
pub(in crate::cli::bench) const STAFF: usize = ADMINS + 1;

/// Makes a group with these members.
pub(in crate::cli::bench) async fn open(broker: &Broker, name: &str, members: Vec<String>) -> Result<Place, Fail> {
    let admins: Vec<String> = (0..ADMINS).map(|number| format!("{name}-admin{number}")).collect();
    let mut owner = broker.connect(&format!("{name}-owner"), None).await?;
    let users = admins.clone();
    let create = packet::CreateGroup { label: name.to_owned(), users, ..Default::default() };
    let group = act(&mut owner, 1, 0, Action::CreateGroup(create)).await?;
    for (admin, id) in admins.iter().zip(2..) {
        let user = admin.clone();
        act(&mut owner, id, group, Action::SetRole(packet::SetRole { user, role: Role::Admin.into() })).await?;
    }
    owner.close().await;
    let members = Arc::new(Mutex::new(VecDeque::from(members)));
    crew::work(admins.into_iter().map(|admin| {
        let (broker, members) = (broker.clone(), Arc::clone(&members));
        async move {
            let mut admin = broker.connect(&admin, None).await?;
            let next = || members.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let mut id = 0;
            while let Some(user) = next() {
                id += 1;
                let role = Role::Member.into();
                act(&mut admin, id, group, Action::SetRole(packet::SetRole { user, role })).await?;
            }
            admin.close().await;
            Ok(())
        }
    }))
    .await?;
    Ok(Place::Conversation(group))
}

/// Does it, and waits for its ack; returns the conversation.
async fn act(party: &mut Party, id: u64, conversation: u64, action: Action) -> Result<u64, WireError> {
    match party {
        Party::Longwire(wire) => {
            let action = Some(action);
            let first_unanswered = id;
            let publish =
                packet::Publish { conversation, message_id: id, first_unanswered, action, ..Default::default() };
            Ok(wire.publish_one(publish).await?.conversation)
        }
        #[cfg(feature = "mqtt-peer")]
        Party::Mqtt(_) => Err(WireError::Broken("MQTT has no groups".to_owned())),
    }
}
