//! Groups: a log for each, whatever its size, and who is in it.
//!
//! What has to be durable is in the logs of a [`Store`] of their own. The key of a group's messages is the group; group
//! ids are below 2^63. The key of its *book* is the group with the highest bit set: operations on settings, members and
//! read marks, each of which says how things are from then on, so that playing one twice does no harm. The book of
//! group 0, which does not exist, says which groups there are. Books are not bound by number or age
//! ([`Limits::books_from`](crate::Limits::books_from)); one that has become much longer than what it says is begun
//! anew.
//!
//! Members are in memory, as the books say at the start: about 50 bytes a membership, whoever is online.
//!
//! What is asked and answered is in `group_ask`, beside the requests of users.
//!
//! | file | what |
//! |---|---|
//! | `book` | settings, members and marks in memory; pure |
//! | `page` | operations and snapshots as the payload of a record |
//! | `keep` | requests to operations and back: one commit for a batch |
//! | `with` | inboxes and groups as one store |

mod book;
mod keep;
mod page;
mod with;

pub use keep::{GroupLimits, GroupStats, Groups, group_store_limits};
pub use with::WithGroups;

#[cfg(doc)]
use crate::Store;
