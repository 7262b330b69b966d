//! Packets that hold a token, a password, a join key or what one is checked by show themselves without it, so that no log
//! line and no panic can tell one.

use std::fmt;

use super::{Connect, Connected, Join, Login, RefreshAnswer, RefreshRequest, SetAccount, SetJoinKey, SetPush};

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

impl fmt::Debug for Connected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected")
            .field("user", &self.user)
            .field("device", &self.device)
            .field("session", &self.session)
            .field("incarnation", &self.incarnation)
            .field("first_unanswered", &self.first_unanswered)
            .field("inbox", &self.inbox)
            .field("cursor", &self.cursor())
            .field("reset_reason", &self.reset_reason())
            .field("now", &self.now)
            .field("token_expires_in_ms", &self.token_expires_in_ms)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("register", &self.register).finish_non_exhaustive()
    }
}

impl fmt::Debug for RefreshAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefreshAnswer").field("expires_in_ms", &self.expires_in_ms).finish_non_exhaustive()
    }
}

impl fmt::Debug for SetAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetAccount").field("user", &self.user).field("close", &self.close).finish_non_exhaustive()
    }
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Join").field("has_key", &!self.key.is_empty()).finish_non_exhaustive()
    }
}

impl fmt::Debug for SetJoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetJoinKey").field("has_key", &!self.key.is_empty()).finish_non_exhaustive()
    }
}

impl fmt::Debug for SetPush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetPush")
            .field("provider", &self.provider)
            .field("shows", &self.shows())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::packet::Kind;
    use crate::packet::{Publish, Request, Response, publish, request, response};

    #[test]
    fn a_secret_is_never_shown() {
        let token = "t0ken".to_owned();
        let refresh = request::Op::Refresh(RefreshRequest { token: token.clone() });
        let refreshed = response::Result::Refresh(RefreshAnswer { token: token.clone(), expires_in_ms: 1 });
        let login = Login {
            password: token.clone(),
            new_password: token.clone(),
            invitation: token.clone(),
            ..Login::default()
        };
        let account = SetAccount { password_hash: token.clone(), ..SetAccount::default() };
        let set = Some(publish::Action::SetAccount(account));
        let (target, secret) = (token.clone(), token.clone().into_bytes().into());
        let push = Some(publish::Action::SetPush(SetPush { target, secret, ..SetPush::default() }));
        let key = || token.clone().into_bytes().into();
        let join = Some(publish::Action::Join(Join { key: key() }));
        let set_key = Some(publish::Action::SetJoinKey(SetJoinKey { key: key() }));
        for packet in [
            Kind::Connect(Connect { token: token.clone(), login: Some(Box::new(login.clone())), ..Connect::default() }),
            Kind::Connected(Connected { token, ..Connected::default() }),
            Kind::Request(Request { id: 1, op: Some(refresh) }),
            Kind::Response(Response { id: 1, result: Some(refreshed) }),
            Kind::Publish(Publish { action: set, ..Publish::default() }),
            Kind::Publish(Publish { action: push, ..Publish::default() }),
            Kind::Publish(Publish { action: join, ..Publish::default() }),
            Kind::Publish(Publish { action: set_key, ..Publish::default() }),
        ] {
            assert!(!format!("{login:?}").contains("t0ken"));
            assert!(!format!("{packet:?}{packet:#?}").contains("t0ken"));
        }
    }
}
