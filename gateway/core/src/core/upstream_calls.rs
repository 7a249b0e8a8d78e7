//! Calls of services whose transport is HTTP: from a client's CALL to the services thread, and from its answers to the
//! REPLY. Which server gets a call, its time and its retries are a matter of that thread ([`crate::upstream`]).

use super::shard::Shard;
use crate::io::ConnId;
use crate::limits::MAIL_TURN_BYTES;
use crate::services::{OpenCall, ServiceRecord};
use trunkline_proto::Code;

impl Shard {
    /// Hands a call to the services thread.
    pub(super) fn call_upstream(&mut self, slot: u32, open: OpenCall, record: &ServiceRecord<'_>) {
        let bytes_max = self.links.limits.portal_bytes_max;
        let portal = self.services.as_mut().and_then(|services| services.portal.as_mut());
        if portal.is_some_and(|portal| portal.put_call(record, bytes_max)) {
            return self.note_open(slot, open);
        }
        self.links.stats.limit_call_portal.add(1);
        self.refuse_call(slot, open.id, open.peer, open.no_reply, Code::Overloaded);
    }

    /// Nobody waits for a call any more that the services thread has.
    pub(super) fn cancel_upstream(&mut self, conn: ConnId, id: u64) {
        if let Some(portal) = self.services.as_mut().and_then(|services| services.portal.as_mut()) {
            portal.put_cancel(&ServiceRecord::Cancel { conn, id });
        }
    }

    /// Takes the answers that have come from HTTP servers, as many as are a turn's. Returns how many those were.
    pub(crate) fn take_upstream_answers(&mut self) -> usize {
        let (mut answers, mut bytes) = (0, 0);
        while bytes < MAIL_TURN_BYTES {
            let portal = self.services.as_mut().and_then(|services| services.portal.as_mut());
            let Some((batch, mut at)) = portal.and_then(|portal| portal.take()) else { break };
            while bytes < MAIL_TURN_BYTES
                && let Some((record, len)) = ServiceRecord::decode(&batch[at..])
            {
                at += len;
                bytes += len;
                answers += 1;
                if let ServiceRecord::Answer { conn, id, status, flags, body } = record {
                    self.reply_to(conn, id, status, flags, body);
                }
            }
            if let Some(portal) = self.services.as_mut().and_then(|services| services.portal.as_mut()) {
                portal.put_back(batch, at);
            }
        }
        answers
    }

    /// Whether answers wait for their turn.
    pub(crate) fn has_upstream_answers(&self) -> bool {
        let portal = self.services.as_ref().and_then(|services| services.portal.as_ref());
        portal.is_some_and(|portal| portal.has_answers())
    }

    /// Hands this turn's calls to the services thread.
    pub(crate) fn post_upstream_calls(&mut self) {
        if let Some(portal) = self.services.as_mut().and_then(|services| services.portal.as_mut()) {
            portal.post();
        }
    }
}
