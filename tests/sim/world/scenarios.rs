//! The scenarios that were hardest to get right, each as a script: what befalls the world until the situation is there,
//! which is asserted, and then chance as in every seed. The seed decides all that the script leaves open.

mod closing;
mod delivering;
mod erasing;
mod joining;
mod publishing;
mod push;
mod stage;
mod storing;
mod waiting;

use super::*;
use closing::s19;
use delivering::{s1, s2, s9, s10};
use erasing::{s18, s21};
use joining::{s3, s4, s22};
use publishing::{s7, s8, s11};
use push::s17;
use stage::{ANN, BEN, BEN_TOO, CID, any_ground, disk, memory};
use storing::{s5, s6};
use waiting::{s12, s13, s20};

/// A scenario by its number, for one seed.
pub(crate) type Scenario = fn(u64, &Keys) -> Coverage;

/// All of them, for who plants bugs; `docs/testing.md` says where the others are.
#[cfg(feature = "mutations")]
pub(crate) const ALL: [(&str, Scenario); 19] = [
    ("s1", s1),
    ("s2", s2),
    ("s3", s3),
    ("s4", s4),
    ("s5", s5),
    ("s6", s6),
    ("s7", s7),
    ("s8", s8),
    ("s9", s9),
    ("s10", s10),
    ("s11", s11),
    ("s12", s12),
    ("s13", s13),
    ("s17", s17),
    ("s18", s18),
    ("s19", s19),
    ("s20", s20),
    ("s21", s21),
    ("s22", s22),
];

mod tests {
    use super::*;
    use crate::runs::Kind;

    fn each(name: &'static str, scenario: Scenario) {
        let kind = Kind { name, variable: "LONGWIRE_SCENARIO", test: name };
        for seed in kind.kept() {
            scenario(seed, crate::keys());
        }
        let outcome = kind.run(&kind.seeds(crate::SCENARIO_SEEDS), |seed| scenario(seed, crate::keys()));
        assert!(outcome.failed.is_empty(), "seeds of {name} that fail: {:?}", outcome.failed);
    }

    macro_rules! scenarios {
        ($($test:ident $scenario:ident)*) => {
            $(
                #[test]
                fn $test() {
                    each(stringify!($scenario), $scenario);
                }
            )*
        };
    }

    scenarios! {
        s1_a_withheld_head_an_urgent_item_and_a_crash s1
        s2_an_own_entry_between_unstored_ones_and_a_crash_before_the_ack s2
        s3_a_join_and_a_kill_before_anyone_was_told_and_a_second_device s3
        s4_removed_and_added_again_while_a_device_is_away s4
        s5_a_commit_fails_and_its_frame_is_there_after_reopening s5
        s6_an_old_copy_of_the_store_whose_tail_overtakes_cursors s6
        s7_a_refusal_in_the_middle_of_a_window s7
        s8_a_takeover_with_publishes_queued_and_acks_late s8
        s9_an_item_larger_than_the_window s9
        s10_a_large_item_over_a_slow_link s10
        s11_a_device_restored_from_a_backup s11
        s12_the_clock_a_day_forward_and_back_with_retention s12
        s13_a_store_that_is_full_while_acks_and_heartbeats_pass s13
        s17_a_device_that_is_away_is_told_by_a_broker_that_is_killed s17
        s18_a_user_is_erased_by_a_broker_that_is_killed s18
        s19_an_account_is_closed_whose_devices_left_something s19
        s20_a_will_and_a_broker_that_is_killed s20
        s21_a_user_is_erased_while_what_it_wrote_waits_for_room s21
        s22_a_conversation_whose_opening_has_expired s22
    }
}
