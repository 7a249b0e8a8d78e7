//! Claims that name users: whom the holder of a token may watch, and to whom it may write.

use serde_json::Value;
use std::sync::Arc;

/// The users that a claim names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Whom {
    /// Nobody: the claim is not there, or cannot be read.
    #[default]
    Nobody,
    /// Everybody.
    Everybody,
    /// These users, in order, each once.
    Users(Arc<[u64]>),
}

impl Whom {
    /// Of a claim: `"*"` or `"all"`, or a list of user ids, as numbers or in decimal. Anything else is nobody, and what
    /// in a list is no id of a user names nobody: a mistake never allows more.
    pub fn of(claim: Option<&Value>) -> Self {
        match claim {
            Some(Value::String(all)) if all == "*" || all == "all" => Whom::Everybody,
            Some(Value::Array(ids)) => {
                let id = |id: &Value| id.as_u64().or_else(|| id.as_str()?.parse().ok());
                let mut users: Vec<u64> = ids.iter().filter_map(id).filter(|user| *user != 0).collect();
                users.sort_unstable();
                users.dedup();
                if users.is_empty() { Whom::Nobody } else { Whom::Users(users.into()) }
            }
            _ => Whom::Nobody,
        }
    }

    /// Users that are listed.
    pub(crate) fn listed(&self) -> usize {
        match self {
            Whom::Nobody | Whom::Everybody => 0,
            Whom::Users(users) => users.len(),
        }
    }

    /// Bytes its list takes for the session that has it.
    pub(crate) fn bytes(&self) -> usize {
        self.listed() * size_of::<u64>()
    }

    /// Whether this user is named.
    pub fn covers(&self, user: u64) -> bool {
        match self {
            Whom::Nobody => false,
            Whom::Everybody => true,
            Whom::Users(users) => users.binary_search(&user).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_names_everybody_or_the_users_of_its_list() {
        for all in ["*", "all"] {
            let whom = Whom::of(Some(&json!(all)));
            assert_eq!((&whom, whom.bytes()), (&Whom::Everybody, 0));
            assert!([1, 7, u64::MAX].into_iter().all(|user| whom.covers(user)));
        }
        let whom = Whom::of(Some(&json!([9, "7", "18446744073709551615", 7, "9", 9])));
        assert_eq!(whom, Whom::Users([7, 9, u64::MAX].into()), "in order, each once");
        assert_eq!((whom.listed(), whom.bytes()), (3, 24));
        let named: Vec<u64> = [0, 6, 7, 8, 9, u64::MAX].into_iter().filter(|user| whom.covers(*user)).collect();
        assert_eq!(named, [7, 9, u64::MAX]);
    }

    #[test]
    fn what_is_no_list_of_users_names_nobody() {
        let nobody = [
            json!(null),
            json!(true),
            json!(7),
            json!("7"),
            json!(""),
            json!("**"),
            json!("*,7"),
            json!(" *"),
            json!("ALL"),
            json!({"users": [7]}),
            json!({"*": true}),
            json!([]),
            json!([["7"]]),
            json!(["*"]),
            json!(["all"]),
            json!([0, "0"]),
            json!([null, true, {}, "", "x", " 7", "7 ", "0x7", "7.0", 7.5, -7, "-7"]),
            json!(["18446744073709551616"]),
        ];
        for claim in nobody {
            assert_eq!(Whom::of(Some(&claim)), Whom::Nobody, "{claim}");
        }
        assert_eq!(Whom::of(None), Whom::Nobody);
        assert!(![0, 1, 7, u64::MAX].into_iter().any(|user| Whom::Nobody.covers(user)));
        // One mistake in a list leaves the others what they are.
        assert_eq!(Whom::of(Some(&json!(["x", 5, "*"]))), Whom::Users([5].into()));
    }
}
