//! Seeded chance.

/// A stream of pseudo-random numbers (SplitMix64; Steele, Lea, Flood: Fast splittable pseudorandom
/// number generators, 2014). A function of its seed and purpose alone.
#[derive(Clone, Debug)]
pub struct Generator {
    state: u64,
}

/// SplitMix64's output function: a bijection that spreads each bit over all.
pub(crate) fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A digest of bytes, for traces; not for adversaries.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let whole = words.iter().fold(bytes.len() as u64, |state, word| mix(state ^ u64::from_le_bytes(*word)));
    rest.iter().fold(whole, |state, byte| mix(state ^ u64::from(*byte)))
}

impl Generator {
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self { state: mix(mix(seed) ^ digest(purpose.as_bytes())) }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number of `0..bound`; `bound` is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0);
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of `least..=most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        assert!(least <= most);
        match (most - least).checked_add(1) {
            Some(bound) => least + self.below(bound),
            None => self.next_u64(),
        }
    }

    /// True with a probability of `ppm` millionths.
    pub fn chance_ppm(&mut self, ppm: u64) -> bool {
        self.below(1_000_000) < ppm
    }

    /// One of `choices`, which is not empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}
