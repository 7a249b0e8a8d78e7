//! What waits for each server of the cluster, in the order in which it came. No I/O.

use std::collections::{BTreeMap, HashMap, VecDeque};
use trunkline_store::{GroupAsk, Request, Source};

/// Bytes that may wait for one server. Beyond it messages are refused at once, so that a server that does not answer
/// takes no room from the others'; and everything else beyond what follows.
const LANE_BYTES_MAX: usize = 8 << 20;
const LANE_BYTES_MAX_OF_ALL: usize = 10 << 20;
/// A server for which so much waits is one that does not take it.
const STUCK_BYTES: usize = 6 << 20;
/// Requests and bytes of one batch, about.
const BATCH_REQUESTS_MAX: usize = 4_096;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Requests of one call of the script, which holds up its server for as long.
const CALL_REQUESTS_MAX: usize = 256;
/// Requests that are left for a later batch because their user or group has its call full, before a batch ends.
const PASSED_OVER_MAX: usize = 4_096;

/// A server; `None` stands for users whom no server serves now.
pub(crate) type Server = Option<(String, u16)>;

/// A request that waits, and the view of who asks.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) source: Source,
    pub(crate) view: u64,
    pub(crate) request: Request,
}

/// What goes to one server.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    busy: bool,
}

/// Whose keys a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    User(u64),
    Group(u64),
}

impl Subject {
    pub(crate) fn of(request: &Request) -> Self {
        match request {
            Request::Group { group, .. } => Subject::Group(*group),
            request => Subject::User(request.user()),
        }
    }
}

/// Requests by user or group, each one's in order.
pub(crate) type Batch = Vec<(Subject, Vec<Waiting>)>;

/// Whether it is a message, which is refused where too much waits.
fn is_message(request: &Request) -> bool {
    match request {
        Request::Append { .. } => true,
        Request::Group { ask, .. } => matches!(**ask, GroupAsk::Append { .. }),
        _ => false,
    }
}

/// All of them. A server that is known no more is forgotten when nothing waits for it.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    by_server: HashMap<Server, Lane>,
}

impl Lanes {
    /// Adds a request for a server.
    ///
    /// # Errors
    /// The request, if too much waits there; of messages that is less than of others.
    pub(crate) fn put(&mut self, server: Server, waiting: Waiting) -> Result<(), Waiting> {
        let bytes = waiting.request.bytes();
        let lane = self.by_server.entry(server).or_default();
        let most = if is_message(&waiting.request) { LANE_BYTES_MAX } else { LANE_BYTES_MAX_OF_ALL };
        if lane.bytes > 0 && lane.bytes + bytes > most {
            return Err(waiting);
        }
        lane.bytes += bytes;
        lane.waiting.push_back(waiting);
        Ok(())
    }

    /// Adds a request for a server before all that waits there.
    pub(crate) fn put_first(&mut self, server: Server, waiting: Waiting) {
        let bytes = waiting.request.bytes();
        let lane = self.by_server.entry(server).or_default();
        lane.bytes += bytes;
        lane.waiting.push_front(waiting);
    }

    /// Servers with something to do and nothing under way.
    pub(crate) fn ready(&self) -> Vec<Server> {
        let ready = self.by_server.iter().filter(|(_, lane)| !lane.busy && !lane.waiting.is_empty());
        ready.map(|(server, _)| server.clone()).collect()
    }

    /// The next batch for a server, which is busy from then on.
    pub(crate) fn take(&mut self, server: &Server) -> Batch {
        let Some(lane) = self.by_server.get_mut(server) else { return Vec::new() };
        let mut batch: Batch = Vec::new();
        let mut places: BTreeMap<Subject, usize> = BTreeMap::new();
        let (mut requests, mut bytes) = (0, 0);
        let mut passed_over = Vec::new();
        while requests < BATCH_REQUESTS_MAX
            && bytes < BATCH_BYTES_MAX
            && let Some(next) = lane.waiting.front()
        {
            let subject = Subject::of(&next.request);
            let place = *places.entry(subject).or_insert_with(|| {
                batch.push((subject, Vec::new()));
                batch.len() - 1
            });
            let is_full = batch[place].1.len() >= CALL_REQUESTS_MAX;
            if is_full && passed_over.len() >= PASSED_OVER_MAX {
                break;
            }
            let Some(next) = lane.waiting.pop_front() else { break };
            // One user's next call waits for the one before, so that the order is kept whatever becomes of it. Others
            // do not wait for that.
            if is_full {
                passed_over.push(next);
                continue;
            }
            requests += 1;
            bytes += next.request.bytes();
            batch[place].1.push(next);
        }
        passed_over.into_iter().rev().for_each(|waiting| lane.waiting.push_front(waiting));
        lane.busy = !batch.is_empty();
        lane.bytes -= bytes;
        batch
    }

    /// The batch of a server is over.
    pub(crate) fn done(&mut self, server: &Server) {
        if let Some(lane) = self.by_server.get_mut(server) {
            lane.busy = false;
            if lane.waiting.is_empty() {
                self.by_server.remove(server);
            }
        }
    }

    /// Bytes that wait for all servers.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.by_server.values().map(|lane| lane.bytes).sum()
    }

    /// Bytes that wait for servers that take what waits for them.
    pub(crate) fn moving_bytes(&self) -> usize {
        self.by_server.values().map(|lane| lane.bytes).filter(|bytes| *bytes < STUCK_BYTES).sum()
    }

    /// Whether nothing waits for a server, and nothing is under way to it.
    pub(crate) fn is_idle(&self, server: &Server) -> bool {
        self.by_server.get(server).is_none_or(|lane| !lane.busy && lane.waiting.is_empty())
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_server.values().all(|lane| lane.waiting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use trunkline_store::Record;

    fn append(user: u64, bytes: usize) -> Waiting {
        let record = Record { stamp: 1, from: 1, id: 1, flags: 0, payload: Arc::from(vec![0; bytes]) };
        Waiting { source: 0, view: 0, request: Request::Append { user, record, retry: None, token: 0 } }
    }

    fn seen(user: u64, device: u16) -> Waiting {
        Waiting { source: 0, view: 0, request: Request::Seen { user, device, device_epoch: 1 } }
    }

    #[test]
    fn a_batch_has_each_user_once_and_in_order() {
        let mut lanes = Lanes::default();
        let here: Server = Some(("h".to_owned(), 1));
        for (user, device) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)] {
            lanes.put(here.clone(), seen(user, device)).unwrap();
        }
        assert_eq!(lanes.ready(), std::slice::from_ref(&here));
        let batch = lanes.take(&here);
        let devices = |at: usize| -> Vec<u16> {
            let device =
                |waiting: &Waiting| if let Request::Seen { device, .. } = waiting.request { device } else { 0 };
            batch[at].1.iter().map(device).collect()
        };
        assert_eq!(
            (batch[0].0, devices(0), batch[1].0, devices(1)),
            (Subject::User(1), vec![1, 2, 3], Subject::User(2), vec![1, 2])
        );
        lanes.put(here.clone(), seen(1, 4)).unwrap();
        assert!(lanes.ready().is_empty(), "one batch at a time");
        lanes.done(&here);
        assert_eq!(lanes.ready(), std::slice::from_ref(&here));
        lanes.take(&here);
        lanes.done(&here);
        assert!(lanes.is_empty() && lanes.bytes() == 0 && lanes.by_server.is_empty());
    }

    #[test]
    fn a_server_that_does_not_answer_takes_no_room_from_another() {
        let mut lanes = Lanes::default();
        let (dead, alive): (Server, Server) = (Some(("h".to_owned(), 1)), Some(("h".to_owned(), 2)));
        let mut taken = 0;
        while lanes.put(dead.clone(), append(1, 1 << 20)).is_ok() {
            taken += 1;
        }
        assert!((1..=8).contains(&taken), "{taken}");
        assert!(lanes.put(dead.clone(), seen(1, 1)).is_ok(), "what is no message has room");
        assert!(lanes.put(alive, append(2, 1 << 20)).is_ok());
        assert!((1 << 20..2 << 20).contains(&lanes.moving_bytes()), "what waits for the dead one is no reason to wait");
        let more = (0..1 << 20).take_while(|_| lanes.put(dead.clone(), seen(1, 1)).is_ok()).count();
        assert!((1..1 << 20).contains(&more), "but not without an end: {more}");
    }

    #[test]
    fn one_user_has_no_more_than_so_many_requests_in_a_call() {
        let mut lanes = Lanes::default();
        for _ in 0..2 * CALL_REQUESTS_MAX {
            lanes.put(None, seen(1, 1)).unwrap();
        }
        lanes.put(None, seen(2, 1)).unwrap();
        lanes.put(None, seen(1, 2)).unwrap();
        let mut sizes = || -> Vec<(Subject, usize)> {
            let sizes = lanes.take(&None).iter().map(|(subject, requests)| (*subject, requests.len())).collect();
            lanes.done(&None);
            sizes
        };
        let (one, other) = (Subject::User(1), Subject::User(2));
        assert_eq!(sizes(), [(one, CALL_REQUESTS_MAX), (other, 1)], "and another does not wait for it");
        assert_eq!([sizes(), sizes()], [vec![(one, CALL_REQUESTS_MAX)], vec![(one, 1)]]);
        let sizes = sizes();
        assert!(sizes.is_empty() && lanes.bytes() == 0);
    }
}
