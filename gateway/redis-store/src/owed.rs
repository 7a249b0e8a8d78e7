//! What nobody gets an answer for and is not to be lost with a connection all the same: positions of devices, read
//! marks, LOGOUTs. Where Redis has not said that it has them, they are kept until it does. Each may be asked for any
//! number of times: positions and marks never go back, and a LOGOUT has a number.

use std::collections::BTreeMap;
use trunkline_store::{GroupAsk, Request, Stats};

/// Positions that are kept at a time, and likewise read marks. Those that are one too many are dropped, counted: a
/// device gets messages again, a message counts as unread again.
const POSITIONS_MAX: usize = 65_536;
/// LOGOUTs that are kept at a time. One that is too many is dropped, counted: who has the token of that session may
/// resume it at a node that does not remember the LOGOUT.
const LOG_OUTS_MAX: usize = 16_384;

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    /// By user, number and epoch of the device.
    cursors: BTreeMap<(u64, u16, u32), u64>,
    /// By group and user.
    marks: BTreeMap<(u64, u64), u64>,
    /// By user.
    gaps: BTreeMap<u64, u64>,
    /// Their numbers, by user and name of the device.
    log_outs: BTreeMap<(u64, Box<str>), u64>,
}

impl Owed {
    /// Keeps what a request asks for. False if it is none of these.
    pub(crate) fn keep(&mut self, request: &Request, stats: &Stats) -> bool {
        let raise = |kept: Option<&mut u64>, to: u64| kept.map(|known| *known = (*known).max(to)).is_some();
        match request {
            Request::Cursor { user, device, device_epoch, stamp } => {
                let key = (*user, *device, *device_epoch);
                if !raise(self.cursors.get_mut(&key), *stamp) {
                    match self.cursors.len() < POSITIONS_MAX {
                        true => drop(self.cursors.insert(key, *stamp)),
                        false => Stats::add(&stats.cursors_dropped, 1),
                    }
                }
            }
            Request::Group { group, ask, token: None } if let GroupAsk::Mark { user, stamp } = **ask => {
                if !raise(self.marks.get_mut(&(*group, user)), stamp) {
                    match self.marks.len() < POSITIONS_MAX {
                        true => drop(self.marks.insert((*group, user), stamp)),
                        false => Stats::add(&stats.marks_dropped, 1),
                    }
                }
            }
            Request::Gap { user, stamp } => {
                if !raise(self.gaps.get_mut(user), *stamp) {
                    match self.gaps.len() < POSITIONS_MAX {
                        true => drop(self.gaps.insert(*user, *stamp)),
                        false => Stats::add(&stats.gaps_dropped, 1),
                    }
                }
            }
            Request::LogOut { user, device, number } => {
                let key = (*user, device.clone());
                // The later one is for all tokens that the earlier one was for.
                if !raise(self.log_outs.get_mut(&key), *number) {
                    match self.log_outs.len() < LOG_OUTS_MAX {
                        true => drop(self.log_outs.insert(key, *number)),
                        false => Stats::add(&stats.log_outs_dropped, 1),
                    }
                }
            }
            _ => return false,
        }
        true
    }

    /// All of it, to be asked for again.
    pub(crate) fn take(&mut self) -> Vec<Request> {
        let Owed { cursors, marks, gaps, log_outs } = std::mem::take(self);
        let gaps = gaps.into_iter().map(|(user, stamp)| Request::Gap { user, stamp });
        let log_outs = log_outs.into_iter().map(|((user, device), number)| Request::LogOut { user, device, number });
        let cursors = cursors.into_iter().map(|((user, device, device_epoch), stamp)| Request::Cursor {
            user,
            device,
            device_epoch,
            stamp,
        });
        let marks = marks.into_iter().map(|((group, user), stamp)| Request::Group {
            group,
            ask: Box::new(GroupAsk::Mark { user, stamp }),
            token: None,
        });
        // Positions may lie behind a gap.
        log_outs.chain(gaps).chain(cursors).chain(marks).collect()
    }

    /// The LOGOUT of a device that logs in: it is for what was given out before, and has to come first.
    pub(crate) fn take_log_out(&mut self, user: u64, device: &str) -> Option<Request> {
        if self.log_outs.is_empty() {
            return None;
        }
        let device: Box<str> = device.into();
        let number = self.log_outs.remove(&(user, device.clone()))?;
        Some(Request::LogOut { user, device, number })
    }

    /// How much there is.
    pub(crate) fn len(&self) -> usize {
        self.cursors.len() + self.marks.len() + self.gaps.len() + self.log_outs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn cursor(user: u64, stamp: u64) -> Request {
        Request::Cursor { user, device: 1, device_epoch: 9, stamp }
    }

    fn mark(group: u64, stamp: u64) -> Request {
        Request::Group { group, ask: Box::new(GroupAsk::Mark { user: 7, stamp }), token: None }
    }

    fn log_out(user: u64, number: u64) -> Request {
        Request::LogOut { user, device: "phone".into(), number }
    }

    #[test]
    fn the_latest_of_each_is_kept_once_and_a_logout_comes_before_what_follows_it() {
        let (mut owed, stats) = (Owed::default(), Stats::default());
        let gap = |stamp| Request::Gap { user: 1, stamp };
        let requests =
            [cursor(1, 5), mark(3, 8), log_out(1, 20), cursor(1, 4), mark(3, 9), log_out(1, 21), gap(7), gap(6)];
        assert!(requests.iter().all(|request| owed.keep(request, &stats)));
        assert!(!owed.keep(&Request::Claim { user: 1 }, &stats));
        assert!(!owed.keep(&Request::Group { group: 3, ask: Box::new(GroupAsk::Get), token: Some(1) }, &stats));
        assert_eq!(owed.len(), 4);
        assert_eq!(owed.take(), [log_out(1, 21), gap(7), cursor(1, 5), mark(3, 9)]);
        assert_eq!(owed.len(), 0);

        owed.keep(&log_out(1, 22), &stats);
        assert_eq!((owed.take_log_out(2, "phone"), owed.take_log_out(1, "desk")), (None, None));
        assert_eq!((owed.take_log_out(1, "phone"), owed.take_log_out(1, "phone")), (Some(log_out(1, 22)), None));
    }

    #[test]
    fn so_much_is_kept_and_what_is_dropped_is_counted() {
        let (mut owed, stats) = (Owed::default(), Stats::default());
        for at in 0..POSITIONS_MAX as u64 + 3 {
            assert!(owed.keep(&cursor(at, 1), &stats) && owed.keep(&mark(at, 1), &stats));
        }
        for at in 0..LOG_OUTS_MAX as u64 + 3 {
            assert!(owed.keep(&log_out(at, 1), &stats));
        }
        assert!(owed.keep(&cursor(0, 2), &stats), "one that is known has its place");
        assert_eq!(owed.len(), 2 * POSITIONS_MAX + LOG_OUTS_MAX);
        let dropped = [&stats.cursors_dropped, &stats.marks_dropped, &stats.log_outs_dropped];
        assert_eq!(dropped.map(|count| count.load(Ordering::Relaxed)), [3; 3]);
    }
}
