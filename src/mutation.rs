//! Planted bugs, to see that the simulator sees them. Without the feature `mutations` none is ever planted, and what asks
//! for one is compiled to nothing.

/// A bug that can be planted; each says what is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Publishes are acked before their frame is synced.
    AckBeforeSync = 1,
    /// A repeat of a message id is stored again.
    RepeatStored,
    /// A lane turns live though something was pushed meanwhile.
    LiveTooEarly,
    /// A cursor covers what has not been sent.
    CursorTooEarly,
    /// The stored cursor is where items were sent, not where they were acked.
    StoredCursorTooEarly,
    /// Catching up does not look at who may see what.
    CatchUpIgnoresRights,
    /// Live delivery does not look at who may see what.
    LiveIgnoresRights,
    /// History does not look at who may see what.
    HistoryIgnoresRights,
    /// The draft of a group that failed stays.
    DraftKept,
    /// A mark is not clamped to the head.
    MarkNotClamped,
    /// A mark counts nothing below it.
    MarkCountsNothing,
    /// An older session goes on publishing after a takeover.
    TakeoverDoesNotFence,
    /// A `Head` names one seq less than it skips.
    HeadTooShort,
    /// What has to be sent again is another entry.
    ResendsAnother,
    /// What expired is not reported.
    ExpiredNotReported,
    /// A cursor beyond the end of its segment is resumed.
    ResumedByLuck,
    /// What a reopened store was found to hold is not delivered.
    FoundNotFed,
    /// Bulk does not wait for express to announce a conversation.
    JoinedNotAwaited,
    /// An id is accepted while a lower one of its conversation is open.
    AfterIgnored,
    /// An entry that finds the queue of a lane full is forgotten.
    FullQueueForgets,
    /// The rows of the state are not saved with the run.
    RowsNotSaved,
    /// An item that is too large is left out without a word.
    TooLargeLeftOut,
    /// A backlog comes conversation by conversation.
    BacklogOutOfOrder,
    /// Seqs begin at the entry of a member's removal to be hidden one too early.
    RemovalHidden,
    /// Content of own entries is left out for a whole range of ids.
    OwnWithoutContent,
    /// Express waits for an announcement that has expired.
    WaitsForExpired,
    /// A committed publish is called surely not stored when its repeat is in a group that fails.
    RepeatFailsWithGroup,
    /// Opening a conversation makes earlier messages to it stale.
    OpenedMakesStale,
    /// A watched channel is sent from before it was watched.
    WatchedFromBefore,
    /// The state is saved while the log may hold a frame that the state does not.
    SealedWhileFailed,
    /// A publish that may be stored is called surely not stored when it is repeated.
    OutcomeForgotten,
    /// Who is a member is told to anybody.
    MembersIgnoreRights,
    /// Names are told to who shares no conversation with them.
    UsersIgnoreRights,
    /// Live delivery does not look at the patterns of the token.
    LiveIgnoresPatterns,
    /// Catching up does not look at the patterns of the token.
    CatchUpIgnoresPatterns,
    /// A token's `publish` patterns are not looked at.
    PublishIgnoresPatterns,
    /// Admins decide about admins and owners.
    AdminsDecideAll,
    /// A conversation of others is forbidden, and not unknown.
    ForbiddenTells,
    /// A refreshed token does not change what its session may do.
    RefreshChangesNothing,
    /// A session outlives its token.
    ExpiredGoesOn,
    /// A session goes on when its token was revoked.
    RevokedGoesOn,
    /// An attach whose connection is gone takes over all the same.
    GhostTakesOver,
    /// A session is taken over by one that is not attached, since its group failed.
    TakenOverByNobody,
    /// What was recalled is shown all the same.
    RecalledShown,
    /// Whoever may publish edits what others sent.
    AnyoneEdits,
    /// Whoever reads a channel recalls what others said there.
    AnyoneModerates,
    /// What was recalled counts as unread all the same.
    RecalledCounts,
    /// An item that waits in a lane is sent though its message was recalled meanwhile.
    RecalledInLane,
    /// A ban does not hold against the join key.
    BannedJoins,
    /// Who is blocked goes on writing to who blocked it.
    BlockedMayWrite,
    /// Who is blocked reacts to what who blocked it wrote.
    BlockedMayReact,
    /// Who is blocked says how long entries are kept that who blocked it has, too.
    BlockedSetsRetention,
    /// Who is blocked is told what who blocked it has read.
    MarksIgnoreBlocks,
    /// Marks that are hidden are told.
    HiddenMarksTold,
    /// Marks that are hidden count as delivered.
    HiddenMarksDelivered,
    /// Who shows its presence to fewer, or has left, is not told whom it sees no more for that.
    HiderSeesOn,
    /// Who is blocked is not told that it sees no presence any more.
    BlockedIsShown,
    /// Who is blocked opens a conversation with who blocked it.
    BlockedMayOpen,
    /// Who is blocked brings who blocked it into groups.
    BlockedMayAdd,
    /// Who is blocked sees the profile of who blocked it.
    ProfilesIgnoreBlocks,
    /// A will that was published stays, and is published again.
    WillStays,
    /// After a start nobody looks for devices that do not come back.
    WillsForgottenAtStart,
    /// The will of a device whose right was taken back stays.
    CutLeavesWill,
    /// A device whose right was taken back is told on.
    CutLeavesPush,
    /// Signals go to who is no member any more.
    SignalsIgnoreRights,
    /// Presence is told to anybody.
    PresenceIgnoresRights,
    /// What a conversation keeps no more is shown all the same.
    UnkeptShown,
    /// What a conversation keeps no more counts as unread.
    UnkeptCounts,
    /// What waits in a lane is sent though its conversation keeps it no more.
    UnkeptInLane,
    /// What was kept no more while a device was away is not reported to it.
    UnkeptNotReported,
    /// One device of all has it, and it goes.
    AnyDeviceDelivers,
    /// Any member says how long a group keeps its entries.
    AnyoneSetsRetention,
    /// A level is acked, and not kept for the device.
    LevelNotKept,
    /// What a level withholds is not looked for.
    WithheldForgotten,
    /// An item is sent past what is withheld.
    WithheldOvertaken,
    /// What is withheld is reported up to the newest entry, whatever of that the lane has come to.
    WithheldTooFar,
    /// Nothing says when what is withheld is to be reported.
    WithheldForEver,
    /// A `Head` of what is withheld covers messages that mention the user.
    MentionsWithheld,
    /// Anybody has users erased.
    AnyoneErases,
    /// What an erased user wrote is shown all the same.
    ErasedShown,
    /// What waits in a lane is sent though who wrote it was erased.
    ErasedInLane,
    /// The sessions of an erased user go on.
    ErasedGoesOn,
    /// An erased user is let in again.
    ErasedLetIn,
    /// An erased user stays in its groups and channels.
    ErasedStays,
    /// Nobody owns the groups of an erased user.
    ErasedLeavesNoHeir,
    /// After a start nobody goes on with an erasure.
    EraseForgottenAtStart,
    /// An erasure is done while the files still hold what the user wrote.
    ErasedInFiles,
    /// What was read of an erased user, and waits for room, is sent once the erasure is done.
    ErasedKept,
    /// What was sent to a device counts as delivered before it is acked.
    DeliveredBeforeAck,
    /// Who follows deliveries is told of them when it is not in the conversation any more.
    DeliveriesIgnoreRights,
    /// An ack while somebody follows is not told.
    DeliveriesForgotten,
    /// A device that is away is told of what it has acked.
    PushToldAfterAck,
    /// A device is told of a conversation again before its time.
    PushToldTwice,
    /// A device is told of what is muted, or what it wants nothing of.
    PushIgnoresMute,
    /// After a start nobody knows who has itself told.
    PushForgottenAtStart,
    /// What is shown to contacts is shown to whoever shares a conversation.
    ContactsIgnored,
    /// Who comes again has the window of ids that the records know of, whatever it says has been answered since.
    WindowNotRestored,
    /// Frames that are folded again, at a start or a reopening, leave no answers to publishes.
    AnswersNotRecovered,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 98] = [
        Self::AckBeforeSync,
        Self::RepeatStored,
        Self::LiveTooEarly,
        Self::CursorTooEarly,
        Self::StoredCursorTooEarly,
        Self::CatchUpIgnoresRights,
        Self::LiveIgnoresRights,
        Self::HistoryIgnoresRights,
        Self::DraftKept,
        Self::MarkNotClamped,
        Self::MarkCountsNothing,
        Self::TakeoverDoesNotFence,
        Self::HeadTooShort,
        Self::ResendsAnother,
        Self::ExpiredNotReported,
        Self::ResumedByLuck,
        Self::FoundNotFed,
        Self::JoinedNotAwaited,
        Self::AfterIgnored,
        Self::FullQueueForgets,
        Self::RowsNotSaved,
        Self::TooLargeLeftOut,
        Self::BacklogOutOfOrder,
        Self::RemovalHidden,
        Self::OwnWithoutContent,
        Self::WaitsForExpired,
        Self::RepeatFailsWithGroup,
        Self::OpenedMakesStale,
        Self::WatchedFromBefore,
        Self::SealedWhileFailed,
        Self::OutcomeForgotten,
        Self::MembersIgnoreRights,
        Self::UsersIgnoreRights,
        Self::LiveIgnoresPatterns,
        Self::CatchUpIgnoresPatterns,
        Self::PublishIgnoresPatterns,
        Self::AdminsDecideAll,
        Self::ForbiddenTells,
        Self::RefreshChangesNothing,
        Self::ExpiredGoesOn,
        Self::RevokedGoesOn,
        Self::GhostTakesOver,
        Self::TakenOverByNobody,
        Self::RecalledShown,
        Self::AnyoneEdits,
        Self::AnyoneModerates,
        Self::RecalledCounts,
        Self::RecalledInLane,
        Self::BannedJoins,
        Self::BlockedMayWrite,
        Self::BlockedMayReact,
        Self::BlockedSetsRetention,
        Self::MarksIgnoreBlocks,
        Self::HiddenMarksTold,
        Self::HiddenMarksDelivered,
        Self::HiderSeesOn,
        Self::BlockedIsShown,
        Self::BlockedMayOpen,
        Self::BlockedMayAdd,
        Self::ProfilesIgnoreBlocks,
        Self::WillStays,
        Self::WillsForgottenAtStart,
        Self::CutLeavesWill,
        Self::CutLeavesPush,
        Self::SignalsIgnoreRights,
        Self::PresenceIgnoresRights,
        Self::UnkeptShown,
        Self::UnkeptCounts,
        Self::UnkeptInLane,
        Self::UnkeptNotReported,
        Self::AnyDeviceDelivers,
        Self::AnyoneSetsRetention,
        Self::LevelNotKept,
        Self::WithheldForgotten,
        Self::WithheldOvertaken,
        Self::WithheldTooFar,
        Self::WithheldForEver,
        Self::MentionsWithheld,
        Self::AnyoneErases,
        Self::ErasedShown,
        Self::ErasedInLane,
        Self::ErasedGoesOn,
        Self::ErasedLetIn,
        Self::ErasedStays,
        Self::ErasedLeavesNoHeir,
        Self::EraseForgottenAtStart,
        Self::ErasedInFiles,
        Self::ErasedKept,
        Self::DeliveredBeforeAck,
        Self::DeliveriesIgnoreRights,
        Self::DeliveriesForgotten,
        Self::PushToldAfterAck,
        Self::PushToldTwice,
        Self::PushIgnoresMute,
        Self::PushForgottenAtStart,
        Self::ContactsIgnored,
        Self::WindowNotRestored,
        Self::AnswersNotRecovered,
    ];

    /// Whether this bug is planted.
    #[cfg(not(feature = "mutations"))]
    #[inline(always)]
    #[must_use]
    pub const fn is_planted(self) -> bool {
        false
    }

    /// Whether this bug is planted.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub fn is_planted(self) -> bool {
        PLANTED.load(std::sync::atomic::Ordering::Relaxed) == self as u8
    }

    /// Plants one, or none.
    #[cfg(feature = "mutations")]
    pub fn plant(which: Option<Self>) {
        PLANTED.store(which.map_or(0, |which| which as u8), std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(feature = "mutations")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);
