//! What comes of an import, for inboxes and groups.

use serde::Serialize;

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Messages stored.
    pub messages: u64,
    /// Messages, to users and groups, that were there already.
    pub duplicates: u64,
    /// Messages, groups and members refused because of a limit.
    pub refused: u64,
    /// Users whose devices were taken over.
    pub users: u64,
    /// Groups that were made.
    pub groups: u64,
    /// Members that they, or those that were there, have got.
    pub members: u64,
    /// Messages of groups stored.
    pub group_messages: u64,
}

/// Messages that are imported by one commit.
pub(crate) const IMPORT_BATCH: usize = 8_192;
