//! The features that `Connect` and `Connected` name: what wants an answer, or is not for everybody (SPEC R10-2).

/// The client wants signals of conversations (SPEC R16-4).
pub const SIGNALS: &str = "signals";

/// What a broker of this version announces.
pub const ALL: [&str; 1] = [SIGNALS];
