//! A reload as those see it who ask for one: the question, and the answer. [`crate::reload`] carries it out.

use std::fmt;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait; there is no use in more, since each reads the files anew.
pub(crate) const REQUESTS_MAX: usize = 4;

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What has changed and is in force now.
    pub applied: Vec<Change>,
    /// What has changed and needs a restart.
    pub needs_restart: Vec<Change>,
}

/// A setting that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its key.
    pub key: &'static str,
    /// What has changed, in words: the new value, the old one, and where the new one comes from. No secrets.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.key, self.what)
    }
}

/// Asks a node to reload. A clone asks the same node.
#[derive(Clone, Debug)]
pub struct Reload(mpsc::Sender<Asked>);

/// What is asked of it.
#[derive(Debug)]
pub(crate) enum Asked {
    /// To read everything.
    All(oneshot::Sender<Result<Reloaded, String>>),
    /// To read the files of TLS, which have changed.
    Certificates,
}

impl Reload {
    /// Asks whoever receives from the other end.
    pub(crate) fn new(asks: mpsc::Sender<Asked>) -> Self {
        Reload(asks)
    }

    /// Reloads, and waits until it is done.
    ///
    /// # Errors
    /// Why the configuration is refused, or cannot be read in time; the one in force stays.
    pub async fn ask(&self) -> Result<Reloaded, String> {
        let ending = || "the node is ending".to_owned();
        let (answer, answered) = oneshot::channel();
        self.0.send(Asked::All(answer)).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())?
    }
}
