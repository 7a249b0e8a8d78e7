//! Lines about who is online: users who are watched, and what is told of them.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use trunkline_client::{Client, Online, UserPresence};

use crate::text;

/// How long `/watch` waits for the gateway to tell of all users. It says that it does not know after three seconds.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Users whom a `/watch` waits for.
#[derive(Debug)]
struct Waiting {
    users: BTreeSet<u64>,
    told: oneshot::Sender<()>,
}

/// Every `/watch` that has not been answered.
#[derive(Debug, Default)]
pub(crate) struct Watching(Vec<Waiting>);

impl Watching {
    /// Waits for the first word about these users; the future ends with the sentence that says why there was none.
    pub(crate) fn wait(
        &mut self,
        client: Client,
        users: Vec<u64>,
    ) -> impl Future<Output = Result<String, String>> + use<> {
        let (told, answer) = oneshot::channel();
        self.0.retain(|waiting| !waiting.told.is_closed());
        self.0.push(Waiting { users: users.iter().copied().collect(), told });
        async move {
            let asked = client.watch(users).await;
            asked.map_err(|error| text::printable(error.to_string().as_bytes()))?;
            match timeout(ANSWER_WAIT, answer).await {
                Ok(Ok(())) => Ok(String::new()),
                Ok(Err(_)) | Err(_) => Err("the gateway has not told of all of them".into()),
            }
        }
    }

    /// The gateway has told of these users. To be called when that is on the screen.
    pub(crate) fn told(&mut self, users: &[UserPresence]) {
        for waiting in &mut self.0 {
            waiting.users.retain(|user| users.iter().all(|presence| presence.user != *user));
        }
        let done: Vec<Waiting> = self.0.extract_if(.., |waiting| waiting.users.is_empty()).collect();
        for waiting in done {
            // Who no longer waits has no interest in it.
            let _ = waiting.told.send(());
        }
    }
}

/// One line for what is so of a user.
pub(crate) fn line(presence: &UserPresence) -> String {
    let user = presence.user;
    match presence.online {
        Online::Yes if presence.device_classes.is_empty() => format!("user {user} is online"),
        Online::Yes => {
            let classes = text::printable(presence.device_classes.join(", ").as_bytes());
            format!("user {user} is online ({classes})")
        }
        Online::No => format!("user {user} is offline"),
        Online::Unknown => format!("nobody knows at the moment whether user {user} is online"),
    }
}
