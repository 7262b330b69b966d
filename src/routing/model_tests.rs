//! Random lives against the naive model.

use super::model::{Choices, Warmth, live};

#[test]
fn random_lives_of_conversations_agree_with_a_naive_model() {
    for seed in 0..150 {
        one(seed, Warmth::Whole);
    }
}

#[test]
fn they_agree_also_when_rows_are_let_go_and_loaded_again() {
    for seed in 0..60 {
        one(seed, Warmth::Cold(if seed % 2 == 0 { 10 } else { 3 }));
    }
}

fn one(seed: u64, warmth: Warmth) {
    let story = format!("seed {seed}");
    let stored = live(&story, Choices::Random(fastrand::Rng::with_seed(seed)), 120, warmth);
    assert!(stored > 10, "{story}: something happened");
}
