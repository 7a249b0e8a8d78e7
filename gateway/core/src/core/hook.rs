//! Logins and renewals that the application is asked about: they wait at their shard, which goes on meanwhile, and the
//! services thread asks ([`crate::hook`]).

use super::shard::Shard;
use crate::auth::{Granted, Refusal, Said, TokenEnd, Whom};
use crate::conn::{Phase, Wire};
use crate::hook::{Ask, Decision, Grant, TOKEN_BYTES_MAX, Waiting};
use crate::io::ConnId;
use crate::mailbox::Adoptee;
use crate::reason::CloseReason;
use trunkline_proto::Code;
use trunkline_router_core::presence::Presence;

/// Verdicts that a turn takes: each may begin a session.
const VERDICTS_TURN_MAX: usize = 256;

impl Shard {
    /// Asks about a login that a token, or nobody, vouches for. It waits until the verdict comes, its time-out runs on.
    pub(super) fn ask_hook(&mut self, slot: u32, token: String, adoptee: Box<Adoptee>) {
        if token.len() > TOKEN_BYTES_MAX {
            return self.refuse_login(slot, adoptee.user, &token, Refusal::TooLong);
        }
        let user = adoptee.user;
        let ask = self.question(slot, false, token, (&adoptee.device, &adoptee.class), user);
        if !self.put_question(ask, Waiting::Login(adoptee)) {
            return self.close(slot, CloseReason::Overloaded);
        }
        let conn = self.links.slots.at(slot);
        conn.phase = Phase::Registering;
        conn.user = user;
        self.links.mark_dirty(slot);
    }

    /// Asks about a RENEW that names this user, and whose token grants this. The session goes on as it was until the
    /// verdict comes.
    pub(super) fn ask_hook_to_renew(&mut self, slot: u32, asked: u64, token: String, granted: Granted) {
        let user = self.links.slots.at(slot).user;
        if token.len() > TOKEN_BYTES_MAX {
            return self.refuse_renewal(slot, user, &token, Refusal::TooLong);
        }
        if self.waits_for_hook(slot) {
            return self.links.error(slot, Code::RateLimited, 0, 0);
        }
        let entry = self.presence.sessions(user).iter().find(|entry| entry.slot == slot);
        let named = entry.map(|entry| (entry.device().to_owned(), entry.class().to_owned()));
        let (device, class) = named.unwrap_or_default();
        let ask = self.question(slot, true, token, (&device, &class), asked);
        if !self.put_question(ask, Waiting::Renew { asked, granted }) {
            self.links.error(slot, Code::Overloaded, 0, 0);
        }
    }

    fn question(&mut self, slot: u32, renews: bool, token: String, of: (&str, &str), user: u64) -> Ask {
        let address = self.addresses.known(slot).and_then(|known| known.client());
        let wire = self.links.slots.at(slot).wire;
        Ask {
            conn: self.links.slots.id(slot),
            renews,
            user,
            token,
            device: of.0.to_owned(),
            class: of.1.to_owned(),
            address,
            websocket: wire.kind() == Wire::WEBSOCKET,
            tls: wire.has(Wire::TLS),
        }
    }

    /// False if so many wait already.
    fn put_question(&mut self, ask: Ask, who: Waiting) -> bool {
        let waiting_max = self.links.limits.hook_waiting_max as usize;
        let put = self.hook.as_mut().is_some_and(|hook| hook.ask(ask, who, waiting_max).is_ok());
        self.links.stats.limit_hook_waiting.add(u64::from(!put));
        put
    }

    /// Whether the connection in a slot waits for a verdict.
    pub(super) fn waits_for_hook(&self, slot: u32) -> bool {
        self.hook.as_ref().is_some_and(|hook| hook.waits(slot))
    }

    /// The connection in a slot ends.
    pub(super) fn forget_hook(&mut self, slot: u32) {
        if let Some(hook) = &mut self.hook {
            hook.cancel(slot);
        }
    }

    /// Takes the verdicts that have come, as many as are a turn's. Returns how many those were.
    pub(crate) fn take_verdicts(&mut self) -> usize {
        let mut taken = 0;
        while taken < VERDICTS_TURN_MAX
            && let Some((conn, decision, who)) = self.hook.as_mut().and_then(|hook| hook.take())
        {
            taken += 1;
            match who {
                Some(Waiting::Login(adoptee)) => self.login_judged(conn, adoptee, &decision),
                Some(Waiting::Renew { asked, granted }) => self.renewal_judged(conn, asked, granted, &decision),
                None => {}
            }
        }
        taken
    }

    /// Whether verdicts wait for their turn.
    pub(crate) fn has_verdicts(&self) -> bool {
        self.hook.as_ref().is_some_and(|hook| hook.has_verdicts())
    }

    /// Hands this turn's questions to the services thread.
    pub(crate) fn post_questions(&mut self) {
        if let Some(hook) = &mut self.hook {
            hook.post();
        }
    }

    fn login_judged(&mut self, conn: ConnId, mut adoptee: Box<Adoptee>, decision: &Decision) {
        let slot = conn.slot;
        if self.links.slots.get(conn).is_none_or(|conn| conn.phase != Phase::Registering) {
            return;
        }
        match decision {
            Decision::In(grant) => self.apply_grant(&mut adoptee, grant),
            Decision::Allowed => self.links.stats.hook_allowed.add(1),
            Decision::Refused(words) => {
                self.note_refusal(slot, "login", adoptee.user, "", Refusal::Denied);
                let words = if words.is_empty() { Refusal::Denied.text() } else { words };
                return self.close_with(slot, CloseReason::BadCredentials, String::new(), words);
            }
            Decision::Down | Decision::Gone => return self.close(slot, CloseReason::Overloaded),
        }
        if adoptee.user == 0 {
            // LOGIN left it to the hook to say who it is, and it has not said so.
            return self.close(slot, CloseReason::BadLogin);
        }
        if adoptee.granted.end.is_over(self.now.wall_ms) {
            return self.refuse_login(slot, adoptee.user, "", Refusal::Expired);
        }
        self.links.slots.at(slot).user = 0;
        self.links.slots.at(slot).phase = Phase::Handshake;
        self.let_in(slot, adoptee);
        // What came behind LOGIN has waited; a connection that goes to another shard takes it along.
        self.go_on_reading(slot);
    }

    fn apply_grant(&self, adoptee: &mut Adoptee, grant: &Grant) {
        adoptee.user = grant.user.unwrap_or(adoptee.user);
        adoptee.granted = together(&adoptee.granted, Said::default(), grant, Whom::default, Whom::default);
        if let Some(secs) = grant.heartbeat_secs {
            let limits = &self.links.limits;
            adoptee.heartbeat_secs = secs.clamp(limits.heartbeat_secs_min, limits.heartbeat_secs_max) as u16;
        }
    }

    fn renewal_judged(&mut self, conn: ConnId, asked: u64, granted: Granted, decision: &Decision) {
        let slot = conn.slot;
        let Some(user) = self.links.slots.get(conn).filter(|conn| conn.phase == Phase::Open).map(|conn| conn.user)
        else {
            return;
        };
        let granted = match decision {
            Decision::In(grant) if !is_of(user, asked, grant) => {
                return self.refuse_renewal(slot, user, "", Refusal::WrongSubject);
            }
            Decision::In(grant) => {
                let (watch, send) = (|| self.watch_claim(slot), || self.send_claim(slot));
                together(&granted, self.links.tokens.said(slot), grant, watch, send)
            }
            // Nobody can say whether the session may go on for longer, so it goes on as it was.
            Decision::Allowed | Decision::Down | Decision::Gone => {
                return self.links.error(slot, Code::Overloaded, 0, 0);
            }
            Decision::Refused(_) => return self.refuse_renewal(slot, user, "", Refusal::Denied),
        };
        if granted.end.is_over(self.now.wall_ms) {
            return self.refuse_renewal(slot, user, "", Refusal::Expired);
        }
        // What it has said before and there was no room for is as lost as it was.
        let says_it = matches!(decision, Decision::In(grant) if grant.watch.is_some());
        let stays_lost = self.lost_claim(slot) && granted.said.watch && !says_it;
        self.renewed(slot, user, granted);
        if stays_lost {
            self.claim_stays_lost(slot);
        }
    }
}

/// Whether a RENEW that names `asked` and is let in with this is one of the user's session. The client may name the id
/// that it logged in with, also 0: then the hook has to say again whose session it is.
fn is_of(user: u64, asked: u64, grant: &Grant) -> bool {
    grant.user.unwrap_or(asked) == user
}

/// What token and hook grant together: the session lasts as long as both let it; whom it may watch, and to whom it may
/// write, is the hook's to say where it does. What the hook leaves out now it may have `said` before: that stays, and
/// `watch` and `send` tell what the session has had since.
fn together(
    granted: &Granted,
    said: Said,
    grant: &Grant,
    watch: impl FnOnce() -> Whom,
    send: impl FnOnce() -> Whom,
) -> Granted {
    let end = if grant.end == TokenEnd::NEVER { said.end } else { grant.end };
    let watch = grant.watch.clone().or_else(|| said.watch.then(watch));
    let send = grant.send.clone().or_else(|| said.send.then(send));
    Granted {
        end: granted.end.earlier(end),
        said: Said { end, watch: watch.is_some(), send: send.is_some() },
        watch: watch.unwrap_or_else(|| granted.watch.clone()),
        send: send.unwrap_or_else(|| granted.send.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_renewed_by_the_id_that_logged_in_if_the_hook_names_its_user_again() {
        let names = |user| Grant { user, ..Grant::default() };
        for asked in [0, 5, 42] {
            assert!(is_of(42, asked, &names(Some(42))), "{asked}");
            assert!(!is_of(42, asked, &names(Some(5))), "{asked}");
            assert_eq!(is_of(42, asked, &names(None)), asked == 42, "nobody but the hook says that 5 is 42");
        }
    }

    fn users(users: &[u64]) -> Whom {
        Whom::Users(users.into())
    }

    #[test]
    fn what_the_hook_leaves_out_is_as_the_token_has_it_or_as_it_has_said_before() {
        let token = |end_s, send| Granted { end: TokenEnd::at_s(end_s), send, ..Granted::default() };
        let (everybody, nobody) = (|| Whom::Everybody, || Whom::Nobody);
        // LOGIN: nothing was said before, so what the session had does not count.
        let login = |grant: &Grant| together(&token(100, users(&[7])), Said::default(), grant, everybody, everybody);
        assert_eq!(login(&Grant::default()), token(100, users(&[7])));
        let grant = Grant { end: TokenEnd::at_s(50), send: Some(Whom::Nobody), ..Grant::default() };
        let first = login(&grant);
        assert_eq!((first.end, &first.send), (TokenEnd::at_s(50), &Whom::Nobody));
        assert_eq!(first.said, Said { end: TokenEnd::at_s(50), watch: false, send: true });
        // RENEW with a token that lasts longer and names more: what the hook has said stays until it says otherwise.
        let renewed = |granted: &Granted, grant: &Grant| together(granted, first.said, grant, everybody, nobody);
        let silent = renewed(&token(200, users(&[7, 8])), &Grant::default());
        assert_eq!((silent.end, &silent.send, silent.said), (TokenEnd::at_s(50), &Whom::Nobody, first.said));
        assert_eq!(silent.watch, Whom::Nobody, "the token says so, and the hook never did");
        let later = Grant { end: TokenEnd::at_s(150), watch: Some(users(&[3])), ..Grant::default() };
        let later = renewed(&token(200, users(&[7, 8])), &later);
        assert_eq!((later.end, &later.watch, &later.send), (TokenEnd::at_s(150), &users(&[3]), &Whom::Nobody));
        assert_eq!(later.said, Said { end: TokenEnd::at_s(150), watch: true, send: true });
        // A token that ends first ends the session, and the hook's word counts for the next one.
        let short = renewed(&token(40, Whom::Nobody), &Grant::default());
        assert_eq!((short.end, short.said.end), (TokenEnd::at_s(40), TokenEnd::at_s(50)));
        // With open authentication no token says anything.
        let open = renewed(&Granted::default(), &Grant::default());
        assert_eq!((open.end, open.said), (TokenEnd::at_s(50), first.said));
    }
}
