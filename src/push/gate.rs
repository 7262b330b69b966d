//! The gate in front of a provider: a bounded number at a time, and nobody for a while when it is in trouble, so that a
//! dead one costs one question now and then and holds up nobody else's.

use std::cell::Cell;
use std::time::Duration;

use longwire_push::{Notification, Outcome};

use crate::routing::push::Provider;

/// Questions under way to one provider: fewer than all that are, so that another is never held up by this one.
const AT_ONCE: usize = 16;
/// How long it is looked at again who found no place.
const BUSY_MS: u64 = 250;
/// So often in a row a provider is in trouble before the gate is shut.
const TROUBLES: u32 = 3;
/// How long it is shut first, and at the most.
const SHUT_MS: (u64, u64) = (2_000, 60_000);
/// How long a device waits first, and at the most.
const WAIT_MS: (u64, u64) = (1_000, 600_000);

pub(super) struct Gate {
    name: Provider,
    provider: Box<dyn longwire_push::Provider>,
    inside: Cell<usize>,
    troubles: Cell<u32>,
    shut_until_ms: Cell<u64>,
}

/// Who may ask the provider once.
pub(super) struct Entered<'a>(&'a Gate);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.inside.set(self.0.inside.get() - 1);
    }
}

impl Gate {
    pub(super) fn new(name: Provider, provider: Box<dyn longwire_push::Provider>) -> Self {
        Self { name, provider, inside: Cell::new(0), troubles: Cell::new(0), shut_until_ms: Cell::new(0) }
    }

    /// Lets one in, or says when to come again. While the provider is in trouble, one at a time.
    pub(super) fn enter(&self, now_ms: u64) -> Result<Entered<'_>, u64> {
        if now_ms < self.shut_until_ms.get() {
            return Err(self.shut_until_ms.get());
        }
        let most = if self.troubles.get() >= TROUBLES { 1 } else { AT_ONCE };
        if self.inside.get() >= most {
            return Err(now_ms + BUSY_MS);
        }
        self.inside.set(self.inside.get() + 1);
        Ok(Entered(self))
    }

    fn note(&self, outcome: &Outcome, now_ms: u64) {
        let Outcome::Retry { after, is_provider: true, why } = outcome else {
            if self.troubles.replace(0) >= TROUBLES {
                tracing::info!(provider = self.name.name(), "the provider of push notification is back");
            }
            return;
        };
        let troubles = self.troubles.get().saturating_add(1);
        self.troubles.set(troubles);
        if troubles < TROUBLES && after.is_none() {
            return;
        }
        if troubles == TROUBLES {
            tracing::warn!(provider = self.name.name(), why, "the provider of push notification is in trouble");
        }
        let own = (SHUT_MS.0 << (troubles.saturating_sub(TROUBLES)).min(16)).min(SHUT_MS.1);
        let asked = after.map_or(0, |after| after.as_millis() as u64);
        self.shut_until_ms.set(self.shut_until_ms.get().max(now_ms + own.max(asked)));
    }
}

impl Entered<'_> {
    /// Asks the provider.
    pub(super) async fn send(self, notification: &Notification, now_ms: impl Fn() -> u64) -> Outcome {
        let outcome = self.0.provider.send(notification).await;
        self.0.note(&outcome, now_ms());
        outcome
    }
}

/// How long a device waits that could not be told so often: twice as long each time, spread over a quarter.
pub(super) fn wait_ms(tries: u32, after: Option<Duration>) -> u64 {
    let own = (WAIT_MS.0 << tries.min(16)).min(WAIT_MS.1);
    let asked = after.map_or(0, |after| after.as_millis() as u64);
    let least = own.max(asked);
    least + fastrand::u64(0..=least / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl longwire_push::Provider for Nobody {
        fn send<'a>(&'a self, _: &'a Notification) -> longwire_push::Sending<'a> {
            Box::pin(async { Outcome::Delivered })
        }
    }

    #[test]
    fn a_provider_in_trouble_is_left_alone_and_asked_by_one() {
        let gate = Gate::new(Provider::Webhook, Box::new(Nobody));
        let trouble = Outcome::Retry { after: None, is_provider: true, why: String::new() };
        let places: Vec<_> = (0..AT_ONCE).map(|_| gate.enter(0).expect("there is room")).collect();
        assert_eq!(gate.enter(0).err(), Some(BUSY_MS));
        drop(places);
        (0..TROUBLES).for_each(|_| gate.note(&trouble, 100));
        assert_eq!(gate.enter(100).err(), Some(100 + SHUT_MS.0));
        let one = gate.enter(100 + SHUT_MS.0).expect("one asks");
        assert!(gate.enter(100 + SHUT_MS.0).is_err(), "and one alone");
        gate.note(&trouble, 10_000);
        drop(one);
        assert_eq!(gate.enter(10_000).err(), Some(10_000 + 2 * SHUT_MS.0), "twice as long");
        gate.note(&Outcome::Delivered, 20_000);
        assert!((0..2).map(|_| gate.enter(20_000)).all(|entered| entered.is_ok()));
    }

    #[test]
    fn one_device_in_trouble_shuts_no_gate() {
        let gate = Gate::new(Provider::WebPush, Box::new(Nobody));
        let trouble = Outcome::Retry { after: None, is_provider: false, why: String::new() };
        (0..100).for_each(|_| gate.note(&trouble, 0));
        assert!(gate.enter(0).is_ok());
    }

    #[test]
    fn waits_grow_and_obey_the_provider() {
        for tries in 0..40 {
            let wait = wait_ms(tries, None);
            let least = (1_000 << tries.min(16)).min(600_000);
            assert!((least..=least + least / 4).contains(&wait), "{tries}: {wait}");
        }
        assert!(wait_ms(0, Some(Duration::from_secs(90))) >= 90_000);
    }
}
