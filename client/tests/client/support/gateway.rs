//! A small gateway on TCP: it routes messages between its users, for tests that run whole programs.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Bye, Code, Header, Kind, Login, LoginOk, Outcome, Sync, SyncOk, encode, encode_message, flags};

use super::{OwnedFrame, Peer};

/// What happened, for tests to wait for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Login(u64),
    Logout(u64),
    Gone(u64),
    /// A session was given this token.
    Renewed(u64, String),
    /// A user has sent this to the own devices.
    ToSelf(u64, String),
}

#[derive(Debug, Default)]
struct Users {
    online: HashMap<u64, mpsc::UnboundedSender<Vec<u8>>>,
    stamp: u64,
    groups: HashMap<u64, Group>,
}

/// A group: who is in, and the frames of its log, as replayed.
#[derive(Debug, Default)]
struct Group {
    members: BTreeSet<u64>,
    log: Vec<Vec<u8>>,
}

/// The group that nobody can join.
pub(crate) const CLOSED_GROUP: u64 = 13;

/// A running gateway; it ends with the test's runtime.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) addr: SocketAddr,
    /// New connections are closed at once.
    closed: Arc<AtomicBool>,
    users: Arc<Mutex<Users>>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Gateway {
    /// Starts one; with a `token`, only logins that carry it are admitted.
    pub(crate) async fn start(token: &'static str) -> Self {
        Self::start_lasting(token, 0).await
    }

    /// The same; sessions are told that their token lasts so many seconds, unless that is 0.
    pub(crate) async fn start_lasting(token: &'static str, secs: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let users = Arc::new(Mutex::new(Users::default()));
        let (tell, seen) = mpsc::unbounded_channel();
        let shared = users.clone();
        let closed = Arc::new(AtomicBool::new(false));
        let refuses = closed.clone();
        tokio::spawn(async move {
            while let Ok((stream, _from)) = listener.accept().await {
                if refuses.load(Ordering::Relaxed) {
                    continue;
                }
                tokio::spawn(serve(stream, token, secs, shared.clone(), tell.clone()));
            }
        });
        Self { addr, closed, users, seen }
    }

    pub(crate) async fn expect_seen(&mut self, what: Seen) {
        assert_eq!(self.seen.recv().await, Some(what));
    }

    /// Takes no new connections, or does again.
    pub(crate) fn close_doors(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// Says BYE to a user and closes.
    pub(crate) fn bye(&self, user: u64, code: Code) {
        let mut bytes = Vec::new();
        encode_message(&mut bytes, Kind::Bye, code.as_u16(), &Bye::default());
        let sender = self.users.lock().expect("no panic").online.remove(&user);
        sender.expect("online").send(bytes).expect("connected");
    }

    /// Sends raw bytes to a user.
    pub(crate) fn raw(&self, user: u64, bytes: Vec<u8>) {
        let users = self.users.lock().expect("no panic");
        users.online[&user].send(bytes).expect("connected");
    }
}

async fn serve(stream: TcpStream, token: &str, secs: u64, users: Arc<Mutex<Users>>, tell: mpsc::UnboundedSender<Seen>) {
    let lasting = |answer: &mut LoginOk| {
        if secs > 0 {
            answer.time_ms = 5_000;
            answer.expires_ms = 5_000 + secs * 1_000;
        }
    };
    let mut peer = Peer::new(stream);
    let login = peer.expect_login().await;
    if login.token != token {
        peer.bye(Code::BadCredentials, Bye::default()).await;
        return;
    }
    let user = login.user;
    let (sender, mut outbox) = mpsc::unbounded_channel();
    users.lock().expect("no panic").online.insert(user, sender);
    let _ = tell.send(Seen::Login(user));
    peer.welcome_with(lasting).await;
    loop {
        tokio::select! {
            bytes = outbox.recv() => match bytes {
                Some(bytes) => {
                    if peer.try_raw(&bytes).await.is_err() {
                        let _ = tell.send(Seen::Gone(user));
                        break;
                    }
                }
                None => return,
            },
            frame = peer.frame() => match frame {
                None => {
                    let _ = tell.send(Seen::Gone(user));
                    break;
                }
                Some(frame) if frame.kind == Kind::Logout => {
                    let _ = tell.send(Seen::Logout(user));
                    break;
                }
                Some(frame) if frame.kind == Kind::Renew => {
                    let login = Login::decode(&frame.body[..]).expect("a Login");
                    let _ = tell.send(Seen::Renewed(user, login.token));
                    peer.welcome_with(lasting).await;
                }
                Some(frame) => {
                    if frame.kind == Kind::Send && frame.peer == user {
                        let text = String::from_utf8_lossy(&frame.body).into_owned();
                        let _ = tell.send(Seen::ToSelf(user, text));
                    }
                    route(&users, user, &frame);
                }
            },
        }
    }
    users.lock().expect("no panic").online.remove(&user);
}

fn route(users: &Mutex<Users>, user: u64, frame: &OwnedFrame) {
    let mut users = users.lock().expect("no panic");
    users.stamp += 1;
    let stamp = users.stamp;
    let put = |to: u64, kind: Kind, flags: u8, aux: u16, body: &[u8]| {
        let (id, peer) = (frame.id, if to == user { frame.peer } else { user });
        let header = Header { kind, flags, aux, id, peer, stamp };
        let mut bytes = Vec::new();
        encode(&mut bytes, &header, body);
        users.online.get(&to).is_some_and(|outbox| outbox.send(bytes).is_ok())
    };
    let offline = Outcome::OfflineNotStored.as_u16();
    match frame.kind {
        Kind::Ping => assert!(put(user, Kind::Pong, 0, frame.aux, &[])),
        Kind::Send => {
            let delivered =
                frame.peer != user && put(frame.peer, Kind::Deliver, frame.flags & flags::ACK, 0, &frame.body);
            if !delivered && frame.flags & flags::ACK != 0 {
                put(user, Kind::Sent, 0, offline, &[]);
            }
        }
        Kind::Ack => {
            put(frame.peer, Kind::Sent, 0, Outcome::Delivered.as_u16(), &[]);
        }
        Kind::GroupJoin | Kind::GroupLeave | Kind::GroupSend | Kind::Sync => route_about_group(&mut users, user, frame),
        Kind::Mark => {}
        other => panic!("a client sent {other:?}"),
    }
}

/// Joins, leaves and messages of groups, and pages of one whose log fits into one.
fn route_about_group(users: &mut Users, user: u64, frame: &OwnedFrame) {
    let stamp = users.stamp;
    let (id, peer) = (frame.id, frame.peer);
    let online = &users.online;
    let put = |to: u64, kind: Kind, flags: u8, aux: u16, body: &[u8]| {
        let mut bytes = Vec::new();
        encode(&mut bytes, &Header { kind, flags, aux, id, peer, stamp }, body);
        let _ = online.get(&to).map(|outbox| outbox.send(bytes));
    };
    match frame.kind {
        Kind::GroupJoin if peer == CLOSED_GROUP => put(user, Kind::Error, 0, Code::NotAMember.as_u16(), b""),
        Kind::GroupJoin => {
            users.groups.entry(peer).or_default().members.insert(user);
            put(user, Kind::GroupOk, 0, 0, &[]);
        }
        Kind::GroupLeave => {
            users.groups.entry(peer).or_default().members.remove(&user);
            put(user, Kind::GroupOk, 0, 0, &[]);
        }
        Kind::GroupSend => {
            let group = users.groups.entry(peer).or_default();
            let is_in = group.members.contains(&user);
            if frame.flags & flags::ACK != 0 {
                let outcome = if is_in { Outcome::Stored } else { Outcome::Denied };
                put(user, Kind::Sent, 0, outcome.as_u16(), &[]);
            }
            if is_in {
                let body = [&user.to_be_bytes()[..], &frame.body].concat();
                group.members.iter().filter(|to| **to != user).for_each(|to| {
                    put(*to, Kind::GroupDeliver, 0, 0, &body);
                });
                let mut kept = Vec::new();
                let header = Header { kind: Kind::GroupDeliver, flags: flags::REPLAY, aux: 0, id, peer, stamp };
                encode(&mut kept, &header, &body);
                group.log.push(kept);
            }
        }
        _ => {
            let Sync { group, .. } = Sync::decode(&frame.body[..]).expect("a Sync");
            let Some(outbox) = users.online.get(&user) else { return };
            let mut bytes = users.groups.entry(group).or_default().log.concat();
            let sync_ok = SyncOk { next_stamp: stamp, complete: true, group, ..SyncOk::default() };
            encode_message(&mut bytes, Kind::SyncOk, frame.aux, &sync_ok);
            let _ = outbox.send(bytes);
        }
    }
}
