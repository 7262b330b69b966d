//! The line before the TLS handshake: so many are made at a time, of which each address has a part, and so many wait for
//! their turn. A wait is cheaper for both ends than a socket that is closed and a client that comes again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The part of all handshakes, and of the line, that one address has at most: a quarter. So who opens sockets and says
/// nothing keeps nobody else out.
const PART_OF_AN_ADDRESS: usize = 4;
/// So many times as many as make their handshake may wait for it.
const WAIT_FOR_EACH: usize = 15;

/// See the module. One for each listener.
#[derive(Debug)]
pub(super) struct Line {
    addresses: Mutex<HashMap<IpAddr, Address>>,
    /// Places, for who waits and who is at it.
    places: Arc<Semaphore>,
    /// Handshakes.
    turns: Arc<Semaphore>,
    places_of_an_address: usize,
    turns_of_an_address: usize,
}

/// What one address has.
#[derive(Debug)]
struct Address {
    places: usize,
    turns: Arc<Semaphore>,
}

impl Line {
    /// A line before so many handshakes at a time.
    pub(super) fn new(handshakes: usize) -> Arc<Self> {
        let places = handshakes.saturating_mul(1 + WAIT_FOR_EACH).min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            addresses: Mutex::default(),
            places: Arc::new(Semaphore::new(places)),
            turns: Arc::new(Semaphore::new(handshakes.min(Semaphore::MAX_PERMITS))),
            places_of_an_address: places.div_ceil(PART_OF_AN_ADDRESS),
            turns_of_an_address: handshakes.div_ceil(PART_OF_AN_ADDRESS).min(Semaphore::MAX_PERMITS),
        })
    }

    /// A place in the line, unless it is full, or its address's part of it.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = addresses
            .entry(address)
            .or_insert_with(|| Address { places: 0, turns: Arc::new(Semaphore::new(self.turns_of_an_address)) });
        if of_address.places >= self.places_of_an_address {
            return None;
        }
        of_address.places += 1;
        let turns = Arc::clone(&of_address.turns);
        Some(Place { turns, share: Share { line: Arc::clone(self), address }, _place: place })
    }
}

/// One's part of what its address has.
#[derive(Debug)]
struct Share {
    line: Arc<Line>,
    address: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut addresses = self.line.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_address) = addresses.get_mut(&self.address) {
            of_address.places -= 1;
            if of_address.places == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// A place in the line; whoever lets go of it has left.
#[derive(Debug)]
pub(super) struct Place {
    turns: Arc<Semaphore>,
    share: Share,
    _place: OwnedSemaphorePermit,
}

/// Whose turn it is, until this is let go.
#[derive(Debug)]
pub(super) struct Turn {
    _of_address: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
    _place: Place,
}

impl Place {
    /// Waits for the turn: first among those of the address, then among all.
    ///
    /// # Cancel safety
    /// Whoever is cancelled has left the line.
    pub(super) async fn turn(self) -> Option<Turn> {
        let of_address = Arc::clone(&self.turns).acquire_owned().await.ok()?;
        let of_all = Arc::clone(&self.share.line.turns).acquire_owned().await.ok()?;
        Some(Turn { _of_address: of_address, _of_all: of_all, _place: self })
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn ready(place: Place) -> Option<Turn> {
        match poll(pin!(place.turn())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    #[test]
    fn an_address_has_a_quarter_of_the_turns_and_the_rest_waits_in_order() {
        let line = Line::new(8);
        let [first, second] = [(); 2].map(|()| ready(line.enter(address(1)).expect("a place")).expect("a turn"));
        let mut third = pin!(line.enter(address(1)).expect("a place").turn());
        let mut fourth = pin!(line.enter(address(1)).expect("a place").turn());
        assert!(poll(third.as_mut()).is_pending() && poll(fourth.as_mut()).is_pending());
        assert!(ready(line.enter(address(2)).expect("a place")).is_some(), "others have theirs");
        drop(first);
        assert!(poll(fourth.as_mut()).is_pending(), "whoever came first goes first");
        assert!(poll(third.as_mut()).is_ready());
        drop(second);
        assert!(poll(fourth.as_mut()).is_ready());
    }

    #[test]
    fn all_addresses_together_have_all_turns_and_no_more() {
        let line = Line::new(4);
        let mut turns: Vec<_> = (0..4).map(|n| ready(line.enter(address(n)).expect("a place"))).collect();
        assert!(turns.iter().all(Option::is_some));
        let mut next = pin!(line.enter(address(9)).expect("a place").turn());
        assert!(poll(next.as_mut()).is_pending());
        turns.pop();
        assert!(poll(next.as_mut()).is_ready());
    }

    #[test]
    fn the_line_is_bounded_for_each_address_and_for_all() {
        let line = Line::new(4);
        let mut places = Vec::new();
        for n in 0..4 {
            let of_address: Vec<_> = std::iter::from_fn(|| line.enter(address(n))).collect();
            assert_eq!(of_address.len(), 16, "a quarter of 4 and of 15 times 4");
            places.extend(of_address);
        }
        assert!(line.enter(address(9)).is_none(), "the line is full");
        places.pop();
        let place = line.enter(address(9)).expect("somebody left");
        drop((places, place));
        assert!(line.addresses.lock().expect("unpoisoned").is_empty(), "who has nothing is forgotten");
        assert_eq!((line.places.available_permits(), line.turns.available_permits()), (64, 4));
    }

    #[test]
    fn whoever_stops_waiting_has_left() {
        let line = Line::new(1);
        let turn = ready(line.enter(address(1)).expect("a place"));
        {
            let mut waits = pin!(line.enter(address(1)).expect("a place").turn());
            assert!(poll(waits.as_mut()).is_pending());
        }
        drop(turn);
        assert!(line.addresses.lock().expect("unpoisoned").is_empty());
        assert!(ready(line.enter(address(2)).expect("a place")).is_some());
    }
}
