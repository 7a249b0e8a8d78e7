//! PUSH_TO with HEAD: a push of a worker to several users, one device or a group, and one report of what became of it.
//!
//! To the homes of its recipients it goes as what is pushed by HTTP does, with this shard for its origin. What is told
//! of each comes back here, to the ledger, and the last one of a push to the link, if that still is.

use super::portal::PORTAL_SLOT;
use super::route::Routed;
use super::shard::Shard;
use crate::conn::{ConnFlags, Phase};
use crate::ids::Origin;
use crate::io::ConnId;
use crate::portal::Push as Carried;
use crate::push::push_to::{encode_report, push_of};
use crate::push::{Counts, OnItsWay, Push, Settled, TOKENS, Target};
use trunkline_proto::{Code, Frame, Outcome, SERVICE_USERS};

/// Bit of the number of a push that is open in the ledger of a shard, and not in that of the services thread.
pub(crate) const OF_WORKER: u32 = TOKENS;

impl Shard {
    /// A PUSH_TO that says in its body whom it is for.
    pub(super) fn push_with_head(&mut self, slot: u32, frame: &Frame<'_>) {
        let Frame { id, peer, .. } = *frame;
        let push = match push_of(frame, None, self.links.limits.frame_bytes_max as usize) {
            Ok(push) => push.from(self.now.wall_ms),
            Err(refused) => return self.links.error_with(slot, refused.code, (id, peer), &refused.text),
        };
        let (service, acked, recipients) = (push.service, push.ack, push.recipients());
        let Some(services) = &mut self.services else { return };
        // A head of few bytes may name many, and each of them is work for this turn.
        self.links.spend_units(slot, recipients as u32);
        let to_group = matches!(push.to, Target::Group(_));
        let may = services.links.get(&slot).is_some_and(|link| {
            let serves = link.services.contains(&service);
            serves && (link.pushes_to_groups || !to_group)
        });
        if !may {
            self.links.stats.pushes_denied.add(1);
            return match acked {
                true => self.report_all(slot, id, recipients, Outcome::Denied),
                false => self.links.error(slot, Code::NotAllowed, id, peer),
            };
        }
        if acked && !services.pushes.has_room(recipients) {
            self.links.stats.limit_worker_pushes_open.add(1);
            return self.report_all(slot, id, recipients, Outcome::Overloaded);
        }
        self.links.stats.pushes_in.add(1);
        self.begin_worker_push(slot, id, push);
    }

    fn begin_worker_push(&mut self, slot: u32, id: u64, push: Push) {
        let (service, acked) = (push.service, push.ack);
        let link = self.links.slots.id(slot);
        let Some(OnItsWay { recipients, to_groups, extra, payload }) = push.on_its_way() else { return };
        let mut token = OF_WORKER;
        if acked && let Some(services) = &mut self.services {
            let number = services.pushes.begin(id, recipients.clone());
            // It is open, as begin has just said.
            services.pushes.wait(number, link, |_| true);
            token |= number;
        }
        // Without ACK there is nothing to tell but an ERROR, which is for the link itself.
        let origin = if acked { ConnId { slot: PORTAL_SLOT, generation: token } } else { link };
        for recipient in recipients {
            if to_groups {
                let carried = Carried { token, service, acked, to_groups, extra, id, payload: &payload };
                self.push_to_group(recipient, &carried);
                continue;
            }
            let message = Routed {
                origin: Origin::own(self.shard, origin),
                from: SERVICE_USERS + u64::from(service),
                to: recipient,
                id,
                acked,
                extra,
                payload: &payload,
            };
            self.push_to_user(&message);
        }
    }

    /// What became of a push to one recipient.
    pub(super) fn settle_worker_push(&mut self, number: u32, id: u64, recipient: u64, outcome: Outcome) {
        let Some(services) = &mut self.services else { return self.links.stats.sent_to_gone.add(1) };
        match services.pushes.settle(number, id, recipient, outcome) {
            Settled::Late => self.links.stats.worker_push_fates_late.add(1),
            Settled::Counted => {}
            Settled::Last(standing, links) => {
                for link in links {
                    self.report(link, id, &standing.counts);
                }
            }
        }
    }

    fn report(&mut self, link: ConnId, id: u64, counts: &Counts) {
        match self.links.slots.get(link) {
            Some(conn) if conn.phase == Phase::Open && conn.flags.has(ConnFlags::SERVICE) => {
                self.links.reply(link.slot, |out| encode_report(out, id, counts));
            }
            _ => self.links.stats.sent_to_gone.add(1),
        }
    }

    /// All recipients of a push have ended so, and nobody has it.
    fn report_all(&mut self, slot: u32, id: u64, recipients: usize, outcome: Outcome) {
        let mut counts = Counts::default();
        (0..recipients).for_each(|_| counts.add(outcome));
        self.report(self.links.slots.id(slot), id, &counts);
    }
}
