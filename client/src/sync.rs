//! Questions for pages of the inbox: one at a time on a connection.
//!
//! The messages of a page look like those of the backlog, and both may come at the same time: what is replayed while a
//! page is on its way is held until its SYNC_OK. Then the page is what lies between the position asked for and the one
//! that SYNC_OK names, each once; the rest, and what came twice, was the backlog.

use std::collections::{HashSet, VecDeque};

use tokio::sync::oneshot;
use trunkline_proto::{Code, Sync, SyncOk};

use crate::window::Key;
use crate::{Error, History, Message, Page};

/// Messages held at most: a page of the longest kind (1,000), and a backlog of as much as a device may owe (1,024)
/// beside it.
const HELD_LEN_MAX: usize = 4_096;

/// Their bytes at most; a page takes half an outbox of the gateway.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Number of the SYNC_OK that ends the backlog of a login; questions count from 1.
pub(crate) const BACKLOG: u16 = 0;

/// Somebody who waits for a page.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) history: History,
    pub(crate) answer: oneshot::Sender<Result<Page, Error>>,
}

/// What came while a page was on its way.
#[derive(Debug)]
pub(crate) enum Held {
    Message {
        message: Message,
        /// It is owed an ACK only if it is not of the page.
        tentative: bool,
    },
    /// The backlog was over there.
    BacklogOver(SyncOk),
}

/// A question that has gone.
#[derive(Debug)]
struct Running {
    aux: u16,
    history: History,
    /// Who waits for it; `None` for messages that are asked for again.
    answer: Option<oneshot::Sender<Result<Page, Error>>>,
    held: VecDeque<Held>,
    held_bytes: usize,
}

/// A question has its answer.
#[derive(Debug, Default)]
pub(crate) struct Over {
    /// What was held and is not of the page, in the order in which it came.
    pub(crate) rest: VecDeque<Held>,
    /// Messages of the page that are owed no ACK.
    pub(crate) unowed: Vec<Key>,
    /// The page, if it is of messages that were asked for again.
    pub(crate) recalled: Option<Page>,
}

/// The questions of one connection.
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    waiting: VecDeque<Ask>,
    running: Option<Running>,
    aux: u16,
}

impl Syncs {
    /// Somebody wants a page. Those who have stopped waiting are forgotten, so that there are as many as callers.
    pub(crate) fn ask(&mut self, ask: Ask) {
        self.waiting.retain(|ask| !ask.answer.is_closed());
        self.waiting.push_back(ask);
    }

    /// What is replayed now has to be held.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The next question that somebody waits for, and its number; `None` while one is on its way.
    pub(crate) fn next(&mut self) -> Option<(u16, Sync)> {
        if self.running.is_some() {
            return None;
        }
        let ask = std::iter::from_fn(|| self.waiting.pop_front()).find(|ask| !ask.answer.is_closed())?;
        Some(self.start(ask.history, Some(ask.answer)))
    }

    /// Asks for messages again. To be called when no question is on its way.
    pub(crate) fn recall(&mut self, history: History) -> (u16, Sync) {
        self.start(history, None)
    }

    fn start(&mut self, history: History, answer: Option<oneshot::Sender<Result<Page, Error>>>) -> (u16, Sync) {
        self.aux = self.aux.checked_add(1).unwrap_or(BACKLOG + 1);
        let aux = self.aux;
        self.running = Some(Running { aux, history, answer, held: VecDeque::new(), held_bytes: 0 });
        (aux, history.request())
    }

    /// Holds what is replayed while a page is on its way. False if that is more than there can be.
    pub(crate) fn hold(&mut self, held: Held) -> bool {
        let Some(running) = &mut self.running else { return false };
        if let Held::Message { message, .. } = &held {
            running.held_bytes += message.body.len();
        }
        running.held.push_back(held);
        running.held.len() <= HELD_LEN_MAX && running.held_bytes <= HELD_BYTES_MAX
    }

    /// SYNC_OK with this number; `None` if no question has it.
    pub(crate) fn over(&mut self, aux: u16, sync_ok: &SyncOk) -> Option<Over> {
        let running = self.running.take_if(|running| running.aux == aux)?;
        let SyncOk { next_stamp: next, complete, truncated, floor, last, .. } = *sync_ok;
        let (mut messages, mut stamps) = (Vec::new(), HashSet::new());
        let (mut rest, mut unowed) = (VecDeque::new(), HashSet::new());
        for held in running.held {
            match held {
                Held::Message { message, tentative }
                    if running.history.covers(message.stamp, next) && stamps.insert(message.stamp) =>
                {
                    if tentative {
                        unowed.insert((message.from, message.id));
                    }
                    messages.push(message);
                }
                Held::Message { message, tentative } => {
                    // It was in the page and in the backlog.
                    unowed.remove(&(message.from, message.id));
                    rest.push_back(Held::Message { message, tentative });
                }
                other @ Held::BacklogOver(_) => rest.push_back(other),
            }
        }
        messages.sort_by_key(|message| message.stamp);
        let page = Page { messages, next, complete, truncated, floor, last };
        let recalled = match running.answer {
            Some(answer) => {
                // A caller that no longer waits has no interest in the page.
                drop(answer.send(Ok(page)));
                None
            }
            None => Some(page),
        };
        Some(Over { rest, unowed: unowed.into_iter().collect(), recalled })
    }

    /// Whether an ERROR that no message caused can be the answer to the question on its way.
    pub(crate) fn may_be_refused_with(&self, code: u16) -> bool {
        let refusal = matches!(
            Code::from_u16(code),
            Some(
                Code::UnknownKind
                    | Code::RateLimited
                    | Code::Overloaded
                    | Code::ServiceUnavailable
                    | Code::BadRequest
                    | Code::Unsupported
            )
        );
        self.running.is_some() && refusal
    }

    /// The question on its way is refused. Returns what was held, and whether messages were asked for again.
    pub(crate) fn refused(&mut self, code: u16, text: String) -> (VecDeque<Held>, bool) {
        let Some(running) = self.running.take() else { return (VecDeque::new(), false) };
        let was_recall = running.answer.is_none();
        if let Some(answer) = running.answer {
            // A caller that no longer waits has no interest in the refusal.
            drop(answer.send(Err(Error::Refused { code, text })));
        }
        (running.held, was_recall)
    }

    /// The connection has ended: nobody gets a page from it any more.
    pub(crate) fn end(self) {
        let running = self.running.and_then(|running| running.answer);
        for answer in running.into_iter().chain(self.waiting.into_iter().map(|ask| ask.answer)) {
            // A caller that no longer waits has no interest in the failure.
            drop(answer.send(Err(Error::NotConnected)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_proto::flags;

    fn message(stamp: u64) -> Held {
        let body = bytes::Bytes::from(vec![b'x'; 3]);
        let message = Message { from: 2, id: stamp, stamp, body, flags: flags::ACK | flags::REPLAY };
        Held::Message { message, tentative: true }
    }

    fn asked(syncs: &mut Syncs, history: History) -> oneshot::Receiver<Result<Page, Error>> {
        let (answer, page) = oneshot::channel();
        syncs.ask(Ask { history, answer });
        page
    }

    fn ends_at(next_stamp: u64) -> SyncOk {
        SyncOk { next_stamp, ..SyncOk::default() }
    }

    fn stamps(held: &VecDeque<Held>) -> Vec<u64> {
        let stamp = |held: &Held| if let Held::Message { message, .. } = held { message.stamp } else { 0 };
        held.iter().map(stamp).collect()
    }

    #[test]
    fn a_page_is_told_from_the_backlog_that_comes_beside_it() {
        for (held, next, page, rest) in [
            (&[12, 13, 14][..], 14, &[12, 13, 14][..], &[][..]),
            // A backlog before, between and behind.
            (&[8, 9, 12, 13], 13, &[12, 13], &[8, 9]),
            (&[11, 12, 11, 12, 13], 13, &[11, 12, 13], &[11, 12]),
            (&[11, 14, 12, 15], 12, &[11, 12], &[14, 15]),
            (&[11, 12], 10, &[], &[11, 12]),
        ] {
            let mut syncs = Syncs::default();
            let mut answer = asked(&mut syncs, History::after(10));
            let (aux, sync) = syncs.next().expect("nothing is on its way");
            assert_eq!((aux, sync.after_stamp), (1, 10));
            for stamp in held {
                assert!(syncs.hold(message(*stamp)));
            }
            assert!(syncs.over(7, &ends_at(next)).is_none(), "of another question");
            let over = syncs.over(aux, &ends_at(next)).expect("its end");
            assert_eq!(stamps(&over.rest), rest, "{held:?}");
            let (twice, mut unowed) = (|stamp: &u64| rest.contains(stamp), over.unowed);
            unowed.sort_unstable();
            let once: Vec<_> = page.iter().filter(|stamp| !twice(stamp)).map(|stamp| (2, *stamp)).collect();
            assert_eq!(unowed, once, "{held:?}");
            let got = answer.try_recv().expect("an answer").expect("a page");
            assert_eq!(got.messages.iter().map(|it| it.stamp).collect::<Vec<_>>(), page, "{held:?}");
        }
    }

    #[test]
    fn one_question_is_on_its_way_at_a_time_and_those_of_nobody_are_left_out() {
        let mut syncs = Syncs::default();
        let _first = asked(&mut syncs, History::after(1));
        drop(asked(&mut syncs, History::after(2)));
        let mut third = asked(&mut syncs, History::after(3));
        assert_eq!(syncs.next().expect("the first").1.after_stamp, 1);
        assert!(syncs.next().is_none());
        let (held, was_recall) = syncs.refused(14, "busy".into());
        assert!(held.is_empty() && !was_recall);
        assert_eq!(syncs.next().expect("the third").1.after_stamp, 3);
        syncs.end();
        assert!(matches!(third.try_recv(), Ok(Err(Error::NotConnected))));
    }

    #[test]
    fn what_is_held_is_bounded() {
        let mut syncs = Syncs::default();
        let _page = asked(&mut syncs, History::all());
        syncs.next();
        let held = (1..100_000).take_while(|stamp| syncs.hold(message(*stamp))).count();
        assert_eq!(held, HELD_LEN_MAX);
    }
}
