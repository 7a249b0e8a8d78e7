//! One logged-in connection, from LOGIN_OK to its end.

mod groups;
mod presence;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use trunkline_proto::prost::Message as _;
use trunkline_proto::{Code, Frame, Kind, Login, LoginOk, Outcome, SERVICE_USERS, SyncOk, VERSION, flags};

use crate::acks::{Acks, Due};
use crate::calls::{CallRequest, OpenCalls};
use crate::group_asks::GroupAsks;
use crate::login::{Advice, Link, read_bye, token_left};
use crate::outbound::Outbound;
use crate::renewal::Renewal;
use crate::state::{Command, State, Taken};
use crate::sync::{BACKLOG, Held, Syncs};
use crate::token::Credentials;
use crate::unsettled::Next;
use crate::window::Seen;
use crate::{Error, Event, Message, Reason, sentence};

/// Pings of the application under way at once.
const PINGS_MAX: usize = 32;

/// How long a logout waits for the gateway to close.
const LOGOUT_WAIT: Duration = Duration::from_secs(2);

/// How long a connection that cannot be written to is read for the gateway's reason.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);

/// Number of the PINGs that only keep the connection alive; the application's count from 1.
const HEARTBEAT_PING: u16 = 0;

/// How a connection ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) reason: Reason,
    pub(crate) advice: Advice,
}

impl From<Reason> for Ended {
    fn from(reason: Reason) -> Self {
        let advice = Advice::default();
        Self { reason, advice }
    }
}

#[derive(Debug)]
struct Ping {
    aux: u16,
    sent: Instant,
    answer: oneshot::Sender<Result<Duration, Error>>,
}

struct Session<'a> {
    state: &'a mut State,
    user: u64,
    credentials: &'a mut Credentials,
    renewal: Renewal,
    out: Outbound,
    heartbeat: Duration,
    /// When a byte last came, or the connection was last left unread on purpose.
    received: Instant,
    /// When a byte last went.
    sent: Instant,
    /// When the last heartbeat was queued.
    pinged: Instant,
    pings: VecDeque<Ping>,
    ping_aux: u16,
    acks: Acks,
    syncs: Syncs,
    calls: OpenCalls,
    group_asks: GroupAsks,
    /// Messages wait until then for live rooms to be joined again.
    rejoined_by: Instant,
    /// The gateway keeps what this device does not acknowledge, and gives it once.
    registered: bool,
    /// The end of the backlog has been told.
    caught_up: bool,
    /// Tracked messages from this serial on are to be sent, before all others …
    resend_from: u64,
    /// … up to this one: later ones are still in the queue of commands.
    resend_below: u64,
    /// Since LOGOUT: when to stop waiting for the gateway to close.
    closing: Option<Instant>,
}

/// Runs the connection until it ends, for whatever reason.
pub(crate) async fn run_session<S: AsyncRead + AsyncWrite>(
    mut link: Link<S>,
    user: u64,
    credentials: &mut Credentials,
    state: &mut State,
) -> Ended {
    let mut session = Session::new(&link, user, credentials, state);
    session.begin_groups();
    session.begin_watching();
    let ended = session.run(&mut link).await;
    for ping in session.pings {
        // A caller that no longer waits has no interest in the answer.
        drop(ping.answer.send(Err(Error::NotConnected)));
    }
    session.syncs.end();
    session.calls.end();
    session.group_asks.end();
    if session.closing.is_some() {
        return Reason::LoggedOut.into();
    }
    ended
}

impl<'a> Session<'a> {
    fn new<S>(link: &Link<S>, user: u64, credentials: &'a mut Credentials, state: &'a mut State) -> Self {
        let now = Instant::now();
        let renewal = Renewal::new(link.token_left, credentials);
        let resend_below = state.announced_below;
        // What this session does not acknowledge comes with the next one.
        state.recall.clear();
        let registered = link.info.registered;
        if link.info.truncated {
            state.tell(Event::Truncated { floor: link.info.floor });
        }
        Self {
            state,
            user,
            credentials,
            renewal,
            out: Outbound::default(),
            heartbeat: link.info.heartbeat,
            received: now,
            sent: now,
            pinged: now,
            pings: VecDeque::new(),
            ping_aux: HEARTBEAT_PING,
            acks: Acks::new(registered),
            syncs: Syncs::default(),
            calls: OpenCalls::default(),
            group_asks: GroupAsks::default(),
            rejoined_by: now,
            registered,
            caught_up: false,
            resend_from: 0,
            resend_below,
            closing: None,
        }
    }

    async fn run<S: AsyncRead + AsyncWrite>(&mut self, link: &mut Link<S>) -> Ended {
        loop {
            while self.may_receive() {
                match link.inbound.next() {
                    Ok(Some(frame)) => {
                        if let Some(ended) = self.handle(&frame) {
                            return ended;
                        }
                    }
                    Ok(None) => break,
                    Err(violation) => return Reason::Protocol(violation.to_string()).into(),
                }
            }
            self.resend_some();
            self.ask_for_pages();
            let receiving = self.may_receive();
            if self.state.outlet.is_blocked() {
                // Silence that this side has chosen says nothing about the server.
                self.received = Instant::now();
            }
            let takes_commands = self.takes_commands();
            let answers = self.out.has_room_for_answers();
            let next_timer = self.next_timer();
            tokio::select! {
                filled = link.inbound.fill(&mut link.reader), if receiving => match filled {
                    Ok(0) => return Reason::ServerClosed.into(),
                    Ok(_) => self.received = Instant::now(),
                    Err(error) => return Reason::of(error).into(),
                },
                pumped = self.out.pump(&mut link.writer), if self.out.wants_write() => match pumped {
                    Ok(0) => {}
                    Ok(_) => self.sent = Instant::now(),
                    Err(error) => return self.last_words(link, Reason::Io(error.to_string())).await,
                },
                command = self.state.commands.recv(), if takes_commands => self.take_commands(command),
                Some(taken) = self.state.taken.recv(), if answers => self.acknowledge_all(taken),
                dropped = self.state.outlet.settle() => self.state.forget(dropped),
                answer = self.renewal.answer(), if self.closing.is_none() && answers => self.renew(answer),
                () = sleep_until(next_timer) => {
                    if let Some(ended) = self.on_timer() {
                        return ended;
                    }
                }
            }
        }
    }

    /// The connection takes nothing more. A gateway that closes says why before it does, so what it has sent already is
    /// read for its BYE; without one the end is `reason`.
    async fn last_words<S: AsyncRead + AsyncWrite>(&mut self, link: &mut Link<S>, reason: Reason) -> Ended {
        let give_up = Instant::now() + LAST_WORDS_WAIT;
        while self.may_receive() {
            match link.inbound.next() {
                Ok(Some(frame)) => {
                    if let Some(ended) = self.handle(&frame) {
                        return ended;
                    }
                }
                Ok(None) => match timeout_at(give_up, link.inbound.fill(&mut link.reader)).await {
                    Ok(Ok(1..)) => {}
                    Ok(Err(error)) => match Reason::of(error) {
                        bye @ Reason::Bye { .. } => return bye.into(),
                        _ => break,
                    },
                    Ok(Ok(0)) | Err(_) => break,
                },
                Err(_violation) => break,
            }
        }
        reason.into()
    }

    /// A frame may cause an answer and an event, so it is handled only when there is room for both. Messages that wait
    /// to be sent don't count: the fates that make room for more come this way. While logging out the application is
    /// not waited for.
    fn may_receive(&self) -> bool {
        self.out.has_room_for_answers() && (self.closing.is_some() || !self.state.outlet.is_blocked())
    }

    /// Nothing overtakes what has to be sent again, and nothing follows LOGOUT.
    fn takes_commands(&self) -> bool {
        self.out.has_room() && !self.is_resending() && !self.waits_for_rooms() && self.closing.is_none()
    }

    // Commands

    fn take_commands(&mut self, first: Option<Command>) {
        let mut next = Some(first.unwrap_or(Command::Close));
        while let Some(command) = next {
            self.take_command(command);
            next = if self.takes_commands() { self.state.commands.try_recv().ok() } else { None };
        }
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Send { id, to, group, payload } => {
                // Too large only if it was queued for an earlier connection with larger frames; lost with that one.
                if self.state.shared.check_payload_to(group, payload.len()).is_ok() {
                    self.send(0, id, to, group, &payload);
                }
            }
            Command::SendTracked { serial } => {
                self.state.announced_below = serial + 1;
                // None, if it has been given up meanwhile.
                if let Some(message) = self.state.shared.unsettled.take_first(serial..serial + 1) {
                    self.send_tracked(message);
                }
            }
            Command::Ping { answer } => self.ping(answer),
            Command::Call(call) => self.call(call),
            Command::History(ask) => self.syncs.ask(ask),
            Command::Group(ask) => self.ask_group(ask),
            Command::GroupPage(ask) => self.group_asks.ask_page(ask),
            Command::Follow { group, after } => self.state.follow(group, after),
            Command::Watch(ask) => self.watch(&ask),
            Command::Mark { group, stamp } => self.out.about_group(Kind::Mark, 0, 0, group, stamp),
            Command::Close => {
                // What the application has taken would otherwise count as not delivered. Bounded by that queue.
                while let Ok(taken) = self.state.taken.try_recv() {
                    self.acknowledge(taken);
                }
                self.acknowledge_in_order();
                self.out.logout();
                self.closing = Some(Instant::now() + LOGOUT_WAIT);
            }
        }
    }

    fn call(&mut self, request: CallRequest) {
        if !self.calls.has_room() {
            let (code, text) = (Code::RateLimited.as_u16(), "too many calls are under way".to_owned());
            return request.refuse(Error::Call { code, text });
        }
        if let Err(error) = self.state.shared.check_payload(request.call.payload.len()) {
            // It was queued for an earlier connection with larger frames.
            return request.refuse(error);
        }
        let CallRequest { id, call, answer } = request;
        self.out.call(id, &call);
        self.calls.add(id, answer);
    }

    fn ping(&mut self, answer: oneshot::Sender<Result<Duration, Error>>) {
        self.pings.retain(|ping| !ping.answer.is_closed());
        if self.pings.len() == PINGS_MAX {
            drop(answer.send(Err(Error::TooManyPings { max: PINGS_MAX })));
            return;
        }
        self.ping_aux = self.ping_aux.checked_add(1).unwrap_or(HEARTBEAT_PING + 1);
        let (aux, sent) = (self.ping_aux, Instant::now());
        self.out.ping(aux);
        self.pings.push_back(Ping { aux, sent, answer });
    }

    /// Acknowledges what the application is done with by now: as much of it as came in order with one ACK.
    fn acknowledge_all(&mut self, first: Taken) {
        let mut next = Some(first);
        while let Some(taken) = next {
            self.acknowledge(taken);
            next = if self.out.has_room_for_answers() { self.state.taken.try_recv().ok() } else { None };
        }
        self.acknowledge_in_order();
    }

    fn acknowledge(&mut self, taken: Taken) {
        if let Some(stamp) = self.state.settle_taken(taken)
            && self.closing.is_none()
        {
            for due in self.acks.done((taken.from, taken.id), stamp) {
                self.out.ack(due);
            }
        }
    }

    fn acknowledge_in_order(&mut self) {
        if let Some(due) = self.acks.take() {
            self.out.ack(due);
        }
    }

    // Pages of the inbox

    /// Asks for the next page that somebody waits for, or for messages that were lost on their way to the application.
    fn ask_for_pages(&mut self) {
        let is_running = self.syncs.is_running() || self.is_group_page_running();
        if self.closing.is_some() || !self.out.has_room_for_answers() || is_running {
            return;
        }
        let question = self.syncs.next().or_else(|| {
            let room = self.state.outlet.room();
            let history = if self.registered { self.state.recall.request(room) } else { None };
            history.map(|history| self.syncs.recall(history))
        });
        match question {
            Some((aux, sync)) => self.out.sync(aux, &sync),
            None => self.ask_for_group_page(),
        }
    }

    fn handle_sync_ok(&mut self, frame: &Frame<'_>) -> Option<Ended> {
        let sync_ok = match SyncOk::decode(frame.body) {
            Ok(sync_ok) => sync_ok,
            Err(error) => return Some(Reason::Protocol(format!("its SYNC_OK cannot be read: {error}")).into()),
        };
        if sync_ok.group != 0 {
            self.group_page_over(&sync_ok);
            return None;
        }
        if frame.aux == BACKLOG {
            if self.syncs.is_running() {
                return self.hold(Held::BacklogOver(sync_ok));
            }
            self.backlog_over(&sync_ok);
        } else if let Some(over) = self.syncs.over(frame.aux, &sync_ok) {
            for key in over.unowed {
                self.acks.leave_out(key);
            }
            self.release(over.rest);
            if let Some(mut page) = over.recalled {
                page.messages.retain(|message| self.state.recall.wants(message.stamp));
                // Before they are passed on: one that is dropped once more is asked for again.
                self.state.recall.page_over(page.next, page.complete, sync_ok.last);
                for message in page.messages {
                    if self.is_new(&message) {
                        self.state.tell(Event::Message(message));
                    }
                }
            }
        }
        None
    }

    fn backlog_over(&mut self, sync_ok: &SyncOk) {
        let told_at_login = !self.caught_up && self.state.shared.info().truncated;
        if sync_ok.truncated && !told_at_login {
            self.state.tell(Event::Truncated { floor: sync_ok.floor });
        }
        if !std::mem::replace(&mut self.caught_up, true) {
            self.state.tell(Event::CaughtUp { last: sync_ok.last });
        }
    }

    fn hold(&mut self, held: Held) -> Option<Ended> {
        let too_much = "it replayed more than was asked for";
        (!self.syncs.hold(held)).then(|| Reason::Protocol(too_much.into()).into())
    }

    /// Passes on what was held while a page was on its way, and is not of it.
    fn release(&mut self, held: VecDeque<Held>) {
        for held in held {
            match held {
                Held::Message { message, .. } => {
                    if self.is_new(&message) {
                        self.state.tell(Event::Message(message));
                    }
                }
                Held::BacklogOver(sync_ok) => self.backlog_over(&sync_ok),
            }
        }
    }

    // The token

    fn renew(&mut self, answer: Result<String, Error>) {
        match answer {
            Ok(token) if self.credentials.is_current(&token) => self.not_renewed("there is no newer token yet".into()),
            Ok(token) => {
                let login = Login { version: VERSION, user: self.user, token, ..Login::default() };
                self.out.renew(&login);
                self.renewal.sent();
                self.credentials.set_current(login.token);
            }
            Err(error) => self.not_renewed(error.to_string()),
        }
    }

    fn not_renewed(&mut self, why: String) {
        self.renewal.failed();
        let ends_in = self.renewal.ends_in();
        self.state.tell(Event::TokenNotRenewed { why, ends_in });
    }

    fn handle_renewed(&mut self, frame: &Frame<'_>) -> Option<Ended> {
        match LoginOk::decode(frame.body) {
            Ok(answer) => {
                self.renewal.confirmed(token_left(&answer), self.credentials);
                self.state.set_expires_ms(answer.expires_ms);
                None
            }
            Err(error) => Some(Reason::Protocol(format!("its LOGIN_OK cannot be read: {error}")).into()),
        }
    }

    // Sending again

    fn is_resending(&self) -> bool {
        self.resend_from < self.resend_below
    }

    /// As much as fits into the send buffer now: all of it may be far more than the buffer should hold, and the
    /// connection is read in between.
    fn resend_some(&mut self) {
        if self.waits_for_rooms() {
            return;
        }
        while self.is_resending() && self.out.has_room() {
            match self.state.shared.unsettled.take_first(self.resend_from..self.resend_below) {
                Some(message) => {
                    self.resend_from = message.serial + 1;
                    self.send_tracked(message);
                }
                None => self.resend_from = self.resend_below,
            }
        }
    }

    /// Too large only if it was put in during an earlier connection with larger frames.
    fn send_tracked(&mut self, message: Next) {
        match self.state.shared.check_payload_to(message.group, message.payload.len()) {
            Ok(()) => {
                let retry = if message.is_retry { flags::RETRY } else { 0 };
                let no_store = if message.no_store { flags::NO_STORE } else { 0 };
                self.send(flags::ACK | retry | no_store, message.id, message.to, message.group, &message.payload);
            }
            Err(too_large) => {
                self.state.shared.unsettled.settle(message.serial, Err(too_large));
            }
        }
    }

    fn send(&mut self, of_message: u8, id: u64, to: u64, group: bool, payload: &[u8]) {
        if !group {
            return self.out.message(of_message, id, to, payload);
        }
        let (acked, is_retry) = (of_message & flags::ACK != 0, of_message & flags::RETRY != 0);
        self.state.groups.sending(to, id, acked, is_retry);
        self.out.group_message(of_message, id, to, payload);
    }

    // Timers

    /// A PING is due when for one heartbeat nothing went (the gateway would think this client dead) or nothing came
    /// (this client would think the gateway dead).
    fn ping_due(&self) -> Instant {
        self.sent.min(self.received).max(self.pinged) + self.heartbeat
    }

    fn dead_due(&self) -> Instant {
        self.received + 2 * self.heartbeat
    }

    fn next_timer(&self) -> Instant {
        let mut due = self.ping_due().min(self.dead_due());
        if let Some(renewal) = self.renewal.due() {
            due = due.min(renewal);
        }
        let may_ask = !self.syncs.is_running() && !self.is_group_page_running() && self.out.has_room_for_answers();
        if let Some(pull) = self.state.groups.pull_due().filter(|_| may_ask && self.pulls_groups()) {
            due = due.min(pull);
        }
        if self.waits_for_rooms() {
            due = due.min(self.rejoined_by);
        }
        if let Some(attention) = self.attention_due() {
            due = due.min(attention);
        }
        let may_recall = self.registered && may_ask;
        if let Some(recall) = self.state.recall.due().filter(|_| may_recall) {
            due = due.min(recall);
        }
        self.closing.map_or(due, |closing| closing.min(due))
    }

    fn on_timer(&mut self) -> Option<Ended> {
        let now = Instant::now();
        if self.closing.is_some_and(|closing| now >= closing) {
            return Some(Reason::LoggedOut.into());
        }
        if now >= self.dead_due() {
            let silence = now - self.received;
            return Some(Reason::ServerSilent { silence }.into());
        }
        if now >= self.ping_due() {
            self.pinged = now;
            // Towards a gateway that reads nothing they would add up.
            if self.out.has_room_for_answers() {
                self.out.ping(HEARTBEAT_PING);
            }
        }
        self.ask_for_attention_again(now);
        self.renewal.begin(self.credentials);
        None
    }

    // Frames

    fn handle(&mut self, frame: &Frame<'_>) -> Option<Ended> {
        match frame.known()? {
            Kind::Deliver => return self.handle_deliver(frame),
            // From then on a service is a sender like others.
            Kind::Push => {
                let peer = SERVICE_USERS + u64::from(frame.aux);
                return self.handle_deliver(&Frame { peer, ..*frame });
            }
            Kind::Reply => self.calls.replied(frame),
            Kind::SyncOk => return self.handle_sync_ok(frame),
            Kind::Sent => self.handle_sent(frame),
            Kind::GroupDeliver => return self.handle_group_deliver(frame),
            Kind::GroupOk => self.handle_group_ok(frame),
            Kind::Heads => return self.handle_heads(frame),
            Kind::Presence => return self.handle_presence(frame),
            Kind::Error => self.handle_error(frame),
            Kind::Pong => self.handle_pong(frame.aux),
            Kind::Bye => {
                let (code, text, advice) = read_bye(frame);
                let reason = Reason::Bye { code, text };
                return Some(Ended { reason, advice });
            }
            Kind::LoginOk if self.renewal.may_be_confirmed() => return self.handle_renewed(frame),
            unexpected => {
                let what = format!("it sent {} after the login", unexpected.name());
                return Some(Reason::Protocol(what).into());
            }
        }
        None
    }

    fn handle_deliver(&mut self, frame: &Frame<'_>) -> Option<Ended> {
        let mut message =
            Message { from: frame.peer, id: frame.id, stamp: frame.stamp, body: Bytes::new(), flags: frame.flags };
        let is_held = message.is_replay() && self.syncs.is_running();
        if !is_held && !self.is_new(&message) {
            return None;
        }
        message.body = Bytes::copy_from_slice(frame.body);
        if is_held {
            // It takes its place among what is owed now: an ACK for all before a later one would be for it, too.
            let key = (message.from, message.id);
            let tentative = message.wants_ack() && self.acks.came(key, message.stamp, true);
            return self.hold(Held::Message { message, tentative });
        }
        self.state.tell(Event::Message(message));
        None
    }

    /// Whether a message that has come is to be passed on. One that the application is done with is acknowledged again.
    fn is_new(&mut self, message: &Message) -> bool {
        let key = (message.from, message.id);
        let sent_before = message.flags & (flags::AGAIN | flags::REPLAY) != 0;
        // Only what may be sent twice is looked up: others need not have unique ids.
        let seen =
            if message.wants_ack() || sent_before { self.state.window.arrive(key, message.stamp) } else { Seen::New };
        if message.wants_ack() {
            match seen {
                Seen::New | Seen::Waiting => {
                    self.acks.came(key, message.stamp, sent_before || seen == Seen::Waiting);
                }
                Seen::Taken => {
                    self.acks.leave_out(key);
                    self.out.ack(Due { key, stamp: message.stamp, cumulative: false });
                }
            }
        }
        seen == Seen::New
    }

    /// A SENT that matches nothing answers a message that was sent twice and is settled, or one that was given up.
    fn handle_sent(&mut self, frame: &Frame<'_>) {
        self.note_own_group_message(frame);
        let fate = || Outcome::from_u16(frame.aux).ok_or(Error::UnknownOutcome(frame.aux));
        self.state.shared.unsettled.settle_id(frame.id, frame.peer, fate);
    }

    fn handle_error(&mut self, frame: &Frame<'_>) {
        let code = frame.aux;
        let text = String::from_utf8_lossy(frame.body).into_owned();
        if self.calls.refused(frame.id, code, &text) {
            return;
        }
        if self.is_group_ask_refused(frame, code, &text) {
            return;
        }
        if frame.id == 0 && frame.peer != 0 && self.is_of_group_page(frame.peer, code) {
            return self.group_page_refused(code, text);
        }
        if (frame.id, frame.peer) == (0, 0) {
            // RENEW is never unsupported where SYNC is known, and seldom finds a gateway without room.
            let is_group_page = self.is_of_group_page(0, code);
            let is_page = is_group_page || self.syncs.may_be_refused_with(code);
            let of_page = [Code::Unsupported, Code::Overloaded].map(Code::as_u16).contains(&code);
            if self.renewal.may_be_refused_with(code) && !(is_page && of_page) {
                return self.not_renewed(sentence(code, &text));
            }
            if is_group_page {
                return self.group_page_refused(code, text);
            }
            if is_page {
                let (held, was_recall) = self.syncs.refused(code, text);
                if was_recall {
                    self.state.recall.refused();
                }
                return self.release(held);
            }
        }
        let fate = || Err(Error::Refused { code, text: text.clone() });
        if !self.state.shared.unsettled.settle_id(frame.id, frame.peer, fate) {
            self.state.tell(Event::ServerError { code, text, id: frame.id, peer: frame.peer });
        }
    }

    fn handle_pong(&mut self, aux: u16) {
        let Some(index) = self.pings.iter().position(|ping| ping.aux == aux) else {
            return;
        };
        if let Some(ping) = self.pings.remove(index) {
            drop(ping.answer.send(Ok(ping.sent.elapsed())));
        }
    }
}
