//! What is asked about groups on one connection: joins and leaves, and pages that the application wants to look at.

mod attention;

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;
use trunkline_proto::{Code, Kind, Sync, SyncOk};

use attention::Attention;

use crate::{Error, GroupMessage, GroupPage, History};

/// Joins and leaves under way at once.
const ASKS_MAX: usize = 1_024;

/// Messages of a page, and their bytes, at most: more than a gateway gives.
const PAGE_LEN_MAX: usize = 4_096;
const PAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(crate) type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// What a join or leave is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Join,
    Leave,
    /// A live room that an earlier connection was in.
    Rejoin,
    /// This session pays attention to the group, or none any more.
    Open,
    Close,
}

impl Act {
    /// The kind of its frame, and what `aux` says in it.
    pub(crate) fn frame(self) -> (Kind, u16) {
        match self {
            Act::Join | Act::Rejoin => (Kind::GroupJoin, 0),
            Act::Leave => (Kind::GroupLeave, 0),
            Act::Open => (Kind::GroupJoin, 1),
            Act::Close => (Kind::GroupLeave, 1),
        }
    }
}

/// Somebody wants to join or leave, or to pay attention.
#[derive(Debug)]
pub(crate) struct GroupAsk {
    pub(crate) group: u64,
    pub(crate) id: u64,
    pub(crate) act: Act,
    /// Gets the position of the group's last message.
    pub(crate) answer: Answer<u64>,
}

/// Somebody wants a page.
#[derive(Debug)]
pub(crate) struct PageAsk {
    pub(crate) group: u64,
    pub(crate) history: History,
    pub(crate) answer: Answer<GroupPage>,
}

/// A join or leave that has gone.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) group: u64,
    pub(crate) act: Act,
    /// How often it was asked for.
    pub(crate) tries: u32,
    /// Something else was asked for the group since: a refusal for now counts for good.
    pub(crate) is_outdated: bool,
    answer: Option<Answer<u64>>,
}

impl Asked {
    pub(crate) fn new(group: u64, act: Act, tries: u32, answer: Option<Answer<u64>>) -> Self {
        Self { group, act, tries, is_outdated: false, answer }
    }

    /// Somebody asked who may wait for the answer.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.answer.is_some()
    }

    /// Who asked does not wait any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.answer.as_ref().is_some_and(Answer::is_closed)
    }

    pub(crate) fn settle(self, answer: Result<u64, Error>) {
        if let Some(waits) = self.answer {
            // A caller that no longer waits has no interest in the answer.
            drop(waits.send(answer));
        }
    }
}

/// The replayed messages of one page.
#[derive(Debug, Default)]
pub(crate) struct PageMessages {
    pub(crate) list: Vec<GroupMessage>,
    bytes: usize,
}

impl PageMessages {
    /// Takes one more. False if that is more than there can be.
    pub(crate) fn push(&mut self, message: GroupMessage) -> bool {
        self.bytes += message.body.len();
        self.list.push(message);
        self.list.len() <= PAGE_LEN_MAX && self.bytes <= PAGE_BYTES_MAX
    }
}

/// The questions of one connection.
#[derive(Debug, Default)]
pub(crate) struct GroupAsks {
    asked: HashMap<u64, Asked>,
    /// Attention that is asked for again.
    pub(crate) attention: Attention,
    rejoining: usize,
    pages: VecDeque<PageAsk>,
    running: Option<(PageAsk, PageMessages)>,
}

impl GroupAsks {
    /// Whether one more join or leave may be asked for.
    pub(crate) fn has_room(&self) -> bool {
        self.asked.len() + self.attention.len() < ASKS_MAX
    }

    /// A join or leave goes out.
    pub(crate) fn ask(&mut self, id: u64, asked: Asked) {
        self.rejoining += usize::from(asked.act == Act::Rejoin);
        self.asked.insert(id, Asked { tries: asked.tries + 1, ..asked });
    }

    /// Something is asked for a group that takes the place of earlier wishes for attention. The one that waited to be
    /// asked for again, if there is one.
    pub(crate) fn outdate(&mut self, group: u64) -> Option<Asked> {
        for asked in self.asked.values_mut().filter(|asked| asked.group == group) {
            asked.is_outdated = true;
        }
        self.attention.take(group)
    }

    /// The join or leave that GROUP_OK or ERROR answers.
    pub(crate) fn answered(&mut self, id: u64, group: u64) -> Option<Asked> {
        if self.asked.get(&id).is_none_or(|asked| asked.group != group) {
            return None;
        }
        let asked = self.asked.remove(&id)?;
        self.rejoining -= usize::from(asked.act == Act::Rejoin);
        Some(asked)
    }

    /// Live rooms of the connection before have not been joined again yet.
    pub(crate) fn is_rejoining(&self) -> bool {
        self.rejoining > 0 || self.attention.has_room_to_rejoin()
    }

    /// Somebody wants a page. Those who have stopped waiting are forgotten, so that there are as many as callers.
    pub(crate) fn ask_page(&mut self, ask: PageAsk) {
        self.pages.retain(|ask| !ask.answer.is_closed());
        self.pages.push_back(ask);
    }

    /// A page is on its way.
    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The group whose page is on its way.
    pub(crate) fn running(&self) -> Option<u64> {
        self.running.as_ref().map(|(ask, _)| ask.group)
    }

    /// The next page that somebody waits for. To be called when no question is on its way.
    pub(crate) fn next_page(&mut self) -> Option<Sync> {
        let ask = std::iter::from_fn(|| self.pages.pop_front()).find(|ask| !ask.answer.is_closed())?;
        let sync = Sync { group: ask.group, ..ask.history.request() };
        self.running = Some((ask, PageMessages::default()));
        Some(sync)
    }

    /// A replayed message of the page on its way. False if that is more than there can be.
    pub(crate) fn replayed(&mut self, message: GroupMessage) -> bool {
        match &mut self.running {
            Some((ask, messages)) if ask.group == message.group => messages.push(message),
            _ => true,
        }
    }

    /// SYNC_OK of the page on its way.
    pub(crate) fn page_over(&mut self, sync_ok: &SyncOk) {
        let SyncOk { next_stamp: next, complete, truncated, floor, last, group } = *sync_ok;
        if let Some((ask, mut messages)) = self.running.take_if(|(ask, _)| ask.group == group) {
            messages.list.sort_by_key(|message| message.stamp);
            let page = GroupPage { messages: messages.list, next, complete, truncated, floor, last };
            // A caller that no longer waits has no interest in the page.
            drop(ask.answer.send(Ok(page)));
        }
    }

    /// The page on its way is refused.
    pub(crate) fn page_refused(&mut self, code: u16, text: String) {
        if let Some((ask, _)) = self.running.take() {
            // A caller that no longer waits has no interest in the refusal.
            drop(ask.answer.send(Err(Error::Refused { code, text })));
        }
    }

    /// The connection has ended: nobody gets an answer from it any more.
    pub(crate) fn end(self) {
        for asked in self.asked.into_values().chain(self.attention.end()) {
            asked.settle(Err(Error::NotConnected));
        }
        for ask in self.pages.into_iter().chain(self.running.map(|(ask, _)| ask)) {
            // A caller that no longer waits has no interest in the failure.
            drop(ask.answer.send(Err(Error::NotConnected)));
        }
    }
}

/// Whether an ERROR that names neither message nor group can be the answer to SYNC of a group: what any frame may be
/// refused for, and what gateways say that do not name the group yet. Not what WATCH is refused for.
pub(crate) fn may_refuse_page(code: u16) -> bool {
    matches!(
        Code::from_u16(code),
        Some(Code::NotAMember | Code::UnknownKind | Code::RateLimited | Code::Overloaded | Code::ServiceUnavailable)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_watch_is_refused_for_is_no_answer_to_a_page() {
        let of_watch = [Code::Unsupported, Code::LimitReached, Code::BadRequest];
        assert!(of_watch.iter().all(|code| !may_refuse_page(code.as_u16())));
        assert!(may_refuse_page(Code::Overloaded.as_u16()) && !may_refuse_page(u16::MAX));
    }
}
