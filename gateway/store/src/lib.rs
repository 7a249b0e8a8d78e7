//! The embedded message store: what users have not acknowledged, and how far each of their devices is.
//!
//! A store is asked in batches of [`Request`]s and gives one [`Answer`] for each that has a token. What an answer
//! promises is on disk when it is given: all requests of a batch are made durable by one commit. [`StoreThread`] owns a
//! store on a thread of its own; [`StoreMail`] is its bounded mailbox, which never makes a shard wait. [`Memory`] is a
//! store with the same semantics for simulations, whose failures are asked for.
//!
//! A user's messages are a log. The position of a message is its *stamp*: milliseconds since 1970 in the high 44 bits,
//! a counter in the low 20. Stamps of a user strictly increase. Each registered device has a *cursor*, the stamp up to
//! which it has everything; what all registered devices have is dropped. The *floor* is the highest stamp of which
//! something may be gone; who asks for what is after an older position is told `truncated`.
//!
//! [`Groups`] keeps groups: a log for each whatever its size, and its members. It is built on a store of its own, and
//! [`WithGroups`] is both as one store.
//!
//! The crate knows nothing of shards, rings or sockets. It reads no clock but the one it is given.

mod codec;
mod copy;
mod disk;
mod embedded;
mod group_ask;
mod group_copy;
mod groups;
mod imported;
mod jobs;
mod limits;
mod log;
mod mail;
mod memory;
mod record;
mod request;
mod state;
mod stats;
mod store;
mod table;
mod thread;
mod tools;

pub use copy::{CopyLine, UserCopy};
pub use disk::{DirDisk, Disk, Fault, File, SimDisk, make_folder};
pub use embedded::Embedded;
pub use group_ask::{
    GroupAsk, GroupDenial, GroupInfo, GroupReply, GroupSettings, JoinRule, Member, MemberChange, MemberInfo,
    Membership, Role,
};
pub use group_copy::{GroupCopy, MEMBERS_OF_LINE};
pub use groups::{GroupLimits, GroupStats, Groups, WithGroups, group_store_limits};
pub use imported::Imported;
pub use limits::{Limits, WhenFull};
pub use mail::{MailSender, StoreMail};
pub use memory::Memory;
pub use record::{Page, Payload, Record};
pub use request::{Answer, DeviceInfo, Inbox, Opened, Refusal, Reply, Request, Source};
pub use stats::{COMMIT_BUCKETS_US, Stats};
pub use store::{Clock, Store};
pub use thread::StoreThread;
pub use tools::Checked;

/// Low bits of a stamp that count within a millisecond.
pub const STAMP_COUNTER_BITS: u32 = 20;

/// The milliseconds since 1970 in a stamp.
pub const fn stamp_ms(stamp: u64) -> u64 {
    stamp >> STAMP_COUNTER_BITS
}

/// The lowest stamp of a millisecond; the highest there is beyond the range of stamps.
pub const fn stamp_at(ms: u64) -> u64 {
    if ms >> (64 - STAMP_COUNTER_BITS) != 0 { u64::MAX } else { ms << STAMP_COUNTER_BITS }
}
