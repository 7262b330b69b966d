//! Random lives against the naive model.

use super::model::{Choices, Warmth, live};

#[test]
fn random_lives_of_conversations_agree_with_a_naive_model() {
    let stored: usize = (0..150).map(|seed| one(seed, Warmth::Whole)).sum();
    assert!(stored > 150 * 40, "much was stored: {stored}");
}

#[test]
fn they_agree_also_when_rows_are_let_go_and_loaded_again() {
    let warmth = |seed| Warmth::Cold(if seed % 2 == 0 { 10 } else { 3 });
    let stored: usize = (0..60).map(|seed| one(seed, warmth(seed))).sum();
    assert!(stored > 60 * 40, "much was stored: {stored}");
}

fn one(seed: u64, warmth: Warmth) -> usize {
    let story = format!("seed {seed}");
    live(&story, Choices::Random(fastrand::Rng::with_seed(seed)), 200, warmth)
}
