//! Requests on their way: they only read, so what a lost connection left open is asked again on the next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use longwire_protocol::limits::{PAGE_ITEMS_MAX, REQUESTS_MAX, USERS_MAX};
use longwire_protocol::packet::{self, PresenceRequest, ReceiptsRequest, WatchRequest, request, response};
use longwire_protocol::reason::Refusal;
use tokio::sync::oneshot;

use crate::error::RequestError;

/// Where the answer to a request goes.
pub(crate) type Reply = oneshot::Sender<Result<response::Result, RequestError>>;

/// Requests that wait for a connection or their turn; more are refused.
const WAITING_MAX: usize = 256;

/// A request; without a reply it is the client's own.
#[derive(Debug)]
struct Request {
    op: request::Op,
    reply: Option<Reply>,
}

impl Request {
    fn is_wanted(&self) -> bool {
        self.reply.as_ref().is_none_or(|reply| !reply.is_closed())
    }

    fn end(self, outcome: Result<response::Result, RequestError>) {
        if let Some(reply) = self.reply {
            // Whoever no longer waits does not want to know.
            drop(reply.send(outcome));
        }
    }
}

/// Requests that wait, requests that are asked, and what is asked anew on each connection.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    last_id: u64,
    waiting: VecDeque<Request>,
    under_way: BTreeMap<u64, Request>,
    watches: BTreeSet<u64>,
    /// Whose presence is subscribed to.
    presences: BTreeSet<u64>,
    /// Conversations of which deliveries are followed.
    follows: BTreeSet<u64>,
}

impl Requests {
    /// Asks, once there is a connection and room on it.
    pub(crate) fn ask(&mut self, op: request::Op, reply: Option<Reply>) {
        self.waiting.retain(Request::is_wanted);
        let request = Request { op, reply };
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(request);
        } else {
            request.end(Err(RequestError::TooMany));
        }
    }

    /// Has a channel delivered, on this connection and those after it.
    pub(crate) fn watch(&mut self, conversation: u64, reply: Reply) {
        self.watches.insert(conversation);
        self.ask(request::Op::Watch(WatchRequest { conversation, stop: false }), Some(reply));
    }

    /// Ends [`Requests::watch`].
    pub(crate) fn unwatch(&mut self, conversation: u64) {
        self.watches.remove(&conversation);
        self.ask(request::Op::Watch(WatchRequest { conversation, stop: true }), None);
    }

    /// Has presence told, on this connection and those after it. At most 200 users.
    pub(crate) fn subscribe(&mut self, users: Vec<u64>, reply: Option<Reply>) {
        self.presences.extend(&users);
        self.ask(request::Op::Presence(PresenceRequest { users, stop: false }), reply);
    }

    /// Ends [`Requests::subscribe`].
    pub(crate) fn unsubscribe(&mut self, users: Vec<u64>) {
        self.presences.retain(|user| !users.contains(user));
        self.ask(request::Op::Presence(PresenceRequest { users, stop: true }), None);
    }

    /// Has deliveries told, on this connection and those after it.
    pub(crate) fn follow(&mut self, conversation: u64, reply: Option<Reply>) {
        self.follows.insert(conversation);
        let limit = PAGE_ITEMS_MAX as u32;
        let follow = ReceiptsRequest { conversation, limit, follow: true, ..Default::default() };
        self.ask(request::Op::Receipts(follow), reply);
    }

    /// Ends [`Requests::follow`].
    pub(crate) fn unfollow(&mut self, conversation: u64) {
        self.follows.remove(&conversation);
        let stop = ReceiptsRequest { conversation, stop: true, ..Default::default() };
        self.ask(request::Op::Receipts(stop), None);
    }

    /// A connection stands: what is watched is watched there too.
    pub(crate) fn connected(&mut self) {
        let users: Vec<u64> = self.presences.iter().copied().collect();
        users.chunks(USERS_MAX).for_each(|users| self.subscribe(users.to_vec(), None));
        for conversation in self.follows.clone() {
            self.follow(conversation, None);
        }
        for conversation in self.watches.clone() {
            self.ask(request::Op::Watch(WatchRequest { conversation, stop: false }), None);
        }
    }

    /// The connection is gone: what somebody waits for is asked again, in its order.
    pub(crate) fn disconnected(&mut self) {
        for (_, request) in std::mem::take(&mut self.under_way).into_iter().rev() {
            self.waiting.push_front(request);
        }
        self.waiting.retain(|request| request.reply.is_some());
    }

    /// The next request that may leave.
    pub(crate) fn next_to_send(&mut self) -> Option<packet::Request> {
        while self.under_way.len() < REQUESTS_MAX as usize {
            let request = self.waiting.pop_front()?;
            if request.is_wanted() {
                self.last_id += 1;
                let op = Some(request.op.clone());
                self.under_way.insert(self.last_id, request);
                return Some(packet::Request { id: self.last_id, op });
            }
        }
        None
    }

    /// An answer came.
    pub(crate) fn answered(&mut self, response: packet::Response) {
        if let Some(request) = self.under_way.remove(&response.id) {
            request.end(response.result.ok_or(RequestError::WrongAnswer));
        }
    }

    /// A refusal came.
    pub(crate) fn refused(&mut self, refusal: Refusal) {
        if let Some(request) = self.under_way.remove(&refusal.request) {
            request.end(Err(RequestError::Refused(refusal)));
        }
    }

    /// The client has come to its end.
    pub(crate) fn end(self, why: Option<&str>) {
        for request in self.under_way.into_values().chain(self.waiting) {
            request.end(Err(RequestError::Closed(why.map(ToOwned::to_owned))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(user: u64) -> request::Op {
        request::Op::Users(packet::UsersRequest { users: vec![user] })
    }

    fn asked(requests: &mut Requests) -> Vec<request::Op> {
        std::iter::from_fn(|| requests.next_to_send()).filter_map(|request| request.op).collect()
    }

    #[test]
    fn a_lost_connection_asks_again_in_order_what_is_still_wanted() {
        let mut requests = Requests::default();
        let mut answers: Vec<_> = (0..10)
            .map(|user| {
                let (reply, answer) = oneshot::channel();
                requests.ask(op(user), Some(reply));
                answer
            })
            .collect();
        assert_eq!(asked(&mut requests).len(), REQUESTS_MAX as usize, "no more than the broker allows");
        requests.refused(Refusal::request(1, longwire_protocol::reason::Reason::Forbidden));
        assert!(matches!(answers[0].try_recv(), Ok(Err(RequestError::Refused(_)))));
        drop(answers.remove(1));
        requests.disconnected();
        let again = asked(&mut requests);
        assert_eq!(again, [2, 3, 4, 5, 6, 7, 8, 9].map(op));
    }

    #[test]
    fn what_is_watched_is_watched_on_every_connection() {
        let mut requests = Requests::default();
        let (reply, _answer) = oneshot::channel();
        requests.watch(5, reply);
        assert_eq!(asked(&mut requests).len(), 1);
        requests.answered(packet::Response { id: 1, result: None });
        requests.disconnected();
        requests.connected();
        assert_eq!(asked(&mut requests), [request::Op::Watch(WatchRequest { conversation: 5, stop: false })]);
        requests.unwatch(5);
        requests.disconnected();
        requests.connected();
        assert!(asked(&mut requests).is_empty());
    }

    #[test]
    fn what_is_followed_is_followed_on_every_connection() {
        let mut requests = Requests::default();
        requests.follow(5, None);
        requests.follow(6, None);
        requests.unfollow(5);
        assert_eq!(asked(&mut requests).len(), 3);
        requests.disconnected();
        requests.connected();
        let again = asked(&mut requests);
        let [request::Op::Receipts(receipts)] = &again[..] else { panic!("{again:?} is asked for") };
        assert!(receipts.conversation == 6 && receipts.follow && !receipts.stop && receipts.limit == 200);
    }

    #[test]
    fn whose_presence_is_told_is_asked_for_on_every_connection() {
        let mut requests = Requests::default();
        let (reply, _answer) = oneshot::channel();
        requests.subscribe((1..=150).collect(), Some(reply));
        requests.subscribe((151..=300).collect(), None);
        assert_eq!(asked(&mut requests).len(), 2);
        requests.answered(packet::Response { id: 1, result: None });
        requests.answered(packet::Response { id: 2, result: None });
        requests.unsubscribe(vec![7]);
        requests.disconnected();
        requests.connected();
        let again = asked(&mut requests);
        let users = |op: &request::Op| match op {
            request::Op::Presence(presence) if !presence.stop => presence.users.clone(),
            other => panic!("{other:?} is asked for"),
        };
        assert!(again.iter().all(|op| users(op).len() <= USERS_MAX), "no more at a time than a request takes");
        let again: Vec<u64> = again.iter().flat_map(users).collect();
        assert_eq!(again, (1..=300).filter(|user| *user != 7).collect::<Vec<_>>());
    }

    #[test]
    fn too_many_are_refused_and_none_waits_for_ever() {
        let mut requests = Requests::default();
        let mut answers: Vec<_> = (0..=WAITING_MAX as u64)
            .map(|user| {
                let (reply, answer) = oneshot::channel();
                requests.ask(op(user), Some(reply));
                answer
            })
            .collect();
        assert!(matches!(answers[WAITING_MAX].try_recv(), Ok(Err(RequestError::TooMany))));
        requests.end(Some("over"));
        assert!(matches!(answers[0].try_recv(), Ok(Err(RequestError::Closed(Some(_))))));
    }
}
