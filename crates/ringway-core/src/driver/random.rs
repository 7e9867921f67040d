//! A fast pseudo-random sequence (splitmix64): the same seed gives the same load.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Scramble a word: a bijection in which every input bit changes half of the output bits.
#[inline(always)]
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The sequence.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(STEP)))
    }

    /// 64 even bits.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }
}

/// An even number below `limit`, of the upper bits of a random word.
#[inline(always)]
pub(crate) fn below(word: u64, limit: u64) -> u64 {
    ((u128::from(word) * u128::from(limit)) >> 64) as u64
}

/// Whether something of `percent` happens, by the lower bits of a random word.
#[inline(always)]
pub(crate) fn happens(word: u64, percent: u8) -> bool {
    ((word & 0xffff_ffff) * 100) >> 32 < u64::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_below_a_limit_cover_all_of_it_evenly() {
        let mut random = Random::new(7);
        let mut counts = [0u32; 10];
        for _ in 0..100_000 {
            counts[below(random.next(), 10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }

    #[test]
    fn percentages_are_kept_and_the_ends_are_exact() {
        let mut random = Random::new(1);
        let mut often = |percent| (0..100_000).filter(|_| happens(random.next(), percent)).count();
        assert_eq!((often(0), often(100)), (0, 100_000));
        assert!((74_000..76_000).contains(&often(75)));
    }
}
