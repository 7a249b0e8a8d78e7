//! The source of everything random, and how often what goes wrong.

/// SplitMix64 (Steele, Lea, Flood 2014). Written out so that a seed means the same run for ever.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// A number from `low` to `high`, both included.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `permille` of a thousand cases. Draws nothing for 0.
    pub fn chance(&mut self, permille: u32) -> bool {
        permille != 0 && self.below(1_000) < u64::from(permille)
    }

    /// One of the choices.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}

/// What goes wrong, in cases of a thousand, and how late things may be, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A receive gets less than there is.
    pub recv_short: u32,
    /// A send takes less than there is room for.
    pub send_short: u32,
    /// A multishot receive or accept ends although nothing is wrong.
    pub multishot_end: u32,
    /// An accept fails for lack of descriptors, or because the client has gone.
    pub accept_error: u32,
    /// A descriptor finds no room in the other shard's table.
    pub hand_over_fail: u32,
    /// The end of the stream comes with a buffer of no bytes.
    pub end_with_buffer: u32,
    /// A connection breaks when bytes arrive.
    pub reset: u32,
    /// The submission queue is flushed before the turn ends.
    pub submit_early: u32,
    /// The kernel takes a part of the submissions only.
    pub submit_partly: u32,
    /// A completion is late.
    pub late: u32,
    pub late_us_max: u64,
    /// A dial is refused, takes long, or is never answered.
    pub dial_refused: u32,
    pub dial_late: u32,
    pub dial_timeout: u32,
    /// Bytes come in pieces.
    pub split: u32,
    pub network_us_max: u64,
    pub tick_late_us_max: u64,
    pub wake_late_us_max: u64,
    /// The wall clock is set, forwards or backwards, at a tick.
    pub clock_set: u32,
    /// A shard does not get to run for a while.
    pub stall: u32,
    pub stall_us_max: u64,
    /// A stalled shard finds its mailbox full.
    pub mailbox_full: u32,
    /// A stall lasts for seconds, as if the process had been stopped.
    pub pause: u32,
}

impl Faults {
    /// A random subset in random strengths: a fault that is always present hides those that need its absence.
    pub fn random(rng: &mut Rng) -> Self {
        let mut some = |permille_max: u64| if rng.chance(600) { rng.within(1, permille_max) as u32 } else { 0 };
        Faults {
            recv_short: some(600),
            send_short: some(600),
            multishot_end: some(200),
            accept_error: some(300),
            hand_over_fail: some(150),
            end_with_buffer: some(500),
            reset: some(8),
            submit_early: some(200),
            submit_partly: some(100),
            late: some(500),
            late_us_max: u64::from(some(40)) * 1_000 + 50,
            split: some(700),
            network_us_max: u64::from(some(20)) * 1_000 + 100,
            tick_late_us_max: u64::from(some(30)) * 1_000 + 1,
            wake_late_us_max: u64::from(some(30)) * 1_000 + 1,
            clock_set: some(30),
            stall: some(20),
            stall_us_max: u64::from(some(60)) * 1_000 + 1,
            mailbox_full: some(500),
            pause: some(30),
            ..Faults::default()
        }
    }

    /// Nothing goes wrong, and everything takes some microseconds.
    pub fn none() -> Self {
        Faults {
            late_us_max: 1,
            network_us_max: 50,
            tick_late_us_max: 1,
            wake_late_us_max: 1,
            stall_us_max: 1,
            ..Faults::default()
        }
    }
}
