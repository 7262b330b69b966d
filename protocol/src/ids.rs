//! Newtypes for what is counted and named, so that two numbers can never change places.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub u64);

        impl $name {
            /// The number that means "none": ids and seqs are counted from 1.
            pub const NONE: Self = Self(0);

            /// The number after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// Whether this is a number at all, and not [`Self::NONE`].
            #[must_use]
            pub const fn is_some(self) -> bool {
                self.0 != 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number!(
    /// A user; `id mod 4096` is its partition.
    UserId
);
number!(
    /// A device of a user; `id mod 4096` is the partition of its user.
    DeviceId
);
number!(
    /// A conversation; `id mod 4096` is its partition.
    ConversationId
);
number!(
    /// An entry's number in its conversation: gap-free from 1.
    Seq
);
number!(
    /// A device's own counter for what it publishes, from 1: the key of idempotence.
    MessageId
);
number!(
    /// One life of a device's counter of message ids; rising, given by the broker.
    Incarnation
);
number!(
    /// One live connection of a device; rising, it fences what an older one sends.
    SessionNumber
);
number!(
    /// Milliseconds since the log's birth: the time of everything durable.
    LogTime
);

/// How many partitions there are; an id's partition is its value modulo this.
pub const PARTITIONS: u64 = 4096;
