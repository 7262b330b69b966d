//! Reads about users: profiles, one's own contacts, blocks and devices, and, for administrators, accounts.

use longwire_protocol::packet;
use longwire_protocol::reason::{Reason, Refusal};
use longwire_protocol::{DeviceId, PARTITIONS, UserId};

use super::limits::{ACCOUNTS_PARTITIONS, PAGE_ITEMS_MAX};
use super::outbox::Session;
use super::query::shares;
use super::rows::{Counted, partition};
use super::view::{Reader, Rows as _};
use crate::mutation::Mutation;

/// How a user shows itself to the session's, if the two share a conversation and it takes anything from that one. Costs a walk
/// over all conversations of the one that is in fewer.
#[must_use]
pub fn profile(rows: &Reader<'_>, session: &Session, user: UserId) -> Option<packet::UserProfile> {
    // Both are asked for before either is judged: what is cold is loaded at once.
    let (is_refused, shares) = (rows.refuses(user, session.user), shares(rows, session.user, user));
    if (is_refused && !Mutation::ProfilesIgnoreBlocks.is_planted()) || !shares {
        return None;
    }
    let profile = rows.profile(user).map(|row| packet::Profile {
        display_name: row.display_name.to_string(),
        picture: row.picture.to_string(),
        data: row.data.to_vec().into(),
    });
    Some(packet::UserProfile { user: user.0, name: name(rows, user), profile })
}

/// A page of the user's contacts.
#[must_use]
pub fn contacts(rows: &Reader<'_>, session: &Session, request: &packet::ContactsRequest) -> packet::ContactsPage {
    let contacts = rows.user(session.user).map_or(0, |row| row.contacts);
    let limit = (request.limit as usize).clamp(1, PAGE_ITEMS_MAX);
    let from = match u32::try_from(request.before) {
        Ok(0) | Err(_) => contacts,
        Ok(before) => (before - 1).min(contacts),
    };
    let mut page = packet::ContactsPage::default();
    // Downwards: when one goes, the last one takes its slot, and that was passed already.
    let slots: Vec<u32> = (0..from).rev().take(limit).collect();
    for slot in &slots {
        let Some(other) = rows.contact_in(session.user, *slot) else { continue };
        let name = name(rows, other);
        let Some(contact) = rows.contact(session.user, other) else { continue };
        let (nick, data) = (contact.nick.to_string(), contact.data.to_vec().into());
        page.contacts.push(packet::Contact { user: other.0, name, nick, data, removed: false });
    }
    page.next = slots.last().filter(|slot| **slot > 0).map_or(0, |slot| u64::from(*slot) + 1);
    page
}

/// A page of those whom the user blocks.
#[must_use]
pub fn blocked(rows: &Reader<'_>, session: &Session, request: &packet::BlockedRequest) -> packet::BlockedPage {
    let users = rows.refusals(session.user).map_or(&[][..], |refuses| &refuses.users);
    let from = users.partition_point(|user| user.0 <= request.after_user);
    let limit = (request.limit as usize).clamp(1, PAGE_ITEMS_MAX);
    let named = |user: &UserId| packet::Blocked { user: user.0, name: name(rows, *user), undone: false };
    let page: Vec<_> = users[from..].iter().take(limit).map(named).collect();
    let next = if from + page.len() < users.len() { page.last().map_or(0, |last| last.user) } else { 0 };
    packet::BlockedPage { users: page, next }
}

/// The user's devices; `online` says which are.
#[must_use]
pub fn devices(rows: &Reader<'_>, session: &Session, online: impl Fn(DeviceId) -> bool) -> packet::DevicesPage {
    let devices = rows.user(session.user).map_or(&[][..], |row| &row.devices);
    let device = |id: &DeviceId| {
        let row = rows.device(*id)?;
        Some(packet::Device {
            device: id.0,
            name: row.name.to_string(),
            label: row.label.to_string(),
            created: row.created.0,
            seen: row.seen.0,
            online: online(*id),
            own: *id == session.device,
            push: rows.push(session.user, *id).map_or_else(String::new, |push| push.provider.name().to_owned()),
        })
    };
    packet::DevicesPage { devices: devices.iter().filter_map(device).collect() }
}

/// A page of all users, for an administrator: partition by partition, since that is how ids are given.
///
/// # Errors
/// *forbidden* for everyone else.
pub fn accounts(
    rows: &Reader<'_>,
    session: &Session,
    request: &packet::AccountsRequest,
) -> Result<packet::AccountsPage, Refusal> {
    if !session.grants.load().is_admin {
        return Err(Refusal::connection(Reason::Forbidden).because("only an administrator does this"));
    }
    let limit = (request.limit as usize).clamp(1, PAGE_ITEMS_MAX);
    let mut page = packet::AccountsPage::default();
    let (first, mut after) = (u64::from(partition(request.after_user)), request.after_user / PARTITIONS);
    for in_partition in first..PARTITIONS {
        if in_partition == first + ACCOUNTS_PARTITIONS {
            // The number 0 is nobody's: the next page begins with this partition.
            page.next = in_partition;
            break;
        }
        let newest = rows.counter(Counted::Users, in_partition as u16);
        for number in after + 1..=newest {
            if page.accounts.len() == limit {
                page.next = (number - 1) * PARTITIONS + in_partition;
                return Ok(page);
            }
            let id = UserId(number * PARTITIONS + in_partition);
            let has_password = rows.password(id).is_some();
            let account = rows.user(id).map(|row| packet::Account {
                user: id.0,
                name: row.name.to_string(),
                has_password,
                closed: row.is_closed,
                devices: row.devices.len() as u32,
                conversations: row.conversations,
            });
            page.accounts.extend(account.or_else(|| Some(packet::Account { user: id.0, ..Default::default() })));
        }
        after = 0;
    }
    Ok(page)
}

fn name(rows: &Reader<'_>, user: UserId) -> String {
    rows.user(user).map_or_else(String::new, |row| row.name.to_string())
}
