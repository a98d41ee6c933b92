//! Bugs that tests plant one by one, to show that a test catches each.
//!
//! Without the feature `planted` every question is answered `false` at compile time, so production has
//! neither the bugs nor a switch for them.

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Bug { $($(#[$doc])* $name),* }
    };
}

bugs! {
    /// A flush answers without syncing the devices.
    FlushSkipsSync,
    /// A flush commits the values of now instead of those of the cut.
    FlushCommitsCurrent,
    /// A write takes space that is promised to a migration.
    PromisesIgnored,
    /// A slot that no entry names any more is never given back.
    SlotLeaked,
    /// A freed slot is reused before the batch that freed it is durable.
    SlotReusedBeforeDurable,
    /// A freed slot is reused while reads that resolved to it still run.
    SlotReusedUnderRead,
    /// A freed slot is discarded before the batch that freed it is durable.
    DiscardedBeforeDurable,
    /// A free slot is handed out while its device discards it.
    ReusedWhileDiscarded,
    /// A block becomes valid when its write is submitted, not when it completed.
    ValidOnSubmission,
    /// A snapshot is taken without draining the writes in flight.
    SnapshotWithoutDrain,
    /// A volume does not know which rollbacks and snapshots it has done.
    OperationForgotten,
    /// A first write does not zero the hidden blocks of its extent.
    HiddenNotZeroed,
    /// A merge moves a block over one that the child has hidden.
    MergeIgnoresHidden,
    /// A clone is made on layers that a merge has changed and no flush made durable.
    CloneWithoutFlush,
    /// A merge between layers that several volumes see changes them in memory before it is durable.
    SharedMergedBeforeDurable,
    /// Blocks that a frozen layer hides are not told to the other side: it shows there what lies below.
    LayerHiddenAsBelow,
    /// A frozen layer is named at the other side although some of it has not arrived.
    LayerNamedIncomplete,
    /// A layer goes on where it was acknowledged, though the other side has forgotten what it had not flushed.
    LayerResumedUnflushed,
    /// Half a layer that a sender left behind is taken for the one that the next sender begins with.
    LayerOfAnotherKept,
    /// The proof before a release looks at the head alone.
    LayersNotProven,
    /// A flip does not wait for the layers that the head stands on.
    LayersNotAwaited,
    /// A volume that is deleted takes with it what its clones stand on.
    GhostNotKept,
    /// A write goes ahead before its region's activation is durable.
    ActivationNotAwaited,
    /// A failed sync is reported once and then forgotten.
    SyncFailureForgotten,
    /// A device counts as mended although another sync of it failed meanwhile.
    MendedTooEarly,
    /// The copier clears dirty bits after reading instead of before.
    DirtyClearedAfterRead,
    /// A write during tracking is not marked dirty.
    DirtyNotMarked,
    /// A failed send does not mark its blocks again.
    SendErrorNotMarked,
    /// Blocks count as clean before a flush of the destination covers them.
    CleanWithoutFlush,
    /// A mirrored write is answered before the destination has it.
    MirrorNotAwaited,
    /// The holder applies without looking at its epoch and lease.
    EpochNotChecked,
    /// The holder acknowledges without looking at its epoch and lease again.
    AckNotFenced,
    /// A progress report of an older generation is accepted.
    StaleProgressAccepted,
    /// A new connection of a session does not drain the old one.
    SessionNotFenced,
    /// A holder that may be superseded keeps nothing of what its own clients were acknowledged.
    OwnWritesNotKept,
    /// A holder that was superseded is the same instance when it holds again.
    SupersededInstanceStays,
    /// A gateway forgets its unflushed writes when the holder restarts.
    ReplayForgotten,
    /// A volume is opened again and nobody learns that unflushed writes may be lost.
    LossNotTold,
    /// What a checkpoint says of leases is believed after a restore.
    RestoredLeaseTrusted,
    /// A holder takes every replay, of whatever term.
    ReplayOverNewer,
    /// Another's write does not end the term of the one whose gateway keeps writes.
    SecondWriterNotTold,
    /// After a restart of the holder nobody waits for what a gateway has to replay.
    ReplayNotAwaited,
    /// The lease moves before the source has drained.
    FlipWithoutDrain,
    /// A forced takeover does not wait for the lease to run out.
    TakeoverWithoutWait,
    /// The source takes over whether or not it has kept its copy.
    TakeoverWithoutCopy,
    /// A request that its client was told has failed is applied later all the same.
    AppliedAfterGivenUp,
    /// The holder goes on alone before the way back is recorded as closed.
    WayBackNotRecorded,
    /// A volume is ended while it is being made, and is there afterwards.
    MakingNotAwaited,
    /// What was sent and not answered is forgotten: what was acknowledged before is replayed over it.
    DoubtForgotten,
    /// A volume's flush may begin while it is being deleted.
    FlushedWhileDeleted,
    /// A process takes its own standstill for the silence of others.
    StandstillCounts,
    /// A way back that was closed because the volume is opened again is opened by who watched it before.
    WayBackOpenedLate,
    /// A sending that was begun before takes the destination to be empty.
    SendNotCompared,
    /// A connection is served whatever proof of the secret it shows.
    SecretNotChecked,
    /// What came unencrypted behind `STARTTLS` is taken as if it had come encrypted.
    PlaintextBehindStartTls,
    /// A tier is opened whatever label its device bears.
    LabelNotChecked,
    /// The source is released without comparing digests.
    ProofSkipped,
    /// A proof counts the blocks that are stored instead of looking at which they are.
    ThicknessCounted,
    /// A block that is sent still counts as known at the other side to stay behind.
    SentStaysAnnounced,
    /// So does one that was announced on a link that is gone.
    AnnouncedOutlivesLink,
    /// A proof begins with what was fetched not durable yet.
    ProofWithoutFlush,
    /// A mirrored write that waited for room on a link that was lost is not marked.
    WaitingNotMarked,
    /// Tracking begins while writes are under way: those that asked before are missed.
    TrackingWithoutBarrier,
    /// A flush does not store which blocks are remote.
    RemoteForgotten,
    /// A remote block reads as zeros.
    RemoteReadAsZero,
    /// What was brought is stored whatever was written meanwhile.
    FillOverNewer,
    /// What was brought is mirrored like a client's write.
    FillMirrored,
    /// A client that waits for a limit is served for as long as it asks.
    LimitStarves,
    /// The destination of a migration does not take the volume's limits over.
    LimitsStayBehind,
    /// A node counts as drained while it has copies left.
    DrainedTooEarly,
    /// A comparison takes blocks that are only at the other side for zeros.
    RemoteSentAsZero,
    /// A comparison reads its own content after the extent's lock was let go: a write may cross it.
    DigestCrossed,
    /// A chunk is given to who knows its digest.
    ChunkNotProven,
    /// Chunks are found whatever tenant they belong to.
    TenantIgnored,
    /// What the other side could not assemble counts as sent.
    LackingNotMarked,
}

#[cfg(feature = "planted")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants `bug`, or none, for what runs on this thread from now on.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    /// Whether `bug` is planted on this thread.
    pub fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted")]
pub use switch::{is_planted, plant};

/// Whether `bug` is planted: never, in this build.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is_planted(_bug: Bug) -> bool {
    false
}
