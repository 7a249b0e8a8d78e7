//! Where messages without a known fate outlive the process.

use std::fmt::Debug;
use std::io;

use trunkline_proto::Outcome;

use crate::{Error, Outgoing};

/// Keeps the messages of [`crate::Client::submit`] and its likes until their fate is known, so that a crash of the
/// process loses none of them: [`crate::Config::outbox`]. [`crate::FileOutbox`] is one; a database is another.
///
/// The calls are made within the asynchronous tasks of the application and of the client, and sending waits for them:
/// they should take no longer than a write to a local disk.
///
/// One outbox serves one client at a time. Its messages are those of one user: they are sent as whoever logs in.
///
/// It hears of each fate once, also of messages that nobody waits for and of those of an earlier process. One around
/// another one is therefore the place to count fates, or to tell somebody of what did not arrive:
///
/// ```
/// use std::io;
/// use trunkline_client::{Error, FileOutbox, Outbox, Outcome, Outgoing};
///
/// #[derive(Debug)]
/// struct Telling(FileOutbox);
///
/// impl Outbox for Telling {
///     fn load(&self) -> io::Result<Vec<Outgoing>> {
///         self.0.load()
///     }
///
///     fn put(&self, message: &Outgoing) -> io::Result<()> {
///         self.0.put(message)
///     }
///
///     fn settle(&self, id: u64, fate: &Result<Outcome, Error>) {
///         match fate {
///             Ok(Outcome::Delivered | Outcome::Stored) => {}
///             Ok(other) => eprintln!("message {id} did not arrive: {other:?}"),
///             Err(error) => eprintln!("message {id}: {error}"),
///         }
///         self.0.settle(id, fate);
///     }
/// }
/// ```
pub trait Outbox: Debug + Send + Sync + 'static {
    /// What was put and is not settled, in the order in which it was put. Called once by each
    /// [`crate::Client::connect`], which sends these messages before all others, with their old ids;
    /// [`crate::Client::receipt`] waits for their fates. They may be as many as [`crate::Config::unacked_max`].
    ///
    /// # Errors
    /// Whatever keeps them from being read; the connect fails with it.
    fn load(&self) -> io::Result<Vec<Outgoing>>;

    /// A message is about to be sent for the first time; its id is set. A second message with the id of one that is not
    /// settled replaces that one.
    ///
    /// # Errors
    /// Whatever keeps it from being kept; the message is not sent then, and the caller gets [`Error::Outbox`].
    fn put(&self, message: &Outgoing) -> io::Result<()>;

    /// The fate of a message is known, or it was given up: it must not be loaded again. An outbox that cannot write
    /// this down should say so at the next [`Self::put`]; the message is then sent once more after a restart, under its
    /// old id.
    fn settle(&self, id: u64, fate: &Result<Outcome, Error>);
}
