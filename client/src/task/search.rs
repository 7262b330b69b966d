//! How a restored outbox learns from history what of it is stored.

use std::time::Duration;

use longwire_protocol::packet::{request, response};
use longwire_protocol::reason::Verdict;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Task;
use super::phase::Phase;
use crate::error::RequestError;

/// When a page of history that was refused for now is asked for again, if the broker does not say.
const SEARCH_AGAIN: Duration = Duration::from_millis(250);

impl Task {
    /// Has a restored outbox find out what of it is stored.
    pub(super) fn search(&mut self) {
        let is_connected = matches!(&self.phase, Phase::Online(online) if online.connected);
        if !is_connected || self.searching.is_some() || Instant::now() < self.search_at {
            return;
        }
        match self.outbox.settling().map(|settling| settling.next_request()) {
            Some(Some(page)) => {
                let (reply, answer) = oneshot::channel();
                self.requests.ask(request::Op::History(page), Some(reply));
                self.searching = Some(answer);
            }
            Some(None) => self.outbox.end_settling(),
            None => {}
        }
    }

    pub(super) fn handle_searched(&mut self, answer: Result<response::Result, RequestError>) {
        self.searching = None;
        let incarnation = self.outbox.incarnation();
        let Some(settling) = self.outbox.settling() else { return };
        match answer {
            Ok(response::Result::History(page)) => settling.handle_page(incarnation, page),
            Err(RequestError::Refused(refusal)) if refusal.reason.verdict() != Verdict::Stop => {
                let asked = Duration::from_millis(refusal.retry_after_ms.into());
                self.search_at = Instant::now() + asked.max(SEARCH_AGAIN);
            }
            Ok(_) | Err(RequestError::Refused(_) | RequestError::WrongAnswer) => settling.handle_unreadable(),
            Err(RequestError::TooMany | RequestError::Timeout | RequestError::Closed(_)) => {
                self.search_at = Instant::now() + SEARCH_AGAIN;
            }
        }
    }
}
