//! The places at which what is kept may be divided.

use super::*;

/// Whatever comes when, what has been there for its time and a sixteenth lies below a place that is over, or below the head;
/// and the places stay few.
#[test]
fn what_is_long_over_lies_below_a_place_that_is_over() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let age_ms = random.u64(16..100_000);
        let mut row = Keeping { keeps: Keeps::ForTime, age_ms, since: LogTime(0), ..Keeping::default() };
        let (mut head, mut times, mut first) = (Head::default(), vec![0], Seq(0));
        for seq in 1..400 {
            let step = if random.u8(0..20) == 0 { random.u64(0..2 * age_ms) } else { random.u64(0..=age_ms / 40) };
            let time = LogTime(head.time.0 + step);
            row.note(&head, first, time);
            head = Head { seq: Seq(seq), time, position: Position(seq), countable: seq };
            times.push(time.0);
            assert!(row.places.len() <= PLACES_MAX, "seed {seed}: few places");
            // What is over goes, as the sweep has it.
            let over = row.places.iter().chain([&head]).take_while(|place| place.time.0 + age_ms <= time.0).last();
            if let Some(place) = over.copied() {
                first = place.seq.next();
                row.places.retain(|place| place.seq >= first);
                row.since = row.places.first().map_or(head.time, |place| place.time);
            }
            let oldest = times[first.0.max(1) as usize];
            assert!(oldest + age_ms + age_ms / 16 >= time.0, "seed {seed}: {first} stays too long");
        }
    }
}
