//! Packets that hold a token show themselves without it, so that no log line and no panic can tell one.

use std::fmt;

use super::{Connect, RefreshRequest};

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("device", &self.device)
            .field("agent", &self.agent)
            .field("incarnation", &self.incarnation)
            .field("first_unanswered", &self.first_unanswered)
            .field("start", &self.start())
            .field("catch_up", &self.catch_up())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RefreshRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshRequest").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::packet::packet::Kind;
    use crate::packet::{Connect, RefreshRequest, Request, request};

    #[test]
    fn a_token_is_never_shown() {
        let token = "t0ken".to_owned();
        let refresh = request::Op::Refresh(RefreshRequest { token: token.clone() });
        for packet in [
            Kind::Connect(Connect { token, ..Connect::default() }),
            Kind::Request(Request { id: 1, op: Some(refresh) }),
        ] {
            assert!(!format!("{packet:?}{packet:#?}").contains("t0ken"));
        }
    }
}
