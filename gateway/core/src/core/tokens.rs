//! Sessions that end with their token: when, and how RENEW puts it off.
//!
//! The end is a moment of the wall clock, and the wall clock may jump. It is judged by what that clock says at each
//! look at a session's timer, which comes once a minute at least ([`LOOK_MS`]); so after a jump forwards sessions end
//! within a minute, and after one backwards they live on until the clock says it is over. Without a jump the look falls
//! on the end itself, within a tick.

use super::handshake::Welcome;
use super::links::ticks;
use super::shard::Shard;
use crate::auth::{Auth, Granted, Refusal, Said, TokenEnd, key_id};
use crate::reason::CloseReason;
use trunkline_proto::prost::Message;
use trunkline_proto::{Code, Frame, Header, Kind, Login, LoginOk, SERVICE_USERS, VERSION, encode, encode_message};
use trunkline_router_core::presence::Presence;

/// Longest time between two looks at a session whose token ends. A session's timer runs out about as often anyway, for
/// its heartbeats.
const LOOK_MS: u64 = 60_000;

/// What is kept for the session of a slot.
#[derive(Clone, Copy, Debug, Default)]
struct Token {
    end: TokenEnd,
    /// Tick of the latest RENEW that was looked at; 0 before the first.
    renewed_tick: u32,
}

/// Bytes a connection takes in the table below. A node with open authentication has none.
pub const TOKEN_BYTES: usize = size_of::<Token>();
const _: () = assert!(TOKEN_BYTES == 8);
/// Bytes a connection takes besides where a connect-time hook is asked.
pub const SAID_BYTES: usize = size_of::<Said>();
const _: () = assert!(SAID_BYTES == 8);

/// When sessions end with their token, by slot. Beside the slots, so that they are no larger where nobody has a token.
#[derive(Debug)]
pub(crate) struct Tokens {
    by_slot: Vec<Token>,
    /// What the hook has said of them.
    said: Vec<Said>,
    slots_max: u32,
    /// The wall clock of this turn.
    wall_ms: u64,
}

impl Tokens {
    /// For slots below `slots_max`. Memory is taken with the first token, and touched when its slot is first used.
    pub(crate) fn new(slots_max: u32) -> Self {
        Tokens { by_slot: Vec::new(), said: Vec::new(), slots_max, wall_ms: 0 }
    }

    /// Takes the wall clock of this turn.
    pub(crate) fn set_now(&mut self, wall_ms: u64) {
        self.wall_ms = wall_ms;
    }

    /// The place of a slot, which is made if need be.
    fn at(&mut self, slot: u32) -> &mut Token {
        place(&mut self.by_slot, slot, self.slots_max)
    }

    /// What the hook has said of the session in a slot.
    pub(super) fn said(&self, slot: u32) -> Said {
        self.said.get(slot as usize).copied().unwrap_or_default()
    }

    /// A session begins, or goes on, of which the hook has said this.
    fn note_said(&mut self, slot: u32, said: Said) {
        if said != Said::default() || self.said.len() > slot as usize {
            *place(&mut self.said, slot, self.slots_max) = said;
        }
    }

    /// A session begins in a slot.
    fn begin(&mut self, slot: u32, end: TokenEnd) {
        if end != TokenEnd::NEVER || self.by_slot.len() > slot as usize {
            *self.at(slot) = Token { end, renewed_tick: 0 };
        }
    }

    /// Whether a token may be looked at for a session, when at most one in `apart_ticks` may.
    fn may_renew(&mut self, slot: u32, tick: u32, apart_ticks: u32) -> bool {
        let token = self.at(slot);
        if token.renewed_tick != 0 && tick < token.renewed_tick.saturating_add(apart_ticks) {
            return false;
        }
        token.renewed_tick = tick.max(1);
        true
    }

    /// The session goes on with another token.
    fn renew(&mut self, slot: u32, end: TokenEnd) {
        if end != TokenEnd::NEVER || self.by_slot.len() > slot as usize {
            self.at(slot).end = end;
        }
    }

    fn end(&self, slot: u32) -> TokenEnd {
        self.by_slot.get(slot as usize).map_or(TokenEnd::NEVER, |token| token.end)
    }

    /// Whether the session's token has ended.
    pub(crate) fn is_over(&self, slot: u32) -> bool {
        self.end(slot).is_over(self.wall_ms)
    }

    /// When to look whether it has; `None` if it never will.
    pub(crate) fn look_tick(&self, slot: u32, tick: u32) -> Option<u32> {
        let end = self.end(slot);
        let left_ms = end.ms().saturating_sub(self.wall_ms).min(LOOK_MS);
        (end != TokenEnd::NEVER).then(|| tick + ticks(left_ms))
    }
}

/// The place of a slot in a table, which is made if need be.
fn place<T: Copy + Default>(table: &mut Vec<T>, slot: u32, slots_max: u32) -> &mut T {
    let known = table.len();
    if known <= slot as usize {
        table.reserve_exact(slots_max.max(slot + 1) as usize - known);
        table.resize(slot as usize + 1, T::default());
    }
    &mut table[slot as usize]
}

impl Shard {
    /// The particulars of a LOGIN whose token is refused: the client is told why, the log has a line, and it is counted
    /// by reason.
    pub(crate) fn refuse_login(&mut self, slot: u32, user: u64, token: &str, refusal: Refusal) {
        self.note_refusal(slot, "login", user, token, refusal);
        self.close_with(slot, CloseReason::BadCredentials, String::new(), refusal.text());
    }

    /// A session begins whose token grants this.
    pub(crate) fn begin_token(&mut self, slot: u32, granted: Granted) {
        self.links.tokens.begin(slot, granted.end);
        self.links.tokens.note_said(slot, granted.said);
        self.keep_claim(slot, granted.watch);
        self.keep_send_claim(slot, granted.send);
    }

    /// RENEW: the session lasts as long as the new token. One that is refused changes nothing.
    pub(crate) fn renew(&mut self, slot: u32, frame: &Frame<'_>) {
        let tick = self.links.tick;
        let user = self.links.slots.at(slot).user;
        let login = match Login::decode(frame.body) {
            Ok(login) if login.version == VERSION => login,
            _ => return self.links.error(slot, Code::BadRequest, 0, 0),
        };
        // Looking at a signature costs far more than other frames do; with open authentication there is none.
        let checks = matches!(self.auth.get(), Auth::Jwt(_)) || self.hook.is_some();
        if checks && !self.links.tokens.may_renew(slot, tick, ticks(self.links.limits.renew_ms)) {
            self.links.stats.limit_renew.add(1);
            return self.links.error(slot, Code::RateLimited, 0, 0);
        }
        let now_s = self.now.wall_ms / 1_000;
        // Where a hook says whose session a login becomes, it says so again.
        let may_name = login.user == user || (self.hook.is_some() && login.user < SERVICE_USERS);
        let checked = match may_name {
            true => self.auth.get().grant(login.user, &login.token, now_s),
            false => Err(Refusal::WrongSubject),
        };
        match checked {
            Ok(granted) if self.hook.is_some() => self.ask_hook_to_renew(slot, login.user, login.token, granted),
            Ok(granted) => self.renewed(slot, user, granted),
            Err(refusal) => self.refuse_renewal(slot, user, &login.token, refusal),
        }
    }

    /// A session goes on with this, unless it asks for more than there may be: then it goes on as it was.
    pub(super) fn renewed(&mut self, slot: u32, user: u64, granted: Granted) {
        if self.names_too_many(&granted.send) {
            return self.refuse_renewal(slot, user, "", Refusal::TooManyNamed);
        }
        if !self.has_room_to_send(slot, &granted.send) {
            return self.links.error(slot, Code::Overloaded, 0, 0);
        }
        self.links.tokens.renew(slot, granted.end);
        self.links.tokens.note_said(slot, granted.said);
        self.renew_claim(slot, granted.watch);
        self.keep_send_claim(slot, granted.send);
        self.links.stats.renewals.add(1);
        self.confirm_renewal(slot, user);
        if let Some(look) = self.links.tokens.look_tick(slot, self.links.tick) {
            self.links.wheel.arm_earlier(slot, look);
        }
    }

    /// A session goes on as it was.
    pub(super) fn refuse_renewal(&mut self, slot: u32, user: u64, token: &str, refusal: Refusal) {
        self.note_refusal(slot, "renewal", user, token, refusal);
        self.links.stats.errors_sent.add(1);
        let aux = Code::BadCredentials.as_u16();
        let header = Header { kind: Kind::Error, flags: 0, aux, id: 0, peer: 0, stamp: 0 };
        self.links.reply(slot, |out| encode(out, &header, refusal.text().as_bytes()));
    }

    fn confirm_renewal(&mut self, slot: u32, user: u64) {
        let sessions = self.presence.sessions(user).iter();
        // A newer session of the device may just have taken its place: then this one is about to be told so.
        let session = sessions.filter(|entry| entry.slot == slot).map(|entry| entry.session).next().unwrap_or(0);
        let heartbeat_secs = self.links.slots.at(slot).heartbeat_secs();
        let pending = self.inboxes.len(user) as u64;
        self.send_login_ok(slot, session, heartbeat_secs, &Welcome { pending, ..Welcome::default() });
    }

    /// LOGIN_OK, for LOGIN and RENEW alike.
    pub(crate) fn send_login_ok(&mut self, slot: u32, session: u64, heartbeat_secs: u16, welcome: &Welcome) {
        let login_ok = LoginOk {
            session,
            node: self.node.clone(),
            shard: u32::from(self.shard),
            heartbeat_secs: u32::from(heartbeat_secs),
            time_ms: self.now.wall_ms,
            max_frame: self.links.limits.frame_bytes_max,
            resume: welcome.resume.clone(),
            resumed: welcome.resumed,
            pending: welcome.pending,
            floor: welcome.floor,
            last: welcome.last,
            truncated: welcome.truncated,
            expires_ms: self.links.tokens.end(slot).ms(),
        };
        self.links.reply(slot, |out| encode_message(out, Kind::LoginOk, 0, &login_ok));
    }

    pub(super) fn note_refusal(&self, slot: u32, what: &'static str, user: u64, token: &str, refusal: Refusal) {
        self.links.stats.count_refusal(refusal);
        let Some(suppressed) = self.auth.may_log(self.now.mono_ms) else { return };
        // Which key it was is what an operator needs to know; with quotes and escapes, as it is a stranger's text.
        let kid = Some(refusal).filter(|refusal| *refusal == Refusal::UnknownKey).and_then(|_| key_id(token));
        let peer = self.addresses.of(slot).map(tracing::field::display);
        tracing::info!(user, shard = self.shard, peer, suppressed, kid, "{what} refused: {refusal}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL_MS: u64 = 1_780_000_000_000;

    fn tokens() -> Tokens {
        let mut tokens = Tokens::new(1_000);
        tokens.set_now(WALL_MS);
        tokens
    }

    fn end(seconds_from_now: i64) -> TokenEnd {
        TokenEnd::at_s((WALL_MS as i64 / 1_000 + seconds_from_now) as u64)
    }

    #[test]
    fn nothing_is_kept_where_no_token_ends() {
        let mut tokens = tokens();
        tokens.begin(7, TokenEnd::NEVER);
        assert_eq!(tokens.by_slot.capacity(), 0);
        assert_eq!((tokens.is_over(7), tokens.look_tick(7, 5)), (false, None));
        // In a slot that another session with a token had.
        tokens.begin(7, end(1));
        tokens.begin(7, TokenEnd::NEVER);
        assert_eq!((tokens.is_over(7), tokens.look_tick(7, 5)), (false, None));
        assert_eq!(tokens.by_slot.capacity(), 1_000);
    }

    #[test]
    fn what_the_hook_has_said_is_the_session_s_and_not_the_slot_s() {
        let mut tokens = tokens();
        tokens.note_said(7, Said::default());
        assert_eq!((tokens.said(7), tokens.said.capacity()), (Said::default(), 0), "nothing is kept for nothing");
        let said = Said { end: end(9), watch: true, send: false };
        tokens.note_said(7, said);
        assert_eq!((tokens.said(7), tokens.said(6), tokens.said(8)), (said, Said::default(), Said::default()));
        tokens.note_said(7, Said::default());
        assert_eq!((tokens.said(7), tokens.said.capacity()), (Said::default(), 1_000));
    }

    #[test]
    fn a_look_falls_on_the_end_or_a_minute_from_now() {
        let mut tokens = tokens();
        for (seconds, ticks) in [(-5, 1), (0, 1), (1, 10), (59, 590), (60, 600), (61, 600), (1_000_000, 600)] {
            tokens.begin(3, end(seconds));
            assert_eq!(tokens.look_tick(3, 100), Some(100 + ticks), "{seconds}");
            assert_eq!(tokens.is_over(3), seconds <= 0, "{seconds}");
        }
    }

    #[test]
    fn the_wall_clock_decides_whichever_way_it_jumps() {
        let mut tokens = tokens();
        tokens.begin(3, end(10));
        tokens.set_now(WALL_MS + 3_600_000);
        assert!(tokens.is_over(3));
        tokens.set_now(WALL_MS - 3_600_000);
        assert!(!tokens.is_over(3));
        assert_eq!(tokens.look_tick(3, 100), Some(700));
        tokens.renew(3, end(20));
        tokens.set_now(WALL_MS + 19_999);
        assert!(!tokens.is_over(3));
        tokens.set_now(WALL_MS + 20_000);
        assert!(tokens.is_over(3));
    }

    #[test]
    fn one_renewal_in_so_many_ticks_is_looked_at() {
        let mut tokens = tokens();
        tokens.begin(3, end(10));
        assert!(tokens.may_renew(3, 0, 10), "the first, at once");
        assert!(!tokens.may_renew(3, 10, 10));
        assert!(tokens.may_renew(3, 11, 10));
        assert!(!tokens.may_renew(3, 20, 10));
        assert!(tokens.may_renew(3, 21, 10));
        // The next session of the slot begins anew.
        tokens.begin(3, end(10));
        assert!(tokens.may_renew(3, 22, 10));
        // One that began while authentication was open.
        assert!(tokens.may_renew(4, 22, 10) && !tokens.may_renew(4, 22, 10));
        assert_eq!((tokens.is_over(4), tokens.look_tick(4, 5)), (false, None));
    }
}
