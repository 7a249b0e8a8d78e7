//! The lines of an export, whichever store it is of: JSON, for each user one with floor and devices, then its messages.
//! Those of groups are in `group_copy`.

use crate::Record;
use crate::group_copy::{GroupCopy, GroupLine};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};

/// What a store knows of a user besides messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserCopy {
    /// Who.
    pub user: u64,
    /// Messages up to this stamp may be gone.
    pub floor: u64,
    /// Number, epoch, name, cursor, and when it was seen, milliseconds since 1970.
    pub devices: Vec<(u16, u32, String, u64, u64)>,
}

/// A line of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyLine {
    /// A user, before its messages.
    User(UserCopy),
    /// A message of a user.
    Message(u64, Record),
    /// Something of a group.
    Group(u64, GroupCopy),
}

/// Numbers that may be larger than 2^53 are strings, as in the HTTP interface.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Message(MessageLine),
    User(UserLine),
    Group(GroupLine),
}

#[derive(Debug, Serialize, Deserialize)]
struct MessageLine {
    user: String,
    stamp: String,
    from: String,
    id: String,
    flags: u8,
    payload: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct UserLine {
    user: String,
    floor: String,
    devices: Vec<DeviceLine>,
}

#[derive(Debug, Serialize, Deserialize)]
struct DeviceLine {
    device: u16,
    epoch: u32,
    name: String,
    cursor: String,
    seen_ms: u64,
}

impl CopyLine {
    /// Writes it, with the end of its line.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let line = match self {
            CopyLine::User(UserCopy { user, floor, devices }) => {
                let device = |(device, epoch, name, cursor, seen_ms): &(u16, u32, String, u64, u64)| DeviceLine {
                    device: *device,
                    epoch: *epoch,
                    name: name.clone(),
                    cursor: cursor.to_string(),
                    seen_ms: *seen_ms,
                };
                let devices = devices.iter().map(device).collect();
                Line::User(UserLine { user: user.to_string(), floor: floor.to_string(), devices })
            }
            CopyLine::Group(group, copy) => Line::Group(copy.line(*group)),
            CopyLine::Message(user, record) => Line::Message(MessageLine {
                user: user.to_string(),
                stamp: record.stamp.to_string(),
                from: record.from.to_string(),
                id: record.id.to_string(),
                flags: record.flags,
                payload: STANDARD.encode(&record.payload),
            }),
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")
    }

    /// Reads one; `number` is that of the line, for the error.
    ///
    /// # Errors
    /// Of kind `InvalidData` for a line that makes no sense.
    pub fn read(text: &str, number: usize) -> io::Result<Self> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {what}"));
        let word = |text: &str| text.parse::<u64>().map_err(|_| wrong(format!("{text} is not a number")));
        Ok(match serde_json::from_str(text).map_err(|error| wrong(error.to_string()))? {
            Line::Message(line) => {
                let payload = STANDARD.decode(&line.payload).map_err(|error| wrong(error.to_string()))?;
                let (stamp, from, id) = (word(&line.stamp)?, word(&line.from)?, word(&line.id)?);
                let record = Record { stamp, from, id, flags: line.flags, payload: payload.into() };
                CopyLine::Message(word(&line.user)?, record)
            }
            Line::Group(line) => {
                let (group, copy) = GroupCopy::read(line, wrong)?;
                CopyLine::Group(group, copy)
            }
            Line::User(line) => {
                let device = |device: DeviceLine| {
                    let DeviceLine { device, epoch, name, cursor, seen_ms } = device;
                    Ok((device, epoch, name, word(&cursor)?, seen_ms))
                };
                let devices = line.devices.into_iter().map(device).collect::<io::Result<_>>()?;
                CopyLine::User(UserCopy { user: word(&line.user)?, floor: word(&line.floor)?, devices })
            }
        })
    }
}
