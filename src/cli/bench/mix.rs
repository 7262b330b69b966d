//! A mix of traffic: what users have and do. A file, so that everyone can bring their own.

use std::path::Path;

use config::{Config, File, FileFormat};
use serde::Deserialize;

use super::super::Fail;

/// The mix that is used where none is given.
pub(super) const DEFAULT: &str = include_str!("mix.toml");

/// See `mix.toml`. What a mix does not speak of does not happen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mix {
    pub(super) conversations: f64,
    pub(super) zipf: f64,
    pub(super) direct_weight: f64,
    pub(super) marks_per_message: f64,
    #[serde(default)]
    pub(super) reactions_per_message: f64,
    #[serde(default)]
    pub(super) edits_per_message: f64,
    #[serde(default)]
    pub(super) recalls_per_message: f64,
    #[serde(default)]
    pub(super) membership_changes_per_message: f64,
    #[serde(default)]
    pub(super) signals_per_message: f64,
    #[serde(default)]
    pub(super) sessions_per_message: f64,
    #[serde(default)]
    pub(super) away: f64,
    #[serde(default)]
    pub(super) vanish: f64,
    #[serde(default)]
    absent_per_user: f64,
    #[serde(default)]
    channels: f64,
    devices: Vec<Devices>,
    members: Vec<Members>,
    payloads: Vec<Payload>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Devices {
    count: usize,
    share: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    from: usize,
    to: usize,
    share: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    bytes: usize,
    share: f64,
}

/// The largest group that the broker allows.
const MEMBERS_MAX: usize = 100_000;

/// A conversation to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// The numbers of its users, of whom the first makes it.
    pub(super) users: Vec<usize>,
    /// The numbers of its members who are never there.
    pub(super) absent: Vec<usize>,
    /// The number of a channel, which its first user writes.
    pub(super) channel: Option<usize>,
}

impl Planned {
    pub(super) const fn members(&self) -> usize {
        self.users.len() + self.absent.len()
    }
}

impl Mix {
    /// From a file, or the one that comes with the program.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, Fail> {
        let name = path.map_or_else(|| "mix".to_owned(), |path| path.display().to_string());
        let text = match path {
            Some(path) => {
                std::fs::read_to_string(path).map_err(|error| Fail::usage(format!("--mix {name}: {error}")))?
            }
            None => DEFAULT.to_owned(),
        };
        let wrong = |what: String| Fail::usage(format!("--mix {name}: {what}"));
        let read = Config::builder().add_source(File::from_str(&text, FileFormat::Toml)).build();
        let mix: Self = read.and_then(Config::try_deserialize).map_err(|error| wrong(error.to_string()))?;
        let shares = [
            ("devices", mix.devices.iter().map(|one| one.share).sum::<f64>()),
            ("members and channels", mix.members.iter().map(|one| one.share).sum::<f64>() + mix.channels),
            ("payloads", mix.payloads.iter().map(|one| one.share).sum()),
        ];
        if let Some((what, sum)) = shares.into_iter().find(|(_, sum)| (sum - 1.0).abs() > 0.001) {
            return Err(wrong(format!("the shares of {what} are {sum:.3} together, not 1")));
        }
        if mix.members.iter().any(|one| one.from < 2 || one.to < one.from || one.to > MEMBERS_MAX) {
            return Err(wrong(format!("members: from at least 2 to at most {MEMBERS_MAX}")));
        }
        if [mix.away, mix.vanish].iter().any(|part| !(0.0..=1.0).contains(part)) {
            return Err(wrong("away and vanish: a part of something is from 0 to 1".to_owned()));
        }
        if mix.devices.iter().any(|one| !(1..=20).contains(&one.count)) {
            return Err(wrong("devices: a user has 1 to 20".to_owned()));
        }
        Ok(mix)
    }

    /// How many devices a user has.
    pub(super) fn devices(&self, random: &mut fastrand::Rng) -> usize {
        pick(&self.devices, |one| one.share, random).map_or(1, |one| one.count)
    }

    /// How large a message is.
    pub(super) fn bytes(&self, random: &mut fastrand::Rng) -> usize {
        pick(&self.payloads, |one| one.share, random).map_or(100, |one| one.bytes)
    }

    /// The conversations of so many users.
    pub(super) fn plan(&self, users: usize, random: &mut fastrand::Rng) -> Vec<Planned> {
        let mut planned = Vec::new();
        let absent = (users as f64 * self.absent_per_user) as usize;
        let people = users + absent;
        for one in &self.members {
            let (from, to) = (one.from.min(people), one.to.min(people));
            let mut seats = users as f64 * self.conversations * one.share;
            // In a group that is larger than there are users all of them have a seat, or as many as are left.
            while from >= 2 && seats >= if from > users { 2.0 } else { from as f64 } {
                let size = random.usize(from..=to);
                let there = if size > users { users.min(seats as usize) } else { size };
                seats -= there as f64;
                let first = random.usize(..absent.max(1));
                planned.push(Planned {
                    users: random.choose_multiple(0..users, there),
                    absent: (0..absent.min(size - there)).map(|number| (first + number) % absent).collect(),
                    channel: None,
                });
            }
        }
        let mut seats = users as f64 * self.conversations * self.channels;
        for number in 0.. {
            if seats < 2.0 || users < 2 {
                break;
            }
            let there = random.usize(2..=users.min(seats as usize));
            seats -= there as f64;
            let users = random.choose_multiple(0..users, there);
            planned.push(Planned { users, absent: Vec::new(), channel: Some(number) });
        }
        random.shuffle(&mut planned);
        planned
    }

    /// How much the conversation of this rank gets, from 0.
    pub(super) fn weight(&self, rank: usize, direct: bool) -> f64 {
        let weight = ((rank + 1) as f64).powf(-self.zipf);
        if direct { weight * self.direct_weight } else { weight }
    }
}

fn pick<'a, T>(all: &'a [T], share: impl Fn(&T) -> f64, random: &mut fastrand::Rng) -> Option<&'a T> {
    let mut at = random.f64();
    let chosen = all.iter().find(|one| {
        at -= share(one);
        at < 0.0
    });
    chosen.or(all.last())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_mix_that_comes_along_is_a_mix() {
        let mix = Mix::read(None).expect("a mix");
        let mut random = fastrand::Rng::with_seed(1);
        let planned = mix.plan(200, &mut random);
        let seats: usize = planned.iter().map(|plan| plan.users.len()).sum();
        let each = seats as f64 / 200.0;
        assert!((each - mix.conversations).abs() < 3.0, "{each} conversations for each user");
        let direct = planned.iter().filter(|plan| plan.members() == 2 && plan.channel.is_none()).count();
        assert_eq!(direct, 200 * 40 * 6 / 10 / 2);
        assert!(planned.iter().all(|plan| {
            let once = |all: &[usize]| all.iter().collect::<HashSet<_>>().len() == all.len();
            once(&plan.users) && once(&plan.absent)
        }));
        // 200 users and 3,800 who are never there.
        let largest = planned.iter().map(Planned::members).max().unwrap_or_default();
        assert!((2_001..=4_000).contains(&largest), "{largest} members");
        assert!(planned.iter().any(|plan| plan.channel.is_some()) && planned.iter().all(|plan| plan.users.len() >= 2));
        let bytes: usize = (0..10_000).map(|_| mix.bytes(&mut random)).sum();
        assert!((900..1_300).contains(&(bytes / 10_000)), "{} bytes on average", bytes / 10_000);
    }

    #[test]
    fn a_mix_that_is_none_is_told_by_name() {
        let folder = std::env::temp_dir().join(format!("longwire-mix-{}.toml", fastrand::u64(..)));
        std::fs::write(&folder, DEFAULT.replace("share = 0.55", "share = 0.95")).expect("written");
        let said = Mix::read(Some(&folder)).expect_err("too much").to_string();
        std::fs::remove_file(&folder).expect("removed");
        assert!(said.contains("the shares of devices are 1.400 together, not 1"), "{said}");
    }
}
