//! Who serves which slot: what CLUSTER SLOTS, MOVED and ASK say. No I/O.

use fred::types::Value;

/// Slots of a Redis Cluster.
pub(super) const SLOTS: usize = 16_384;

/// In [`SlotMap::owners`]: nobody serves the slot.
pub(super) const NOBODY: u16 = u16::MAX;

/// Host and port.
pub(super) type Address = (String, u16);

/// Who serves which slot, as one server sees it. Two that say the same are equal, however they said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// The masters, in the order of their first slots.
    pub(super) masters: Vec<Address>,
    /// For each slot the master's place in `masters`, or [`NOBODY`].
    pub(super) owners: Vec<u16>,
}

/// An answer to CLUSTER SLOTS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotsAnswer {
    pub(super) map: SlotMap,
    /// The replicas, which can be asked when no master answers.
    pub(super) replicas: Vec<Address>,
    /// Replicas of each of the masters, in their order.
    pub(super) followers: Vec<u8>,
}

impl SlotsAnswer {
    /// Reads the answer of the server at `host`, which may leave its own name out. `None` if it makes no sense or names
    /// no slot.
    pub(super) fn parse(answer: Value, host: &str) -> Option<Self> {
        let mut named: Vec<Address> = Vec::new();
        let mut followed: Vec<u8> = Vec::new();
        let mut replicas: Vec<Address> = Vec::new();
        let mut places = vec![NOBODY; SLOTS];
        for range in list(answer)? {
            let mut parts = list(range)?.into_iter();
            let (first, last) = (number(parts.next()?)?, number(parts.next()?)?);
            let owner = address(parts.next()?, host)?;
            let place = named.iter().position(|known| *known == owner).unwrap_or_else(|| {
                named.push(owner);
                followed.push(0);
                named.len() - 1
            });
            let place = u16::try_from(place).ok().filter(|&place| place != NOBODY)?;
            places.get_mut(first..=last)?.fill(place);
            let mut followers = 0_u8;
            for replica in parts.filter_map(|part| address(part, host)) {
                followers = followers.saturating_add(1);
                if !replicas.contains(&replica) {
                    replicas.push(replica);
                }
            }
            // Each of its ranges names the same ones.
            followed[usize::from(place)] = followed[usize::from(place)].max(followers);
        }
        let mut masters = Vec::with_capacity(named.len());
        let mut followers = Vec::with_capacity(named.len());
        let mut renamed = vec![NOBODY; named.len()];
        for place in places.iter_mut().filter(|place| **place != NOBODY) {
            let new = &mut renamed[usize::from(*place)];
            if *new == NOBODY {
                *new = masters.len() as u16;
                masters.push(named[usize::from(*place)].clone());
                followers.push(followed[usize::from(*place)]);
            }
            *place = *new;
        }
        (!masters.is_empty()).then_some(SlotsAnswer { map: SlotMap { masters, owners: places }, replicas, followers })
    }
}

/// The map that most of `answers` agree on; the first of those that are equally frequent. A master that has just come
/// back still believes in its slots, so one answer alone is not to be followed while others differ.
pub(super) fn most_agreed(answers: Vec<SlotsAnswer>) -> Option<SlotsAnswer> {
    let votes = |map: &SlotMap| answers.iter().filter(|answer| answer.map == *map).count();
    let most = answers.iter().map(|answer| votes(&answer.map)).max()?;
    let chosen = answers.iter().position(|answer| votes(&answer.map) == most)?;
    answers.into_iter().nth(chosen)
}

/// Where Redis says a command has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirection {
    /// The slot has another master.
    Moved { slot: u16, to: Address },
    /// This one key is with a master that is about to get the slot.
    Ask { to: Address },
}

impl Redirection {
    /// Reads the text of an error of the server at `host`. `None` if it is another error.
    pub(super) fn parse(error: &str, host: &str) -> Option<Self> {
        let mut words = error.split(' ');
        let kind = words.next()?;
        if kind != "MOVED" && kind != "ASK" {
            return None;
        }
        let slot = words.next()?.parse().ok().filter(|&slot| usize::from(slot) < SLOTS)?;
        let (to, port) = words.next()?.rsplit_once(':')?;
        let to = (if to.is_empty() { host } else { to }.to_owned(), port.parse().ok().filter(|&port| port != 0)?);
        Some(if kind == "MOVED" { Redirection::Moved { slot, to } } else { Redirection::Ask { to } })
    }
}

fn list(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn number(value: Value) -> Option<usize> {
    usize::try_from(value.as_i64()?).ok()
}

fn address(value: Value, host: &str) -> Option<Address> {
    let mut parts = list(value)?.into_iter();
    // Null or empty: the one that was asked, by the name under which it was asked.
    let name = parts.next()?.as_string().filter(|name| !name.is_empty() && name != "?");
    let port = u16::try_from(number(parts.next()?)?).ok().filter(|&port| port != 0)?;
    Some((name.unwrap_or_else(|| host.to_owned()), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: i64) -> Value {
        let host = if host.is_empty() { Value::Null } else { host.into() };
        Value::Array(vec![host, port.into(), "id".into(), Value::Array(vec![])])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![first.into(), last.into()], nodes].concat())
    }

    fn parse(ranges: Vec<Value>) -> Option<SlotsAnswer> {
        SlotsAnswer::parse(Value::Array(ranges), "asked")
    }

    #[test]
    fn what_is_said_in_another_order_is_the_same() {
        let first = parse(vec![
            range(0, 99, vec![node("a", 1), node("r", 9)]),
            range(100, 16_383, vec![node("", 2), node("a", 8)]),
        ]);
        let second = parse(vec![
            range(200, 16_383, vec![node("asked", 2)]),
            range(0, 99, vec![node("a", 1)]),
            range(100, 199, vec![node("asked", 2)]),
        ]);
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first.map, second.map);
        assert_eq!(first.map.masters, [("a".to_owned(), 1), ("asked".to_owned(), 2)]);
        assert_eq!((first.map.owners[99], first.map.owners[100], first.map.owners.len()), (0, 1, SLOTS));
        assert_eq!(first.replicas, [("r".to_owned(), 9), ("a".to_owned(), 8)]);
    }

    #[test]
    fn a_slot_of_nobody_is_told_and_nonsense_is_none() {
        assert_eq!(parse(vec![range(5, 6, vec![node("a", 1)])]).unwrap().map.owners[4], NOBODY);
        for nonsense in [
            vec![],
            vec![Value::Null],
            vec![range(6, 5, vec![node("a", 1)])],
            vec![range(0, 16_384, vec![node("a", 1)])],
            vec![range(-1, 5, vec![node("a", 1)])],
            vec![range(0, 5, vec![])],
            vec![range(0, 5, vec![node("a", 0)])],
            vec![range(0, 5, vec![node("a", 65_536)])],
        ] {
            // An inverted range is empty, and then nothing is left.
            assert_eq!(parse(nonsense.clone()), None, "{nonsense:?}");
        }
        assert_eq!(SlotsAnswer::parse("OK".into(), "asked"), None);
    }

    #[test]
    fn one_who_differs_is_outvoted() {
        let old = parse(vec![range(0, 5, vec![node("old", 1)])]).unwrap();
        let new = parse(vec![range(0, 5, vec![node("new", 1)])]).unwrap();
        let chosen = most_agreed(vec![old.clone(), new.clone(), new.clone()]);
        assert_eq!(chosen, Some(new.clone()));
        assert_eq!(most_agreed(vec![old.clone(), new]), Some(old));
        assert_eq!(most_agreed(vec![]), None);
    }

    #[test]
    fn redirections_are_read_and_other_errors_are_not() {
        let moved = |slot, host: &str, port| Some(Redirection::Moved { slot, to: (host.to_owned(), port) });
        assert_eq!(Redirection::parse("MOVED 3999 10.0.0.1:6381", "h"), moved(3999, "10.0.0.1", 6381));
        assert_eq!(Redirection::parse("MOVED 0 ::1:6381", "h"), moved(0, "::1", 6381));
        assert_eq!(Redirection::parse("MOVED 0 :6381", "h"), moved(0, "h", 6381));
        assert_eq!(Redirection::parse("ASK 1 b:2", "h"), Some(Redirection::Ask { to: ("b".into(), 2) }));
        for other in
            ["", "MOVED", "MOVED 1", "MOVED 16384 a:1", "MOVED x a:1", "ASK 1 a", "ASK 1 a:0", "ERR MOVED 1 a:1"]
        {
            assert_eq!(Redirection::parse(other, "h"), None, "{other}");
        }
    }
}
