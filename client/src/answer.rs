//! Answers that are sent once, whatever becomes of the process.

use crate::{Client, Error, GroupMessage, Message, Outgoing, Payload, Receipt};

#[cfg(doc)]
use crate::Config;

impl Client {
    /// Answers a message of a user, so that the user sees one answer however often the question is delivered, and
    /// whenever this process is killed in between: the id of the answer is made of the question's sender and id. With
    /// [`Config::outbox`] the answer is kept from the moment on in which this returns. Waits while
    /// [`Config::unacked_max`] messages have no known fate.
    ///
    /// An answer to the same question that is still under way, out of the outbox of an earlier process for example, is
    /// left as it is, and its receipt returned. A second answer to one question would be taken for the first: whatever
    /// else there is to say goes with [`Self::submit`]. What this user has sent from another device
    /// ([`Message::is_own`]) is not to be answered: two devices of a bot would do so for ever.
    ///
    /// # Errors
    /// As [`Self::submit_when_room`]; [`Error::DuplicateId`] only where somebody waits for the fate of that answer.
    pub async fn answer(&self, question: &Message, payload: impl Into<Payload>) -> Result<Receipt, Error> {
        let mut answer = Outgoing::new(question.from, payload).with_id(id_of_answer(question.from, question.id));
        answer.retry = question.is_again() || question.is_replay();
        self.submit_answer(answer).await
    }

    /// [`Self::answer`] to a message of a group or live room, which everybody there gets.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub async fn answer_in_group(
        &self,
        question: &GroupMessage,
        payload: impl Into<Payload>,
    ) -> Result<Receipt, Error> {
        // A question that comes again is not marked as such, so the gateway always looks for the answer.
        let answer = Outgoing::to_group(question.group, payload).with_id(id_of_answer(question.from, question.id));
        self.submit_answer(answer.as_retry()).await
    }

    async fn submit_answer(&self, mut answer: Outgoing) -> Result<Receipt, Error> {
        loop {
            let id = match self.submit_when_room(answer.clone()).await {
                Err(Error::DuplicateId { id }) => id,
                done => return done,
            };
            match self.shared.unsettled.recipient(id) {
                Some(recipient) if recipient == (answer.to, answer.group) => match self.receipt(id) {
                    Some(receipt) => return Ok(receipt),
                    // Its fate may have come just now.
                    None if self.shared.unsettled.recipient(id).is_some() => return Err(Error::DuplicateId { id }),
                    None => {}
                },
                // Somebody else's question has led to this id, by accident or to keep others from their answers.
                Some(_) => answer.id = None,
                None => {}
            }
        }
    }
}

/// The same for the same question in every run and every version, and hardly ever for two: sender and id, mixed by the
/// finalizer of splitmix64.
fn id_of_answer(from: u64, id: u64) -> u64 {
    let mut mixed = from.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ id;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_of_answers_stay_what_they_are_in_every_version() {
        // A bot that is updated in between still answers once.
        assert_eq!(id_of_answer(1, 1), 0xe4d9_7177_1b65_2c20);
        assert_eq!(id_of_answer(42, 4_711), 0xb02d_958c_f5a8_e6c4);
        assert_eq!(id_of_answer(0, 0), 1, "no message has the id 0");
    }

    #[test]
    fn neighbours_have_ids_of_their_own() {
        let ids: BTreeSet<u64> = (0..100).flat_map(|from| (0..100).map(move |id| id_of_answer(from, id))).collect();
        assert_eq!(ids.len(), 10_000);
    }
}
