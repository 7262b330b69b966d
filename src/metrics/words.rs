//! The words that tell the rows of a metric apart: each a closed list, so that nothing that a peer says becomes a label.

use std::ops::Index;

use longwire_protocol::reason::Reason;

/// A label's name and its word.
pub type Label = (&'static str, &'static str);

/// One of a closed list.
pub trait Word: Copy + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// Its place, below [`Word::ALL`]'s length or not much above.
    fn place(self) -> usize;

    /// What it is called.
    fn labels(self) -> Vec<Label>;
}

/// A `T` for each word.
#[derive(Debug)]
pub struct Each<K, T>(Box<[T]>, std::marker::PhantomData<K>);

impl<K: Word, T: Default> Default for Each<K, T> {
    fn default() -> Self {
        let most = K::ALL.iter().map(|word| word.place()).max().unwrap_or(0);
        Self((0..=most).map(|_| T::default()).collect(), std::marker::PhantomData)
    }
}

impl<K: Word, T> Index<K> for Each<K, T> {
    type Output = T;

    fn index(&self, word: K) -> &T {
        &self.0[word.place()]
    }
}

impl<K: Word, T> Each<K, T> {
    /// Each with its word's labels.
    pub fn iter(&self) -> impl Iterator<Item = (Vec<Label>, &T)> {
        K::ALL.iter().map(|word| (word.labels(), &self[*word]))
    }
}

impl Word for Reason {
    const ALL: &'static [Self] = Self::ALL;

    fn place(self) -> usize {
        self.number() as usize
    }

    fn labels(self) -> Vec<Label> {
        vec![("reason", self.name())]
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident $label:literal { $($(#[$variant_doc:meta])* $variant:ident $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn place(self) -> usize {
                self as usize
            }

            fn labels(self) -> Vec<Label> {
                match self { $(Self::$variant => vec![($label, $word)],)* }
            }
        }
    };
}

words! {
    /// The listener that a connection came in by.
    Door "listener" {
        /// That with TLS.
        Tls "tls",
        /// That without.
        Plain "plain",
        /// None: the program that the broker is part of handed it over.
        Handed "none",
    }
}

words! {
    /// Why a socket was closed before a byte of it was read: the limit that was reached.
    Full "limit" {
        /// `limits.connections`.
        Connections "connections",
        /// `limits.connections_per_address`.
        Address "connections_per_address",
        /// `limits.handshakes`, the line before them included, or the part that one address has.
        Handshakes "handshakes",
        /// `limits.memory`.
        Memory "memory",
    }
}

words! {
    /// How a TLS handshake ended.
    Handshake "result" {
        /// The connection goes on.
        Done "done",
        /// The peer, or what it wants, is not as it should be.
        Failed "failed",
        /// It took too long, the wait for its turn included.
        Late "late",
    }
}

words! {
    /// How somebody says who it is.
    Method "method" {
        /// A token.
        Token "token",
        /// A password.
        Password "password",
        /// A password for a new account.
        Registration "registration",
    }
}

words! {
    /// What there was too much of.
    Bucket "bucket" {
        /// Publishes of a connection.
        Connection "connection",
        /// Publishes of a user.
        User "user",
        /// Publishes into a conversation.
        Conversation "conversation",
        /// Conversations and members made by a user.
        Makes "makes",
        /// Passwords tried.
        Passwords "passwords",
        /// Sessions of one device that take over from each other.
        Takeovers "takeovers",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_has_a_place_of_its_own() {
        let reasons: Each<Reason, std::cell::Cell<u32>> = Each::default();
        Reason::ALL.iter().for_each(|reason| reasons[*reason].set(reasons[*reason].get() + reason.number()));
        assert!(Reason::ALL.iter().all(|reason| reasons[*reason].get() == reason.number()));
        assert_eq!(reasons.iter().count(), Reason::ALL.len());
        assert_eq!(Bucket::User.labels(), [("bucket", "user")]);
    }
}
