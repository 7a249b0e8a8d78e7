//! The way from a user to its shard: the pinned results, and the properties they are chosen for.

use proptest::prelude::*;
use std::collections::HashSet;
use trunkline_router_core::{home_shard, jump, user_hash};

/// user, `user_hash`, `home_shard` of 1, 2, 4 and 56 shards. Computed outside this crate from the published
/// definitions. Part of the protocol between nodes: a change here is a change of that protocol.
const VECTORS: [(u64, u64, [u32; 4]); 18] = [
    (1, 0x910a_2dec_8902_5cc1, [0, 0, 3, 50]),
    (2, 0x9758_35de_1c97_56ce, [0, 0, 0, 19]),
    (3, 0x1d0b_14e4_db01_8fed, [0, 1, 1, 20]),
    (4, 0x6e73_e372_e233_8aca, [0, 0, 3, 18]),
    (5, 0x6303_3b0c_a389_c35a, [0, 0, 3, 53]),
    (6, 0xbd64_a5d9_adef_e000, [0, 0, 0, 29]),
    (7, 0x63cb_e1e4_5932_0dd7, [0, 1, 1, 39]),
    (8, 0x9e56_51b0_ef95_3636, [0, 0, 0, 28]),
    (42, 0xbdd7_3226_2feb_6e95, [0, 0, 0, 0]),
    (1_000, 0x3c1e_ba8b_4dcc_c148, [0, 0, 0, 33]),
    (65_535, 0xcf0f_635e_85b8_5d76, [0, 1, 3, 33]),
    (65_536, 0x09aa_b36c_fda2_d1b3, [0, 0, 3, 34]),
    (1_234_567, 0x599e_d017_fb08_fc85, [0, 0, 2, 32]),
    (999_999_999, 0x58f4_9e81_fea9_260a, [0, 0, 0, 28]),
    (1 << 32, 0xc42c_5a1a_a382_0138, [0, 0, 0, 32]),
    ((1 << 53) + 1, 0x055c_e0bf_d333_7037, [0, 0, 0, 42]),
    (1 << 63, 0x481e_c0a2_12a9_f3db, [0, 0, 0, 27]),
    (u64::MAX, 0xe4d9_7177_1b65_2c20, [0, 0, 3, 26]),
];

/// The paper's figure 1, with its types.
fn jump_of_the_paper(mut key: u64, num_buckets: i64) -> i64 {
    let (mut b, mut j) = (-1_i64, 0_i64);
    while j < num_buckets {
        b = j;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        j = ((b + 1) as f64 * ((1_i64 << 31) as f64 / ((key >> 33) + 1) as f64)) as i64;
    }
    b
}

#[test]
fn user_hash_and_home_shard_are_pinned() {
    for (user, hash, shards) in VECTORS {
        assert_eq!(user_hash(user), hash, "user {user}");
        let found = [1, 2, 4, 56].map(|n| home_shard(user, n));
        assert_eq!(found, shards, "user {user}");
    }
}

/// First outputs of SplitMix64 for these seeds, as published with other implementations.
#[test]
fn user_hash_is_the_first_output_of_splitmix64() {
    assert_eq!(user_hash(0), 0xe220_a839_7b1d_cdaf);
    assert_eq!(user_hash(1_234_567), 6_457_827_717_110_365_317);
}

/// The first five are in the test suites of several other implementations.
#[test]
fn jump_gives_the_results_of_other_implementations() {
    let vectors = [
        (1, 1, 0),
        (42, 57, 43),
        (0xdead_10cc, 1, 0),
        (0xdead_10cc, 666, 361),
        (256, 1_024, 520),
        (0, 1_024, 0),
        (u64::MAX, 1_024, 313),
        (1, u32::MAX, 3_094_789_146),
        (0xe220_a839_7b1d_cdaf, u32::MAX, 3_356_638_088),
    ];
    for (hash, buckets, expected) in vectors {
        assert_eq!(jump(hash, buckets), expected, "hash {hash:#x}, {buckets} buckets");
    }
}

/// Hashes whose first candidate is exactly the number of buckets, the first bucket that does not exist.
#[test]
fn a_candidate_equal_to_the_number_of_buckets_is_not_taken() {
    assert_eq!(jump(0x7aae_55cd_06a3_a298, 2), 0);
    assert_eq!(jump(0x3aae_55cd_06a3_a298, 4), 0);
}

#[test]
fn no_buckets_are_answered_like_one() {
    for hash in [0, 1, u64::MAX] {
        assert_eq!(jump(hash, 0), 0);
        assert_eq!(jump(hash, 1), 0);
        assert_eq!(home_shard(hash, 0), 0);
    }
}

#[test]
fn shards_get_equal_shares_of_consecutive_and_of_strided_users() {
    const USERS: u64 = 200_000;
    for stride in [1, 64, 1_000, 1 << 20, 1 << 40] {
        for shards in [2_u32, 4, 16, 56] {
            let mut load = vec![0_u32; shards as usize];
            for user in 1..=USERS {
                load[home_shard(user.wrapping_mul(stride), shards) as usize] += 1;
            }
            let mean = USERS as f64 / f64::from(shards);
            let max = load.iter().copied().max().map_or(0.0, f64::from) / mean;
            let min = load.iter().copied().min().map_or(0.0, f64::from) / mean;
            // Chance alone spreads 56 shards of 3,571 users over about ±5 %.
            assert!(max < 1.06 && min > 0.94, "stride {stride}, {shards} shards: {min} to {max} of the mean");
        }
    }
}

#[test]
fn a_new_shard_takes_its_share_of_users_and_no_more() {
    const USERS: u64 = 100_000;
    for shards in 1..=63_u32 {
        let moved = (1..=USERS).filter(|&user| home_shard(user, shards) != home_shard(user, shards + 1)).count();
        let expected = USERS as f64 / f64::from(shards + 1);
        let ratio = moved as f64 / expected;
        assert!((0.9..1.1).contains(&ratio), "{shards} shards and one more: {ratio} of the expected share moved");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn jump_is_the_paper_s_function(hash: u64, buckets in prop_oneof![1..=100_u32, 1..=u32::MAX, Just(u32::MAX)]) {
        prop_assert_eq!(i64::from(jump(hash, buckets)), jump_of_the_paper(hash, i64::from(buckets)));
    }

    #[test]
    fn jump_stays_below_the_number_of_buckets(hash: u64, buckets in 1..=u32::MAX) {
        prop_assert!(jump(hash, buckets) < buckets);
    }

    #[test]
    fn a_user_stays_or_moves_to_the_new_shard(user: u64, shards in prop_oneof![1..=200_u32, 1..u32::MAX]) {
        let (before, after) = (home_shard(user, shards), home_shard(user, shards + 1));
        prop_assert!(after == before || after == shards, "{} to {}", before, after);
    }

    #[test]
    fn user_hash_separates_users(users in prop::collection::hash_set(any::<u64>(), 0..100)) {
        let hashes: HashSet<u64> = users.iter().map(|&user| user_hash(user)).collect();
        prop_assert_eq!(hashes.len(), users.len());
    }
}
