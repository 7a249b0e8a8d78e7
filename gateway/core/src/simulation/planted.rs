//! Bugs that can be planted in the data path, to see that the simulator finds them.

use std::cell::Cell;

/// A bug in the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A connection id is taken for the connection that has its slot now.
    GenerationIgnored,
    /// The fate of every tenth message is not told.
    FateLost,
    /// Some sessions are not told of to their new home.
    SessionUntold,
    /// A sender is told that its message is stored when the store has only been asked.
    StoredEarly,
    /// A message, to a user or a group, that comes behind the RETRY of it is taken for another one.
    LateTakenAnew,
    /// A sender is told of the store although it was told of an ACK.
    ToldTwice,
    /// A device's cursor passes what it has not acknowledged.
    CursorAhead,
    /// The store of one node gives messages positions near its clock, however far that was set back.
    PulledBack,
    /// A device is not told of what was given up, and not stored, though another one has it.
    GapUntold,
    /// A page of a backlog comes the wrong way round.
    BacklogUnordered,
    /// Of a backlog all comes, whatever is unacknowledged.
    BacklogUnbounded,
    /// The store takes what the home of an earlier view would add, though a later one has claimed the log.
    StaleTaken,
    /// The fate of some messages that are stored is told and not counted.
    FateUncounted,
    /// What some messages took that waited for an ACK is not given back.
    BudgetLeaked,
    /// A session gets messages of a group that its user has left.
    LeaveIgnored,
    /// A session that was not given something of a group is not told.
    HeadsForgotten,
    /// A session that logs in is not in some of its user's groups.
    GroupNotEntered,
    /// Some messages to a group have the number of the one before.
    NumberTwice,
    /// The home of a group goes on as if a message that the store may have were not in the log.
    LogTakenForKnown,
    /// The store takes messages to a group from a home of an earlier view.
    StaleHomeStores,
    /// A session is given all messages of live rooms, however many there are in a second.
    BudgetIgnored,
    /// A session of a large group that pays no attention is not told what there is.
    PassiveUntold,
    /// A message to a group comes back to the session that sent it.
    EchoedToSender,
    /// A message to a group is given to its members before it is stored.
    FannedOutEarly,
    /// The home of a live room sends two copies to each node.
    CopiedTwice,
    /// What a shard has for a node to which another one has the link is sent twice.
    CarriedTwice,
    /// A link that found no large receive buffer is read behind those that took them all.
    StarvedLast,
    /// The new home of some live rooms is not asked for copies.
    InterestUntold,
    /// What a session says behind the join of a live room does not wait for the answer.
    SaidTooSoon,
    /// Nodes are not told of members of durable groups who leave.
    MemberUntold,
    /// The new home of a live room goes on with the next number, though it does not know what was passed on before.
    NoneLeftOut,
    /// A worker is given more calls than its window.
    WindowIgnored,
    /// A call that may have been carried out goes to another worker although that does harm.
    LostRetried,
    /// The worker of a call whose session has ended is not told.
    CancelForgotten,
    /// The node that has a call whose session has ended is not told.
    FarCancelForgotten,
    /// The caller of every tenth call does not get the last answer.
    ReplyForgotten,
    /// Watchers are told of a user's every coming online.
    PresenceTooOften,
    /// Watchers are not told of a change whose time has come.
    PresenceUntold,
    /// The new home of a user is not asked by those who watch.
    WatchUnasked,
    /// A session that renews its token keeps the claim of the one before.
    ClaimOutlived,
    /// What a token allows does not go along to another shard.
    ClaimLost,
    /// The clock of a node stands still while its machine is suspended.
    ClockStandsStill,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether the bug is planted for this thread.
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Runs `body` with a bug planted.
pub(super) fn with_planted<T>(bug: Bug, body: impl FnOnce() -> T) -> T {
    PLANTED.set(Some(bug));
    let result = body();
    PLANTED.set(None);
    result
}
