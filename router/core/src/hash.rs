//! From a user to its home shard.
//!
//! Every node has to compute the same shard for the same user, so the functions here are part of the protocol between
//! nodes: changing a result is a change of that protocol. `tests/router/hash.rs` pins them.

/// The increment between two states of SplitMix64: 2^64 divided by the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads user ids, which are often consecutive or share low bits, over all 64 bits.
///
/// This is the first output of SplitMix64 seeded with `user`: the golden gamma **is** added, then the output finaliser
/// follows. Generator: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014. Finaliser:
/// Stafford's "Mix13" (2011), as in Vigna's reference `splitmix64.c` and in `java.util.SplittableRandom`, whose
/// `new SplittableRandom(user).nextLong()` gives the same number.
///
/// A bijection: two users never share a hash. It is not keyed, so whoever may choose user ids freely can choose them
/// for one shard; the limits of the shard bound what that does.
#[inline]
#[must_use]
pub const fn user_hash(user: u64) -> u64 {
    let mut z = user.wrapping_add(GOLDEN_GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Jump consistent hash: a bucket below `buckets` for `hash`.
///
/// When `buckets` grows from n to n + 1, each hash keeps its bucket or moves to the new one; 1 / (n + 1) of them move.
/// Takes ln(`buckets`) + 1 rounds on average. With 0 buckets there is nothing to choose from and the answer is 0, as
/// with 1.
///
/// Lamping, Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014. The comparison is made before the
/// truncation to an integer, which changes no result since `buckets` is a whole number.
#[inline]
#[must_use]
pub fn jump(hash: u64, buckets: u32) -> u32 {
    // A node with one shard should not pay for a division to learn that it is shard 0.
    if buckets <= 1 {
        return 0;
    }
    let end = f64::from(buckets);
    let mut state = hash;
    let mut bucket = 0_u32;
    loop {
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        // At most 2^31, so that the next candidate is always above the current one and the loop ends.
        let divisor = ((state >> 33) as i64 + 1) as f64;
        let next = (f64::from(bucket) + 1.0) * ((1_u64 << 31) as f64 / divisor);
        if next >= end {
            return bucket;
        }
        bucket = next as u32;
    }
}

/// The shard of its home node, below `shards`, on which all sessions and all state of `user` live.
///
/// `shards` is the number of shards of that node, at least 1; 0 is answered like 1.
#[inline]
#[must_use]
pub fn home_shard(user: u64, shards: u32) -> u32 {
    jump(user_hash(user), shards)
}
