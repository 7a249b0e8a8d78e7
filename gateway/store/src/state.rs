//! What a store knows of a user besides messages: floor and devices. Pure; shared by the stores.

use crate::{DeviceInfo, Limits, Opened};

/// Bytes of a device's name; the rest is cut.
const DEVICE_NAME_BYTES_MAX: usize = 64;
/// A device's last sign of life is noted when it is this much later than the one noted, so that logins write nothing.
const SEEN_GRAIN_MS: u64 = 3_600_000;

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) number: u16,
    pub(crate) epoch: u32,
    pub(crate) cursor: u64,
    pub(crate) seen_ms: u64,
    pub(crate) name: Box<str>,
    /// The epoch before its last LOGOUT, 0 if there was none: what it had until then may be told behind that. Only
    /// where nodes share the store, which is never on disk.
    pub(crate) epoch_before: u32,
}

/// Floor and devices of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// No message up to this stamp is left.
    pub(crate) floor: u64,
    /// Messages up to this stamp may have been lost to damage, or were given up.
    pub(crate) gap: u64,
    pub(crate) devices: Vec<Device>,
}

/// Gives out epochs of devices: the low bits of the time, so that one given out before a restart hardly ever comes
/// again.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    last: u32,
}

impl Epochs {
    pub(crate) fn next(&mut self, now_ms: u64) -> u32 {
        let now = now_ms as u32;
        let later = now.wrapping_sub(self.last) as i32 > 0;
        self.last = if later || self.last == 0 { now } else { self.last.wrapping_add(1) }.max(1);
        self.last
    }
}

/// What a login came to.
pub(crate) struct Login {
    pub(crate) opened: Opened,
    /// The state has changed, and the answer has to wait until that is durable.
    pub(crate) registered: bool,
    /// The state has changed in what may be lost.
    pub(crate) touched: bool,
    /// Devices that had to give way.
    pub(crate) forgotten: u64,
}

/// The part of a name that counts.
pub(crate) fn device_name(name: &str) -> &str {
    &name[..name.floor_char_boundary(DEVICE_NAME_BYTES_MAX)]
}

impl State {
    /// Whether this device is registered.
    pub(crate) fn knows(&self, name: &str) -> bool {
        let name = device_name(name);
        self.devices.iter().any(|device| &*device.name == name)
    }

    /// A device logs in. `last` is the end of the log.
    pub(crate) fn open(
        &mut self,
        name: &str,
        ephemeral: bool,
        last: u64,
        now_ms: u64,
        limits: &Limits,
        epochs: &mut Epochs,
    ) -> Login {
        let name = device_name(name);
        let mut login = Login { opened: Opened::default(), registered: false, touched: false, forgotten: 0 };
        if let Some(device) = self.devices.iter_mut().find(|device| &*device.name == name) {
            login.touched = device.seen(now_ms);
            login.opened.known = true;
            device.tell(&mut login.opened);
            return login;
        }
        login.opened.cursor = if self.devices.is_empty() { self.floor } else { last };
        if ephemeral {
            login.opened.cursor = last;
            return login;
        }
        while self.devices.len() >= usize::from(limits.devices_per_user_max.max(1)) {
            let longest = self.devices.iter().enumerate().min_by_key(|(_, device)| (device.seen_ms, device.number));
            let Some((at, _)) = longest else { break };
            self.devices.remove(at);
            login.forgotten += 1;
        }
        // There are fewer devices than numbers.
        let number = (1..=u16::MAX).find(|number| self.devices.iter().all(|device| device.number != *number));
        let device = Device {
            number: number.unwrap_or(u16::MAX),
            epoch: epochs.next(now_ms),
            cursor: login.opened.cursor,
            seen_ms: now_ms,
            name: name.into(),
            epoch_before: 0,
        };
        device.tell(&mut login.opened);
        self.devices.push(device);
        login.registered = true;
        login
    }

    /// A device, by its number and epoch, has everything up to a stamp; 0 if it has only given a sign of life. Whether
    /// that is news; none if there is no such device.
    pub(crate) fn acknowledge(&mut self, of: (u16, u32), stamp: u64, last: u64, now_ms: u64) -> Option<bool> {
        let device = self.devices.iter_mut().find(|device| device.is(of))?;
        let cursor = device.cursor.max(stamp.min(last));
        let moved = cursor != device.cursor;
        device.cursor = cursor;
        Some(device.seen(now_ms) || moved)
    }

    /// Messages up to a stamp were given up. False if that is no news to any device.
    pub(crate) fn note_gap(&mut self, stamp: u64) -> bool {
        let is_news = stamp > self.gap && self.devices.iter().any(|device| device.cursor < stamp);
        if is_news {
            self.gap = stamp;
        }
        is_news
    }

    /// A device has logged out: from now on it counts as registered anew, though it stands where it stood. Returns
    /// its number; none if it is not known.
    pub(crate) fn log_out(&mut self, name: &str, now_ms: u64, epochs: &mut Epochs) -> Option<u16> {
        let name = device_name(name);
        let device = self.devices.iter_mut().find(|device| &*device.name == name)?;
        device.epoch_before = std::mem::replace(&mut device.epoch, epochs.next(now_ms));
        Some(device.number)
    }

    /// Forgets a device, by its number and epoch. False if it was not known.
    pub(crate) fn forget(&mut self, of: (u16, u32)) -> bool {
        let before = self.devices.len();
        self.devices.retain(|device| !device.is(of));
        self.devices.len() < before
    }

    /// Forgets devices that were unseen for too long. Returns how many.
    pub(crate) fn forget_unseen(&mut self, now_ms: u64, limits: &Limits) -> u64 {
        let before = self.devices.len();
        self.devices.retain(|device| now_ms.saturating_sub(device.seen_ms) <= limits.device_unseen_ms_max);
        (before - self.devices.len()) as u64
    }

    /// What a device has; 0 if it is not known, or if its number is another one's by now.
    pub(crate) fn cursor(&self, number: u16, epoch: u32) -> u64 {
        let mut devices = self.devices.iter();
        devices.find(|device| (device.number, device.epoch) == (number, epoch)).map_or(0, |device| device.cursor)
    }

    /// What all registered devices have; none if there is no device.
    pub(crate) fn least_cursor(&self) -> Option<u64> {
        self.devices.iter().map(|device| device.cursor).min()
    }

    /// The devices for those who ask.
    pub(crate) fn devices(&self) -> Vec<DeviceInfo> {
        let info = |device: &Device| DeviceInfo {
            device: device.number,
            device_epoch: device.epoch,
            name: device.name.clone(),
            cursor: device.cursor,
            seen_ms: device.seen_ms,
        };
        self.devices.iter().map(info).collect()
    }
}

impl Device {
    /// Whether it is, or was before its last LOGOUT, the one with this number and epoch.
    fn is(&self, (number, epoch): (u16, u32)) -> bool {
        self.number == number && (self.epoch == epoch || (epoch != 0 && self.epoch_before == epoch))
    }

    /// Notes a sign of life. True if it is worth writing down.
    fn seen(&mut self, now_ms: u64) -> bool {
        let news = now_ms >= self.seen_ms.saturating_add(SEEN_GRAIN_MS);
        if news {
            self.seen_ms = now_ms;
        }
        news
    }

    fn tell(&self, opened: &mut Opened) {
        opened.device = self.number;
        opened.device_epoch = self.epoch;
        opened.cursor = self.cursor;
    }
}
