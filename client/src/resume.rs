//! What a later process goes on with.

use std::fmt;

/// Where a device stands: [`crate::Client::resume`] gives it, and [`crate::Config::resume`] takes it in a later process
/// of the same user and device. The gateway knows by itself what the device has acknowledged; with this it can also
/// tell whether that is what *this* client has worked from (`resumed` in [`crate::SessionInfo`] and
/// [`crate::Event::Reconnected`]).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// The gateway's ticket, a secret; empty where nothing is kept for this device.
    pub token: Vec<u8>,
    /// Highest stamp that the application is done with, of its inbox and of its groups; 0 for none.
    pub last_stamp: u64,
    /// Groups, and for each the position up to which the application is done with its messages. What lies behind is
    /// fetched after the login. At most 4,096 are looked at.
    pub groups: Vec<(u64, u64)>,
}

impl Resume {
    /// What LOGIN says of it: a gateway tells how far a group is when that is further. The position of the group that
    /// is least far, since each group may be behind on its own.
    pub(crate) fn login_stamp(&self) -> u64 {
        self.groups.iter().map(|(_group, stamp)| *stamp).fold(self.last_stamp, u64::min)
    }
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token_bytes = self.token.len();
        f.debug_struct("Resume")
            .field("token_bytes", &token_bytes)
            .field("last_stamp", &self.last_stamp)
            .field("groups", &self.groups)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_keeps_the_ticket_secret() {
        let resume = Resume { token: b"hunter2".to_vec(), last_stamp: 7, groups: Vec::new() };
        assert_eq!(format!("{resume:?}"), "Resume { token_bytes: 7, last_stamp: 7, groups: [] }");
    }

    #[test]
    fn a_login_says_where_the_group_stands_that_is_least_far() {
        let resume = Resume { last_stamp: 50, groups: vec![(77, 40), (78, 60)], ..Resume::default() };
        assert_eq!((resume.login_stamp(), Resume { groups: Vec::new(), ..resume }.login_stamp()), (40, 50));
    }
}
