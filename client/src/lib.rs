//! A client for the Trunkline gateway, on tokio.
//!
//! [`Client::connect`] logs in and returns two halves: a [`Client`] to send with, which may be cloned, and the
//! [`Events`] that arrive. One background task owns the connection; it keeps the heartbeat, notices a dead server and
//! reconnects.
//!
//! ```no_run
//! use trunkline_client::{Client, Config, Event, Outcome};
//!
//! # async fn example() -> Result<(), trunkline_client::Error> {
//! let (client, mut events) = Client::connect(Config { user: 1, ..Config::default() }).await?;
//!
//! client.send(2, "at most once").await?;
//! match client.send_acked(2, "at least once").await? {
//!     Outcome::Delivered => println!("user 2 has it"),
//!     other => println!("not delivered: {other:?}"),
//! }
//!
//! while let Some(event) = events.next().await {
//!     if let Event::Message(message) = event {
//!         println!("{} says {:?}", message.from, message.body);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Delivery
//!
//! - [`Client::send`] is at most once: it fails while there is no connection, and a message that was queued when the
//!   connection broke is lost.
//! - [`Client::send_acked`] is at least once: the message is kept until the gateway reports its fate, and sent again,
//!   under the same id, after every reconnect. [`Client::send_tracked`] is the same in two steps, for pipelining in
//!   order: its [`Receipt`] can be awaited, left alone ([`Receipt::detach`], or dropped) or given up
//!   ([`Receipt::cancel`]).
//! - A received message that wants an acknowledgement is acknowledged when the application asks for the next event, so
//!   that a crash while it works on a message loses nothing; [`Config::acknowledge`] has other ways, among them a
//!   [`Guard`] for each message, which gives it back if the work on it fails. Until then the gateway will deliver it
//!   again; such duplicates are removed here by (sender, id) within the last [`Config::dedup_window_len`] messages.
//!
//! # Services
//!
//! [`Client::call`] asks a service, and gets its answer or an [`Error::Call`], which says whether the call may have
//! been carried out all the same. What a service pushes is an [`Event::Message`] of which [`Message::service`] says the
//! number; it is acknowledged and kept like what users send. The other side, a worker that serves and pushes, is
//! `service::Service`: it is for back-ends, at a port of its own, and needs no [`Client`].
//!
//! # Groups and live rooms
//!
//! A group has members and a log at the gateway; a live room (ids from 2⁶³ on, [`is_live_room`]) is for those who are
//! there, and nothing is kept of it. [`Client::join_group`] and [`Client::leave_group`] change who is in;
//! [`Client::send_to_group_acked`] and [`Outgoing::to_group`] send; messages come as [`Event::GroupMessage`].
//!
//! - Messages of a group are events each once and in order. What the session was not given, because it was away, its
//!   connection was full, or the application was too slow, is fetched from the log and comes first; meanwhile what
//!   comes waits. [`Event::GroupGap`] tells of it, and [`Event::GroupTruncated`] when the log has it no more.
//! - There is one exception to the order: of the first messages of a connection one may be lost at the gateway, unseen
//!   until the gateway says so. It then comes late; its [`GroupMessage::stamp`] has its place.
//! - A membership of a group is the user's. Groups of which this client has no position yet are told with
//!   [`Event::GroupHeads`]; [`Client::follow_group`] fetches what lies behind a position, [`Client::group_history`]
//!   looks at it. [`Resume::groups`] lets a later process go on: a position is passed when the application asks for the
//!   next event, or, with [`Acknowledge::OnTake`], when it takes the message.
//! - A live room is the session's: the client joins it again after each reconnect, before anything else is sent.
//!   [`Event::GroupGap`] tells how many messages were missed, with 0 after a reconnect, when that is not known.
//! - Own messages do not come back, and do not count as missed. One without an acknowledgement has a number that the
//!   client does not know; a message of a live room that is missed just then may be taken for it.
//! - Messages with [`Outgoing::without_store`] that a session was not given are gone; [`Event::GroupGap`] counts them.
//!
//! ```no_run
//! # use trunkline_client::{Client, Config, Error, Event};
//! # async fn example() -> Result<(), Error> {
//! let (client, mut events) = Client::connect(Config { user: 1, ..Config::default() }).await?;
//! client.join_group(77).await?;
//! client.send_to_group_acked(77, "hello all").await?;
//! while let Some(event) = events.next().await {
//!     if let Event::GroupMessage(message) = event {
//!         println!("{} in {}: {:?}", message.from, message.group, message.text());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # A gateway that keeps messages
//!
//! Where the gateway has a store ([`SessionInfo::registered`]), it keeps messages with acknowledgement for each device
//! of a user, known by its name, until that device acknowledges them. Then:
//!
//! - [`Outcome::Stored`] says that the message is on the gateway's disk: it survives the gateway's crash and comes
//!   after the recipient's next login. [`Outgoing::without_store`] is for what is of no use later.
//! - After each login what was missed comes first and in order, as [`Event::Message`]s of which [`Message::is_replay`]
//!   is true; what is sent meanwhile comes beside it. [`Event::CaughtUp`] is the end. At most [`Config::replay_window`]
//!   of them are unacknowledged at a time, so that an application is given them as fast as it takes them.
//! - Each message is an event once in the life of a client, over reconnects and crashes of the gateway. What was
//!   dropped ([`Event::Lost`]) or given back by a [`Guard`] is fetched again after 5 s. Many messages that were taken
//!   in order are acknowledged with one frame.
//! - A gap is always told: [`Event::Truncated`].
//! - [`Client::history`] looks at what is held, page by page, without taking it.
//! - [`Client::resume`] and [`Config::resume`] let a later process tell whether the gateway goes on from where the
//!   earlier one was; the position itself is kept by the gateway. A crash may cost the last 200 ms of it: an
//!   application that must not handle a message twice remembers (sender, id).
//! - A device with [`Config::ephemeral`] gets what comes while it is connected, and nothing is kept for it.
//!
//! # Message ids
//!
//! An id must never be 0 and must be unique for its sender, over restarts and over all devices of that user. Ids count
//! up from a base drawn at random from 2⁶³ values for each client. Two runs that send `n` messages each overlap with a
//! probability of about `n / 2⁶²`; no clock and no file is needed.
//!
//! An application may give ids of its own, with [`Client::submit`]: then a message that it sends again after a crash is
//! recognised by its recipient.
//!
//! # Fates
//!
//! | fate | what it means | what to do |
//! |---|---|---|
//! | [`Outcome::Delivered`] | a device of the recipient has acknowledged it | nothing |
//! | [`Outcome::Stored`] | it is on the gateway's disk, and comes with the recipient's next login | nothing |
//! | [`Outcome::Accepted`] | a group has it, and nobody keeps it | nothing |
//! | [`Outcome::OfflineNotStored`] | nobody was there and nobody keeps it | send it later, if it is still of use |
//! | [`Outcome::Overloaded`] | a limit was hit | send it again after a while |
//! | [`Outcome::InboxFull`] | more waits for the recipient than may | send it when the recipient was there |
//! | [`Outcome::Expired`] | its time was over before anybody had it: a push of a service with a time to live | nothing |
//! | [`Outcome::Denied`] | this user may not write to the recipient, or to the group | do not send it again |
//! | [`Error::Refused`] | the gateway does not want it | do not send it again |
//! | [`Error::NoFate`] | the time is over; it may have been delivered | send it again, if it is still of use |
//!
//! Each of them is the end of the message for this client and for [`Config::outbox`]. To send it again without the
//! recipient seeing it twice: [`Client::submit`] with [`Outgoing::with_id`] of the same id, and [`Outgoing::as_retry`].
//!
//! # Crashes
//!
//! Messages whose fate is not known end with the process, unless [`Config::outbox`] keeps them: with a [`FileOutbox`]
//! the next process sends them first, under their old ids. [`Client::close`] returns them, and [`Client::unsettled`]
//! lists them. At the receiving end, a message is delivered again if the process died before it asked for the next
//! event; an application that must not handle it twice remembers (sender, id) along with what it did.
//!
//! Where all it does is to send something, the id of that can do the remembering. [`Client::answer`] makes the answer's
//! id of the question's. So this answers each message once, whenever the process is killed: the answer is in the outbox
//! before the question is acknowledged, and a question that comes again gets an answer under the same id, which the
//! asking client takes for the one it has.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use trunkline_client::{Client, Config, Durability, Event, FileOutbox};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let outbox = Arc::new(FileOutbox::open("bot.outbox", Durability::Process)?);
//! let (client, mut events) = Client::connect(Config { user: 7, outbox: Some(outbox), ..Config::default() }).await?;
//! while let Some(event) = events.next().await {
//!     match event {
//!         // What this user has sent from another device is no question; two devices would answer each other for ever.
//!         Event::Message(question) if !question.is_own() => {
//!             // After an error the question is not acknowledged, and comes again.
//!             client.answer(&question, "thank you").await?.detach();
//!         }
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `examples/bot.rs` has it all.
//!
//! # Bounds
//!
//! | what | bound | when it is reached |
//! |---|---|---|
//! | events waiting for the application | [`Config::event_queue_len`], and as many read ahead, 256 and 1 MiB at most | the connection is not read for up to [`Config::event_wait`]; then events are dropped, messages unacknowledged, and [`Event::Lost`] tells how many |
//! | commands waiting for the connection | [`Config::send_queue_len`] | sending waits |
//! | messages without a known fate | [`Config::unacked_max`] | [`Error::TooManyUnacked`]; [`Client::submit_when_room`] waits |
//! | calls under way | 1,024, and what the gateway allows (32) | [`Error::Call`] with 11 |
//! | time without a known fate | [`Config::fate_timeout`] | [`Error::NoFate`] |
//! | messages of a backlog without an acknowledgement | [`Config::replay_window`], [`Config::event_queue_len`] | the rest waits at the gateway |
//! | replayed while a page of history is on its way | 4,096 and 64 MiB | the connection ends with [`Reason::Protocol`] |
//! | dropped messages to be fetched again | 4,096 | those beyond come after the next login |
//! | groups and live rooms | 4,096 | what comes of further groups is passed on as it comes; a further room is [`Error::Refused`] with 22 |
//! | messages held while others of their group are fetched | 256 and 4 MiB | those beyond are fetched in their turn |
//! | joins and leaves under way | 1,024 | [`Error::Refused`] with 11 |
//! | messages of groups remembered to remove duplicates | 8,192 | the oldest are forgotten |
//! | guards at a time | [`Config::event_queue_len`] and 16 | [`Client::guard`] waits |
//! | one frame | the gateway's `max_frame` | [`Error::PayloadTooLarge`] |
//! | addresses learnt from gateways | 16 | the one not used for longest is forgotten |
//! | bytes waiting for the socket | 64 KiB and one frame of messages, 64 KiB of answers | commands wait; the connection is not read |
//!
//! # Reconnecting
//!
//! The first connection is the application's to ask for again, since it is there that a wrong address or token shows.
//! [`Error::allows_reconnect`] tells those from a gateway that is not up yet:
//!
//! ```no_run
//! # use trunkline_client::{Client, Config, Error, Events};
//! # async fn connect(config: Config) -> Result<(Client, Events), Error> {
//! loop {
//!     match Client::connect(config.clone()).await {
//!         Err(error) if error.allows_reconnect() => eprintln!("{error}; again in two seconds"),
//!         done => return done,
//!     }
//!     tokio::time::sleep(std::time::Duration::from_secs(2)).await;
//! }
//! # }
//! ```
//!
//! After a broken connection ([`Event::Disconnected`]) the client waits (see [`Backoff`]) and logs in again: at the
//! address the gateway named, if it named one, then where the last login worked, then at [`Config::addrs`] in their
//! order and at up to 16 addresses learnt from gateways, one for each attempt, until one takes it;
//! [`Event::ReconnectFailed`] tells of those that do not. Each name is resolved anew for each attempt. After four
//! redirections in a row, without a session of 10 s in between, the next one is ignored.
//!
//! It does not come back after the reasons 6 bad credentials, 7 unsupported version, 8 replaced by a newer login, 15
//! kicked by an operator and 20 bad request: there the same attempt would fail again or, worse, throw out the newer
//! login. The one exception: after 6 [`Token::provider`] is asked for another token, up to eight times for about a
//! minute, and that one is tried once.
//!
//! # Tokens
//!
//! A session ends with its token. With [`Token::provider`] the client asks for a new one when 60 to 80 % of the time
//! are over, at random, so that clients that came together do not renew together, and gives it to the session (RENEW).
//! If there is none, or the gateway does not take it, [`Event::TokenNotRenewed`] says so and the client tries again,
//! until the end:
//! [`Event::Disconnected`] with reason 6, "the token has expired".
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `tcp` | on | `Tcp` and [`Client::connect`]; without it, connections are made by a [`Dial`] of the application's |
//! | `tls` | off | `Tls`: connections over TLS, for [`Client::connect_with`] |
//! | `ws` | off | `Ws`: `ws://` and `wss://`, through whatever lets HTTP pass |
//! | `stream` | on | [`futures_core::Stream`] for [`Events`] |

#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod acks;
mod addrs;
mod answer;
mod backoff;
mod calls;
mod client;
mod config;
mod config_error;
mod connect;
mod dial;
mod driver;
mod error;
mod event;
mod events;
mod file_outbox;
mod follow;
mod group;
mod group_asks;
mod guard;
mod history;
mod ids;
mod inbound;
mod login;
mod outbound;
mod outbox;
mod outlet;
mod payload;
mod presence;
mod random;
mod recall;
mod receipt;
mod renewal;
mod resume;
mod retry_after;
#[cfg(feature = "tcp")]
pub mod service;
mod session;
mod session_info;
mod state;
mod sync;
#[cfg(feature = "tcp")]
mod tcp;
#[cfg(feature = "tls")]
mod tls;
mod token;
mod unsettled;
#[cfg(feature = "ws")]
mod websocket;
mod window;

/// The examples of the README are compiled with the others, where there is all that they show.
#[cfg(all(doctest, feature = "tls", feature = "ws"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// So are those for developers of services.
#[cfg(all(doctest, feature = "tcp"))]
#[doc = include_str!("../../docs/services.md")]
struct ServicesDocument;

/// So are those for developers of applications with groups.
#[cfg(doctest)]
#[doc = include_str!("../../docs/groups.md")]
struct GroupsDocument;

pub use backoff::Backoff;
pub use bytes::Bytes;
pub use calls::{Call, Reply};
pub use client::Client;
pub use config::{Acknowledge, Config};
pub use config_error::ConfigError;
pub use dial::Dial;
pub use error::{Error, Reason, sentence};
pub use event::{Event, Message};
pub use events::Events;
pub use file_outbox::{Durability, FileOutbox};
pub use group::{GroupHead, GroupMessage, GroupPage, is_live_room};
pub use guard::Guard;
pub use history::{History, Page};
pub use outbox::Outbox;
pub use payload::{Outgoing, Payload};
pub use presence::{Online, UserPresence};
pub use receipt::Receipt;
pub use resume::Resume;
pub use session_info::SessionInfo;
#[cfg(feature = "tcp")]
pub use tcp::Tcp;
#[cfg(feature = "tls")]
pub use tls::Tls;
pub use token::Token;
pub use trunkline_proto::{Code, Outcome};
#[cfg(feature = "ws")]
pub use websocket::{UpgradeRefused, Ws, WsStream};
