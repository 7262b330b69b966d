//! Who may do what in a group: each action of SPEC chapter 7, by each role there is and by those who are not in the group,
//! under each value of the policy. What is expected is written from SPEC alone, in [`expected`].

use longwire_protocol::packet::publish::Action;
use longwire_protocol::packet::request::Op;
use longwire_protocol::packet::{self, Info, Level, Policy, Publish, RetentionMode, Role};

use crate::rights::May::{self, Hidden, No, Yes};
use crate::rights::may;
use crate::world::{Wire, World};

/// Who tries: those who are refused first, so that nothing is gone when the next one comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Outsider,
    Banned,
    Removed,
    Reader,
    Member,
    Admin,
    Owner,
}

impl Who {
    const ALL: [Self; 7] =
        [Self::Outsider, Self::Banned, Self::Removed, Self::Reader, Self::Member, Self::Admin, Self::Owner];

    fn name(self) -> &'static str {
        ["outsider", "banned", "removed", "reader", "member", "admin", "owner"][self as usize]
    }

    /// At least this role of a policy; [`Role::None`] stands for what the table says without one.
    fn has(self, least: Role, usual: Self) -> May {
        let least = match least {
            Role::Member => Self::Member,
            Role::Admin => Self::Admin,
            Role::Owner => Self::Owner,
            _ => usual,
        };
        if self >= least { Yes } else { No }
    }
}

/// What is tried, in this order: what ends or changes the right to try the rest comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Read,
    Members,
    Receipts,
    Watch,
    Mark,
    Say,
    Will,
    React,
    Hide,
    Settings,
    Level,
    EditOwn,
    EditOther,
    RecallOwn,
    RecallOther,
    AddMember,
    AddReader,
    AddAdmin,
    AddBanned,
    Remove,
    Ban,
    Lift,
    MakeReader,
    MakeMember,
    Promote,
    Demote,
    RemoveAdmin,
    BanAdmin,
    Label,
    Describe,
    Retention,
    JoinKey,
    Policy,
    Join,
    JoinWrong,
    JoinRight,
    Leave,
    HandOver,
}

impl What {
    const ALL: [Self; 38] = {
        use What::*;
        [
            Read,
            Members,
            Receipts,
            Watch,
            Mark,
            Say,
            Will,
            React,
            Hide,
            Settings,
            Level,
            EditOwn,
            EditOther,
            RecallOwn,
            RecallOther,
            AddMember,
            AddReader,
            AddAdmin,
            AddBanned,
            Remove,
            Ban,
            Lift,
            MakeReader,
            MakeMember,
            Promote,
            Demote,
            RemoveAdmin,
            BanAdmin,
            Label,
            Describe,
            Retention,
            JoinKey,
            Policy,
            Join,
            JoinWrong,
            JoinRight,
            Leave,
            HandOver,
        ]
    };
}

/// What SPEC says.
fn expected(what: What, who: Who, policy: &Policy) -> May {
    let least = |role: i32| Role::try_from(role).expect("a role");
    if who < Who::Reader {
        return match what {
            // Who was removed reads what was said before (R7-4).
            What::Read if who != Who::Outsider => Yes,
            // R7-12.
            What::JoinRight if who != Who::Banned => Yes,
            _ => Hidden,
        };
    }
    match what {
        What::Read | What::Members | What::Mark | What::React | What::Hide | What::Settings | What::Level => Yes,
        // R7-10.
        What::Receipts => who.has(Role::None, if policy.hides_marks { Who::Admin } else { Who::Reader }),
        // It is no channel (R8-7).
        What::Watch => Hidden,
        What::Say | What::EditOwn | What::Will => who.has(least(policy.publishes), Who::Member),
        // R5.6-4.
        What::EditOther => No,
        What::RecallOwn if who >= Who::Admin => Yes,
        // What was said is older than a moment.
        What::RecallOwn if policy.recall_within_ms > 0 => No,
        What::RecallOwn => who.has(least(policy.publishes), Who::Member),
        What::RecallOther => who.has(Role::None, Who::Admin),
        What::AddMember | What::AddReader => who.has(least(policy.adds), Who::Admin),
        // R7-11.
        What::AddBanned => No,
        What::Label | What::Describe => who.has(least(policy.informs), Who::Admin),
        What::Remove | What::Ban | What::Lift | What::JoinKey | What::MakeReader | What::MakeMember => {
            who.has(Role::None, Who::Admin)
        }
        What::Policy | What::Retention | What::HandOver => who.has(Role::None, Who::Owner),
        What::AddAdmin | What::Promote | What::Demote | What::RemoveAdmin | What::BanAdmin => {
            who.has(Role::None, Who::Owner)
        }
        // Who is a member already is acked.
        What::Join | What::JoinWrong | What::JoinRight => Yes,
        // R7-3.
        What::Leave => {
            if who == Who::Owner {
                No
            } else {
                Yes
            }
        }
    }
}

const KEY: &[u8] = b"the key of this group";
const DAY_MS: u64 = 86_400_000;

/// Whom something is done to: someone else for the admin than for the others, of whom it is the owner alone who can.
fn target(what: What, who: Who) -> String {
    let of = if who == Who::Admin { "admin" } else { "owner" };
    format!("{what:?}-by-{of}")
}

/// Those who are in the group for something to be done to them, and what they are.
fn targets() -> Vec<(String, Role)> {
    let whats = [
        (What::Remove, Role::Member),
        (What::Ban, Role::Member),
        (What::MakeReader, Role::Member),
        (What::MakeMember, Role::Reader),
        (What::Promote, Role::Member),
        (What::Demote, Role::Admin),
        (What::RemoveAdmin, Role::Admin),
        (What::BanAdmin, Role::Admin),
    ];
    let of = |(what, role)| [Who::Admin, Who::Owner].map(|who| (target(what, who), role));
    whats.into_iter().flat_map(of).collect()
}

/// A group with everyone in it, and messages to do something with.
struct Scene {
    group: u64,
    policy: Policy,
    /// By who tries: two messages of its own, where it may ever say one, and one of somebody else.
    own: [[u64; 2]; 7],
    others: [u64; 7],
}

fn ban(user: &str, lift: bool) -> Action {
    Action::Ban(packet::Ban { user: user.into(), lift })
}

fn info(policy: Policy, description: &str) -> Action {
    let info = Info { description: description.into(), policy: Some(policy), ..Info::default() };
    Action::SetInfo(packet::SetInfo { info: Some(Box::new(info)) })
}

async fn set_up(people: &mut [Wire], bystander: &mut Wire, policy: Policy) -> Scene {
    let targets = targets();
    let mut users = vec!["admin", "member", "reader", "removed", "banned", "bystander"];
    users.extend(targets.iter().map(|(user, _)| user.as_str()));
    let owner = Who::Owner as usize;
    let group = people[owner].create_group("g", &users).await;
    let mut scene = Scene { group, policy, own: [[1; 2]; 7], others: [1; 7] };
    for who in Who::ALL {
        scene.others[who as usize] = bystander.say(group, "someone else's").await.seq;
        if who != Who::Outsider {
            for own in &mut scene.own[who as usize] {
                *own = people[who as usize].say(group, "own").await.seq;
            }
        }
    }
    let owner = &mut people[owner];
    let roles = [("admin", Role::Admin), ("reader", Role::Reader), ("removed", Role::None)];
    let all = roles.into_iter().chain(targets.iter().map(|(user, role)| (user.as_str(), *role)));
    for (user, role) in all {
        owner.set_role(group, user, role).await.expect("set");
    }
    let kept_out = [Who::Admin, Who::Owner].map(|who| target(What::Lift, who));
    for user in ["banned", "kept-out"].into_iter().chain(kept_out.iter().map(String::as_str)) {
        owner.act(group, ban(user, false)).await.expect("banned");
    }
    owner.act(group, Action::SetJoinKey(packet::SetJoinKey { key: KEY.into() })).await.expect("set");
    owner.act(group, info(policy, "")).await.expect("set");
    scene
}

async fn attempt(wire: &mut Wire, scene: &Scene, what: What, who: Who) -> May {
    let id = scene.group;
    let (own, other) = (scene.own[who as usize], scene.others[who as usize]);
    let role = |user: String, role: Role| Action::SetRole(packet::SetRole { user, role: role.into() });
    let join = |key: &[u8]| Action::Join(packet::Join { key: key.to_vec().into() });
    let to = target(what, who);
    let action = match what {
        What::Read => {
            let page = packet::HistoryRequest { conversation: id, limit: 1, ..Default::default() };
            return may(wire.history(page).await);
        }
        What::Members => {
            let members = packet::MembersRequest { conversation: id, after_user: 0, limit: 1 };
            return may(wire.ask(Op::Members(members)).await);
        }
        What::Receipts => {
            let receipts = packet::ReceiptsRequest { conversation: id, limit: 1, ..Default::default() };
            return may(wire.ask(Op::Receipts(receipts)).await);
        }
        What::Watch => {
            return may(wire.ask(Op::Watch(packet::WatchRequest { conversation: id, stop: false })).await);
        }
        What::Say => return may(wire.insist(Publish { conversation: id, ..Publish::default() }).await),
        What::Will => Action::SetWill(packet::SetWill { after_ms: 0 }),
        What::Mark => Action::SetMark(packet::SetMark { seq: 1 }),
        What::React => Action::React(packet::React { seq: other, reaction: "+".into() }),
        What::Hide => Action::Hide(packet::Hide { seq: other, undo: false }),
        What::Settings => Action::SetSettings(packet::SetSettings::default()),
        What::Level => Action::SetLevel(packet::SetLevel { level: Level::Full.into() }),
        What::EditOwn => Action::Edit(packet::Edit { seq: own[0] }),
        What::EditOther => Action::Edit(packet::Edit { seq: other }),
        What::RecallOwn => Action::Recall(packet::Recall { seq: own[1] }),
        What::RecallOther => Action::Recall(packet::Recall { seq: other }),
        What::AddMember => role(format!("{to}-{}", who.name()), Role::Member),
        What::AddReader => role(format!("{to}-{}", who.name()), Role::Reader),
        What::AddAdmin => role(to, Role::Admin),
        What::AddBanned => role("kept-out".into(), Role::Member),
        What::Remove | What::RemoveAdmin => role(to, Role::None),
        What::Ban | What::BanAdmin => ban(&to, false),
        What::Lift => ban(&to, true),
        What::MakeReader => role(to, Role::Reader),
        What::MakeMember | What::Demote => role(to, Role::Member),
        What::Promote => role(to, Role::Admin),
        What::Label => Action::SetLabel(packet::SetLabel { label: "new".into() }),
        What::Describe => info(scene.policy, who.name()),
        What::Retention => {
            let retention = packet::Retention { mode: RetentionMode::KeepFor.into(), age_ms: DAY_MS };
            Action::SetRetention(packet::SetRetention { retention: Some(retention) })
        }
        What::JoinKey => Action::SetJoinKey(packet::SetJoinKey { key: KEY.into() }),
        What::Policy => info(Policy { recall_within_ms: DAY_MS, ..scene.policy }, who.name()),
        What::Join => join(b""),
        What::JoinWrong => join(b"the key of another"),
        What::JoinRight => join(KEY),
        What::Leave => Action::Leave(packet::Leave {}),
        // Who is left of those who were there at first.
        What::HandOver => role("bystander".into(), Role::Owner),
    };
    may(wire.act(id, action).await)
}

/// Every policy in which one thing is not as usual.
fn policies() -> Vec<Policy> {
    let mut all = vec![
        Policy::default(),
        Policy { recall_within_ms: 1, ..Policy::default() },
        Policy { hides_marks: true, ..Policy::default() },
    ];
    for role in [Role::Member, Role::Admin, Role::Owner].map(i32::from) {
        all.push(Policy { publishes: role, ..Policy::default() });
        all.push(Policy { adds: role, ..Policy::default() });
        all.push(Policy { informs: role, ..Policy::default() });
    }
    all
}

/// SPEC 7, R5.6-4, R5.6-5, R5.6-7 to R5.6-9, R5.7-1, R7-3, R7-4, R7-10 to R7-12.
#[tokio::test]
async fn each_role_may_do_under_each_policy_what_spec_says_and_no_more() {
    let world = World::with_options(longwire::store::StoreOptions::default()).await;
    let mut people = Vec::new();
    for who in Who::ALL {
        people.push(world.user(who.name()).await);
    }
    let mut bystander = world.user("bystander").await;
    let (mut wrong, mut cells) = (Vec::new(), 0);
    for policy in policies() {
        let scene = set_up(&mut people, &mut bystander, policy).await;
        // Who came in with the key, or left, is not what it was.
        let again = [What::Leave, What::HandOver];
        let mut lasts = set_up(&mut people, &mut bystander, policy).await;
        for what in What::ALL {
            if what == What::HandOver {
                lasts = set_up(&mut people, &mut bystander, policy).await;
            }
            let scene = if again.contains(&what) { &lasts } else { &scene };
            for who in Who::ALL {
                let got = attempt(&mut people[who as usize], scene, what, who).await;
                let should = expected(what, who, &policy);
                cells += 1;
                if got != should {
                    wrong.push(format!("{what:?} by {who:?} with {policy:?}: {got:?}, and should be {should:?}"));
                }
            }
        }
    }
    assert_eq!(cells, 12 * 38 * 7);
    assert!(wrong.is_empty(), "{wrong:#?}");
}
