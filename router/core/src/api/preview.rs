//! Which users would move if the nodes were others.

use super::Whole;
use crate::membership::{View, check_name};
use crate::ring::{Node, Ring, RingError, WEIGHT_DEFAULT};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Users that are looked at if the request does not say how many.
pub const SAMPLE_DEFAULT: u32 = 100_000;

/// The most users looked at: a fraction of a second.
pub const SAMPLE_MAX: u32 = 1_000_000;

/// The longest name of a node to add, in characters: what the gateways take.
const NAME_CHARS_MAX: usize = 64;

/// `POST /v1/ring/preview`. The ring that results is the present one without `remove`, with `weights`, and with `add`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreviewRequest {
    /// Nodes that are not in the ring.
    pub add: Vec<WeightedName>,
    /// Names of nodes in the ring.
    pub remove: Vec<String>,
    /// New weights of nodes that are in the ring and stay.
    #[serde(deserialize_with = "whole_weights")]
    pub weights: BTreeMap<String, u32>,
    /// Users 1 … `sample` are looked at, 1 … [`SAMPLE_MAX`]; [`SAMPLE_DEFAULT`] if it is missing.
    #[serde(deserialize_with = "present_whole")]
    pub sample: Option<u32>,
}

/// A node to add.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedName {
    /// Its name.
    pub name: String,
    /// Its weight; if it is missing, the one that most nodes of the ring have, or [`WEIGHT_DEFAULT`] for the first node
    /// of all.
    #[serde(default, deserialize_with = "present_whole")]
    pub weight: Option<u32>,
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    Whole::deserialize(deserializer).map(|whole| whole.0)
}

/// A number that may be missing, but not `null`.
fn present_whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    whole(deserializer).map(Some)
}

fn whole_weights<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u32>, D::Error> {
    let weights: BTreeMap<String, Whole> = BTreeMap::deserialize(deserializer)?;
    Ok(weights.into_iter().map(|(name, weight)| (name, weight.0)).collect())
}

/// What would happen.
#[derive(Debug, Clone, Serialize)]
pub struct Preview {
    /// The epoch of the view that was compared with.
    pub epoch: u64,
    /// Redis does not answer, and the view is what was known before.
    pub degraded: bool,
    /// Users looked at: 1 … `sample`.
    pub sample: u32,
    /// The share of them whose home node changes, 0.0 … 1.0.
    pub moved_share: f64,
    /// The least share that has to move for every node to have its weight's part before and after. A ring comes close
    /// to it when nodes are only added, only removed or only re-weighted; one that takes the place of another moves
    /// more.
    pub ideal_share: f64,
    /// Every node of either ring, in the order of their names.
    pub nodes: Vec<PreviewNode>,
}

/// One node of a [`Preview`].
#[derive(Debug, Clone, Serialize)]
pub struct PreviewNode {
    /// The node.
    pub name: String,
    /// Its weight in the ring of now; `null` if it is not in it.
    pub weight_before: Option<u32>,
    /// Its weight in the other ring; `null` if it is not in it.
    pub weight_after: Option<u32>,
    /// The share of users at home there now.
    pub share_before: f64,
    /// The share of users that would be at home there.
    pub share_after: f64,
}

/// Why there is no preview. Each text names what to correct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviewError {
    /// A sample of 0 or of more than [`SAMPLE_MAX`].
    Sample(u32),
    /// A node to remove or to re-weight is not in the ring.
    NotInRing {
        /// The node.
        name: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// A node to add is in the ring already.
    InRing(String),
    /// A node is named twice.
    Twice(String),
    /// A name that no node of the cluster can have.
    BadName(String),
    /// The resulting ring cannot be built.
    Ring(RingError),
    /// The resulting ring is larger than whoever was asked has memory for.
    TooHeavy {
        /// The sum of its weights.
        weight: u64,
        /// The largest that is computed here.
        weight_max: u32,
    },
}

impl fmt::Display for PreviewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PreviewError::Sample(sample) => write!(f, "sample is {sample}; set it within 1 to {SAMPLE_MAX}"),
            PreviewError::NotInRing { name, known } if known.is_empty() => {
                write!(f, "node {name:?} is not in the ring, which is empty now; use add")
            }
            PreviewError::NotInRing { name, known } => {
                write!(f, "node {name:?} is not in the ring; those that are: {}", known.join(", "))
            }
            PreviewError::InRing(name) => {
                write!(
                    f,
                    "node {name:?} is in the ring already; change its weight with weights, or choose another name"
                )
            }
            PreviewError::Twice(name) => {
                write!(f, "node {name:?} is named twice; name each node once in add, remove and weights together")
            }
            PreviewError::BadName(detail) => f.write_str(detail),
            PreviewError::Ring(RingError::NoNodes) => {
                write!(f, "nothing would be left in the ring; keep a node or add one")
            }
            PreviewError::Ring(error) => write!(f, "{error}"),
            PreviewError::TooHeavy { weight, weight_max } => {
                write!(f, "the weights come to {weight}, and this process previews {weight_max} at most; ask a router")
            }
        }
    }
}

impl std::error::Error for PreviewError {}

impl PreviewError {
    /// Whether another ring would take the request; otherwise it is wrong by itself.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        match self {
            PreviewError::NotInRing { .. }
            | PreviewError::InRing(_)
            | PreviewError::Twice(_)
            | PreviewError::TooHeavy { .. } => true,
            PreviewError::Ring(error) => !matches!(error, RingError::BadName { .. } | RingError::BadWeight { .. }),
            PreviewError::Sample(_) | PreviewError::BadName(_) => false,
        }
    }
}

/// Compares the ring of the view with the one asked for. Takes time in proportion to the weights and to the sample: up
/// to a second or two at the limits of both, so not to be called where others wait.
///
/// # Errors
/// [`PreviewError`]; [`PreviewError::TooHeavy`] for a ring whose weights come to more than `weight_max`.
pub fn preview(
    view: &View,
    degraded: bool,
    request: &PreviewRequest,
    weight_max: u32,
) -> Result<Preview, PreviewError> {
    let sample = request.sample.unwrap_or(SAMPLE_DEFAULT);
    if !(1..=SAMPLE_MAX).contains(&sample) {
        return Err(PreviewError::Sample(sample));
    }
    let before = view.ring.as_deref();
    let weights_before: BTreeMap<&str, u32> =
        before.map_or(&[][..], Ring::nodes).iter().map(|node| (node.name(), node.weight())).collect();
    let weights_after = changed(&weights_before, request)?;
    let weight = weights_after.values().map(|&weight| u64::from(weight)).sum();
    if weight > u64::from(weight_max) {
        return Err(PreviewError::TooHeavy { weight, weight_max });
    }
    let nodes: Result<Vec<Node>, RingError> =
        weights_after.iter().map(|(&name, &weight)| Node::new(name, weight)).collect();
    let after = nodes.and_then(Ring::new).map_err(PreviewError::Ring)?;

    let mut names: Vec<&str> = weights_before.keys().chain(weights_after.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    let place = |ring: &Ring| -> Vec<usize> {
        ring.nodes().iter().filter_map(|node| names.binary_search(&node.name()).ok()).collect()
    };
    let (places_before, places_after) = (before.map(place), place(&after));
    let (mut users_before, mut users_after) = (vec![0_u32; names.len()], vec![0_u32; names.len()]);
    let mut moved = 0_u32;
    for user in 1..=u64::from(sample) {
        let old = before.zip(places_before.as_ref()).map(|(ring, places)| places[ring.owner_index(user)]);
        let new = places_after[after.owner_index(user)];
        if let Some(old) = old {
            users_before[old] += 1;
        }
        users_after[new] += 1;
        moved += u32::from(old != Some(new));
    }
    let share = |users: u32| f64::from(users) / f64::from(sample);
    let nodes = names.iter().enumerate().map(|(at, &name)| PreviewNode {
        name: name.to_owned(),
        weight_before: weights_before.get(name).copied(),
        weight_after: weights_after.get(name).copied(),
        share_before: share(users_before[at]),
        share_after: share(users_after[at]),
    });
    Ok(Preview {
        epoch: view.epoch,
        degraded,
        sample,
        moved_share: share(moved),
        ideal_share: ideal_share(&names, &weights_before, &weights_after),
        nodes: nodes.collect(),
    })
}

/// The weights after the change.
fn changed<'n>(
    before: &BTreeMap<&'n str, u32>,
    request: &'n PreviewRequest,
) -> Result<BTreeMap<&'n str, u32>, PreviewError> {
    let mut after = before.clone();
    let mut named: Vec<&str> = Vec::new();
    let removed = request.remove.iter().map(|name| (name.as_str(), None));
    let reweighted = request.weights.iter().map(|(name, &weight)| (name.as_str(), Some(weight)));
    for (name, weight) in removed.chain(reweighted) {
        if !before.contains_key(name) {
            let known = before.keys().map(|&known| known.to_owned()).collect();
            return Err(PreviewError::NotInRing { name: name.to_owned(), known });
        }
        named.push(name);
        match weight {
            Some(weight) => after.insert(name, weight),
            None => after.remove(name),
        };
    }
    let usual = usual_weight(before);
    for WeightedName { name, weight } in &request.add {
        check_name(name).map_err(|error| PreviewError::BadName(error.to_string()))?;
        if name.chars().count() > NAME_CHARS_MAX {
            return Err(PreviewError::BadName(format!("a node name has {NAME_CHARS_MAX} characters at most")));
        }
        if before.contains_key(name.as_str()) {
            return Err(PreviewError::InRing(name.clone()));
        }
        named.push(name);
        after.insert(name, weight.unwrap_or(usual));
    }
    named.sort_unstable();
    match named.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(PreviewError::Twice(pair[0].to_owned())),
        None => Ok(after),
    }
}

/// The weight that most nodes have, the lowest of several.
fn usual_weight(weights: &BTreeMap<&str, u32>) -> u32 {
    let mut nodes: BTreeMap<u32, usize> = BTreeMap::new();
    weights.values().for_each(|&weight| *nodes.entry(weight).or_default() += 1);
    nodes.into_iter().rev().max_by_key(|&(_, count)| count).map_or(WEIGHT_DEFAULT, |(weight, _)| weight)
}

/// What all nodes that gain gain together.
fn ideal_share(names: &[&str], before: &BTreeMap<&str, u32>, after: &BTreeMap<&str, u32>) -> f64 {
    let total = |weights: &BTreeMap<&str, u32>| weights.values().map(|&weight| f64::from(weight)).sum::<f64>();
    let (total_before, total_after) = (total(before).max(1.0), total(after).max(1.0));
    let part = |weights: &BTreeMap<&str, u32>, name: &str, total: f64| {
        weights.get(name).map_or(0.0, |&weight| f64::from(weight) / total)
    };
    names.iter().map(|name| (part(after, name, total_after) - part(before, name, total_before)).max(0.0)).sum()
}
