//! MQTT 3.1.1: CONNECT, SUBSCRIBE to the client's own topic, PUBLISH with QoS 0 to another's.
//! Source: the OASIS standard, sections 2.2 (fixed header), 3.1 to 3.3, 3.8 and 3.9.

use super::{Dialect, Event, Subjects};

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGRESP: u8 = 0xD0;
/// The protocol's maximum, 18 hours: nobody has to ping.
const KEEP_ALIVE_SECS: u16 = u16::MAX;
/// A connection without a stored session.
const CLEAN_SESSION: u8 = 0x02;

pub(crate) struct Mqtt;

fn packet(kind: u8, body: &[&[u8]], out: &mut Vec<u8>) {
    out.push(kind);
    let mut length: usize = body.iter().map(|part| part.len()).sum();
    loop {
        let more = length > 127;
        out.push((length % 128) as u8 | if more { 0x80 } else { 0 });
        length /= 128;
        if !more {
            break;
        }
    }
    body.iter().for_each(|part| out.extend_from_slice(part));
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn topic(user: u64) -> Vec<u8> {
    string(&format!("u/{user}"))
}

impl Dialect for Mqtt {
    fn enter(&self, user: u64, out: &mut Vec<u8>) {
        self.enter_for(user, user, out);
    }

    fn send(&self, to: u64, payload: &[u8], out: &mut Vec<u8>) {
        packet(PUBLISH, &[&topic(to), payload], out);
    }

    fn next<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Event<'a>, usize)>, String> {
        let Some(kind) = bytes.first() else { return Ok(None) };
        let (mut length, mut at) = (0usize, 1);
        loop {
            let Some(byte) = bytes.get(at) else { return Ok(None) };
            if at == 5 {
                return Err("a length of more than four bytes".to_owned());
            }
            length |= usize::from(byte & 0x7F) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let Some(body) = bytes.get(at..at + length) else { return Ok(None) };
        let event = match kind & 0xF0 {
            CONNACK => match body {
                [_, 0] => Event::Nothing,
                _ => Event::Refused(format!("CONNACK {body:?}")),
            },
            SUBACK => match body {
                [_, _, 0..=2] => Event::Ready,
                _ => Event::Refused(format!("SUBACK {body:?}")),
            },
            PUBLISH => {
                let topic_bytes = match body {
                    [high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
                    _ => return Err("a PUBLISH without a topic".to_owned()),
                };
                Event::Message(body.get(2 + topic_bytes..).ok_or("a PUBLISH shorter than its topic")?)
            }
            PINGRESP => Event::Nothing,
            _ => return Err(format!("a packet of kind {kind:#04x}")),
        };
        Ok(Some((event, at + length)))
    }
}

impl Subjects for Mqtt {
    fn enter_for(&self, user: u64, subject: u64, out: &mut Vec<u8>) {
        let name = string(&format!("u{user}"));
        let keep_alive = KEEP_ALIVE_SECS.to_be_bytes();
        packet(CONNECT, &[b"\0\x04MQTT\x04", &[CLEAN_SESSION], &keep_alive, &name], out);
        packet(SUBSCRIBE, &[&[0, 1], &topic(subject), &[0]], out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{assert_splits, events};
    use super::*;

    #[test]
    fn every_packet_is_understood_however_it_is_cut() {
        let mut heard = vec![CONNACK, 2, 0, 0, SUBACK, 3, 0, 1, 0];
        Mqtt.send(7, &[9; 300], &mut heard);
        assert_eq!(events(&Mqtt, &heard).len(), 3);
        assert_splits(&Mqtt, &heard);
        assert!(Mqtt.next(&[0xF0, 0]).is_err() && Mqtt.next(&[PUBLISH, 1, 0]).is_err());
        assert!(Mqtt.next(&[PUBLISH, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1]).is_err());
        assert!(matches!(Mqtt.next(&[CONNACK, 2, 0, 5]), Ok(Some((Event::Refused(_), 4)))));
    }
}
