//! What a shard knows about users whose home and sessions are on different nodes. No I/O and no clock: times are ticks of the shard.
//!
//! A user's *home shard*, found by the ring of the present view, decides about the user's sessions wherever they are. A session on another node
//! than its user's home is a *guest* there; the home has a *remote session* for it. One view and five tables, each bounded:
//!
//! | file | at | question it answers |
//! |---|---|---|
//! | `routing` | every shard | whose home is this user, and what changed with the view? |
//! | `remote` | the home shard | where is the session behind this entry of presence? |
//! | `registrations` | the guest's shard | which logins wait for their home's answer? |
//! | `sent_away` | the sender's shard | which messages with ACK are another node's to answer? |
//! | `parked` | a new home shard | which messages wait until the user's sessions are known here? |
//! | `settling` | a new home shard | has every node told of all its sessions for this view? |

mod parked;
mod registrations;
mod remote;
mod routing;
mod sent_away;
mod settling;
