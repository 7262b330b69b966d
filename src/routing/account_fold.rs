//! The fold of what concerns users and devices: profiles, contacts, blocks, devices that come and go, accounts.

use longwire_protocol::packet::{self, DeviceChangeKind, Level};
use longwire_protocol::{ConversationId, DeviceId, Incarnation, LogTime, MessageId, Seq, UserId};

use super::fold::Body;
use super::levels::Levels;
use super::push::fold_push_taken;
use super::rows::{Contact, Device, Key, Profile, Refuses, Row, Secret, User};
use super::view::{Rows as _, View};

impl Body {
    /// What an entry of an inbox says about its own user; `None` for every other entry.
    pub(super) fn of_account(entry: &packet::Entry) -> Option<Self> {
        if let Some(profile) = &entry.profile {
            return Some(Self::Profile(Profile {
                display_name: profile.display_name.as_str().into(),
                picture: profile.picture.as_str().into(),
                data: profile.data.to_vec().into(),
            }));
        }
        if let Some(contact) = &entry.contact {
            return Some(Self::Contact {
                other: UserId(contact.user),
                nick: contact.nick.as_str().into(),
                data: contact.data.to_vec().into(),
                is_removed: contact.removed,
            });
        }
        if let Some(blocked) = &entry.blocked {
            return Some(Self::Blocked { other: UserId(blocked.user), is_undone: blocked.undone });
        }
        let change = entry.device.as_ref()?;
        Some(Self::Device { device: DeviceId(change.device), label: change.label.as_str().into(), kind: change.kind() })
    }
}

/// Folds an entry that `user` got into its inbox.
pub(super) fn fold_own(view: &mut View<'_>, user: UserId, time: LogTime, body: &Body) {
    match body {
        Body::Profile(profile) => view.put(Key::Profile(user), Some(Row::Profile(profile.clone()))),
        Body::Contact { other, is_removed: true, .. } => remove_contact(view, user, *other),
        Body::Contact { other, nick, data, is_removed: false } => {
            let slot = view.contact(user, *other).map(|contact| contact.slot);
            let slot = slot.unwrap_or_else(|| {
                let slot = view.user(user).map_or(0, |row| row.contacts);
                view.put(Key::ContactSlot(user, slot), Some(Row::ContactSlot(*other)));
                update_user(view, user, |row| row.contacts = slot + 1);
                slot
            });
            let contact = Contact { slot, nick: nick.clone(), data: data.clone() };
            view.put(Key::Contact(user, *other), Some(Row::Contact(contact)));
        }
        Body::Blocked { other, is_undone } => {
            let mut refuses = view.refusals(user).cloned().unwrap_or_default();
            if *is_undone {
                refuses.unblock(*other);
            } else {
                let member = view.direct(user, *other).and_then(|id| view.member(id, user));
                refuses.block(*other, member.map_or(Seq(0), |member| member.mark));
            }
            put_refuses(view, user, refuses);
        }
        Body::Device { device, label, kind } => match kind {
            DeviceChangeKind::DeviceAdded => {}
            DeviceChangeKind::DeviceNamed => update_device(view, *device, |row| row.label.clone_from(label)),
            DeviceChangeKind::DeviceRevoked => {
                update_device(view, *device, |row| {
                    row.tokens_until = time;
                    row.generation += 1;
                });
                forget_device(view, user, *device);
            }
            DeviceChangeKind::DeviceExpired => forget_device(view, user, *device),
        },
        _ => {}
    }
}

/// The last contact takes the slot that comes free, so that slots have no hole.
fn remove_contact(view: &mut View<'_>, user: UserId, other: UserId) {
    let (Some(slot), Some(contacts)) =
        (view.contact(user, other).map(|contact| contact.slot), view.user(user).map(|row| row.contacts))
    else {
        return;
    };
    let last = contacts.saturating_sub(1);
    if let Some(moved) = view.contact_in(user, last).filter(|_| slot != last) {
        view.put(Key::ContactSlot(user, slot), Some(Row::ContactSlot(moved)));
        view.update(Key::Contact(user, moved), |row| {
            if let Row::Contact(contact) = row {
                contact.slot = slot;
            }
        });
    }
    view.put(Key::ContactSlot(user, last), None);
    view.put(Key::Contact(user, other), None);
    update_user(view, user, |row| row.contacts = last);
}

fn put_refuses(view: &mut View<'_>, user: UserId, refuses: Refuses) {
    let row = (refuses != Refuses::default()).then_some(Row::Refuses(refuses));
    view.put(Key::Refuses(user), row);
}

/// What stays is who it is and how far its incarnations went. The next one is above that which it has, so that an outbox
/// which comes again settles before it sends: the answers to what it sent are no longer kept.
fn forget_device(view: &mut View<'_>, user: UserId, device: DeviceId) {
    // What it wanted said for it is not said any more.
    view.put(Key::Will(device), None);
    view.put(Key::Bearer(user, device), None);
    fold_push_taken(view, user, device);
    update_device(view, device, |row| {
        row.is_gone = true;
        row.incarnation = row.incarnation.next();
        row.floor = MessageId(1);
        row.kept = Vec::new();
        row.cursor = None;
        row.label = "".into();
        row.levels = Levels::default();
    });
    update_user(view, user, |row| row.devices.retain(|one| *one != device));
}

/// A device came for the first time.
pub(super) fn fold_device_created(view: &mut View<'_>, device: DeviceId, user: UserId, name: &str, time: LogTime) {
    let row = Device {
        user,
        name: name.into(),
        incarnation: Incarnation(0),
        floor: MessageId(1),
        kept: Vec::new(),
        cursor: None,
        label: "".into(),
        created: time,
        seen: time,
        tokens_until: LogTime(0),
        generation: 0,
        is_gone: false,
        levels: Levels::default(),
    };
    view.put(Key::Device(device), Some(Row::Device(row)));
    view.put(Key::DeviceName(user, name.into()), Some(Row::DeviceName(device)));
    update_user(view, user, |row| {
        row.devices.push(device);
        row.is_someone = true;
    });
}

/// A device that was forgotten came again.
pub(super) fn fold_device_returned(view: &mut View<'_>, device: DeviceId, time: LogTime) {
    let Some(user) = view.device(device).map(|row| row.user) else { return };
    update_device(view, device, |row| {
        row.is_gone = false;
        row.created = time;
        row.seen = time;
    });
    update_user(view, user, |row| row.devices.push(device));
}

/// A device was seen.
pub(super) fn fold_device_seen(view: &mut View<'_>, device: DeviceId, time: LogTime) {
    update_device(view, device, |row| row.seen = row.seen.max(time));
    // A user of format 1 does not know its devices: each is known again from when it comes.
    let Some(user) = view.device(device).filter(|row| !row.is_gone).map(|row| row.user) else { return };
    if view.user(user).is_some_and(|row| !row.devices.contains(&device)) {
        update_user(view, user, |row| row.devices.push(device));
    }
}

/// A user got an account, or lost it.
pub(super) fn fold_account(
    view: &mut View<'_>,
    user: UserId,
    password: Option<&Secret>,
    is_closed: bool,
    cuts: bool,
    time: LogTime,
) {
    view.put(Key::Password(user), password.map(|password| Row::Password(password.clone())));
    update_user(view, user, |row| {
        row.is_someone = true;
        row.is_closed = is_closed;
        if cuts {
            row.tokens_until = time;
            row.generation += 1;
        }
    });
    let refuses = view.refusals(user).cloned().unwrap_or_default();
    if refuses.everyone != is_closed {
        put_refuses(view, user, Refuses { everyone: is_closed, ..refuses });
    }
}

/// A user hides its marks, or no longer.
pub(super) fn fold_marks_hidden(view: &mut View<'_>, user: UserId, is_hidden: bool) {
    update_user(view, user, |row| row.hides_marks = is_hidden);
}

fn update_user(view: &mut View<'_>, user: UserId, change: impl FnOnce(&mut User)) {
    view.update(Key::User(user), |row| {
        if let Row::User(row) = row {
            change(row);
        }
    });
}

pub(super) fn fold_level(view: &mut View<'_>, device: DeviceId, conversation: ConversationId, level: i32) {
    update_device(view, device, |row| {
        row.levels = row.levels.with(conversation, Level::try_from(level).unwrap_or_default());
    });
}

fn update_device(view: &mut View<'_>, device: DeviceId, change: impl FnOnce(&mut Device)) {
    view.update(Key::Device(device), |row| {
        if let Row::Device(row) = row {
            change(row);
        }
    });
}
