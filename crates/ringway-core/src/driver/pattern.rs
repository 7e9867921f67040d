//! What a verifying load writes: content that says where it belongs and how old it is.
//!
//! Each 512-byte sector names its address, the load's seed and the generation in its first two words; all other
//! words are a function of those. So a stale, misplaced, missing or damaged sector can be told apart.

use std::fmt;
use std::ops::RangeInclusive;

use super::random::mix;

/// Bytes of the unit that names itself.
pub(crate) const SECTOR_BYTES: u32 = 512;
const WORDS: usize = SECTOR_BYTES as usize / 8;
/// What buffers hold before a read: not a pattern of any sector.
pub(crate) const UNTOUCHED: u8 = 0xee;
const UNTOUCHED_WORD: u64 = u64::from_ne_bytes([UNTOUCHED; 8]);

/// What a sector held instead of what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole sector of this load, but an old one or another's.
    Pattern {
        /// Sector (512 bytes) that it was written to.
        sector: u64,
        /// Its generation.
        generation: u32,
    },
    /// Nothing but zeroes.
    Zeroes,
    /// The device said that it read, but wrote nothing to the buffer.
    Untouched,
    /// None of the above: a word at the offending byte.
    Damaged {
        /// The word there of the generation that the sector names, or of the last acknowledged one.
        expected: u64,
        /// Word that was read.
        found: u64,
    },
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern { sector, generation } => write!(f, "generation {generation} of sector {sector}"),
            Self::Zeroes => write!(f, "zeroes"),
            Self::Untouched => write!(f, "a buffer that was not written"),
            Self::Damaged { expected, found } => {
                write!(f, "damage: {found:#018x} instead of {expected:#018x}")
            }
        }
    }
}

/// The content of one load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    pub seed: u32,
}

/// One sector at one generation.
#[derive(Clone, Copy, Debug)]
struct Content {
    head: [u64; 2],
    key: u64,
}

impl Content {
    /// As a disk holds it: little endian.
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        match index {
            0 | 1 => self.head[index],
            _ => mix(self.key.wrapping_add(index as u64)),
        }
        .to_le()
    }
}

impl Pattern {
    fn content(self, sector: u64, generation: u32) -> Content {
        let label = u64::from(self.seed) << 32 | u64::from(generation);
        // Spread, so that the keys of neighbours do not overlap within a sector's words.
        Content { head: [sector, label], key: mix(mix(sector) ^ label) }
    }

    /// Fill a buffer that starts at a sector.
    pub(crate) fn fill(self, words: &mut [u64], sector: u64, generation: u32) {
        for (sector, chunk) in (sector..).zip(words.chunks_exact_mut(WORDS)) {
            let content = self.content(sector, generation);
            chunk.iter_mut().enumerate().for_each(|(index, word)| *word = content.word(index));
        }
    }

    /// Compare a buffer that starts at a sector.
    ///
    /// Each word must be of one of the generations: where there are several, a write was in flight beside the read
    /// (or failed), and no disk promises that such a write is seen as a whole.
    ///
    /// Returns the byte of the first difference, and what its sector holds.
    pub(crate) fn compare(
        self,
        words: &[u64],
        sector: u64,
        generations: RangeInclusive<u32>,
    ) -> Option<(usize, Found)> {
        (sector..).zip(words.chunks_exact(WORDS)).enumerate().find_map(|(number, (sector, chunk))| {
            let index = self.difference(chunk, sector, generations.clone())?;
            let named = u64::from_le(chunk[1]) as u32;
            let generation = if generations.contains(&named) { named } else { *generations.start() };
            let expected = self.content(sector, generation).word(index);
            let byte = (number * WORDS + index) * 8;
            Some((byte, self.identify(chunk, expected, chunk[index])))
        })
    }

    /// Index of the first word that is of none of the generations.
    fn difference(self, chunk: &[u64], sector: u64, generations: RangeInclusive<u32>) -> Option<usize> {
        let first = self.content(sector, *generations.start());
        let differs = |(index, &word): (usize, &u64)| {
            let other = || generations.clone().any(|g| self.content(sector, g).word(index) == word);
            word != first.word(index) && !other()
        };
        chunk.iter().enumerate().position(differs)
    }

    fn identify(self, chunk: &[u64], expected: u64, found: u64) -> Found {
        if chunk.iter().all(|&word| word == 0) {
            return Found::Zeroes;
        }
        if chunk.iter().all(|&word| word == UNTOUCHED_WORD) {
            return Found::Untouched;
        }
        let (sector, label) = (u64::from_le(chunk[0]), u64::from_le(chunk[1]));
        let generation = label as u32;
        match self.difference(chunk, sector, generation..=generation) {
            None => Found::Pattern { sector, generation },
            Some(_) => Found::Damaged { expected, found },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern { seed: 5 };

    fn block(sector: u64, generation: u32) -> Vec<u64> {
        let mut words = vec![0; 8 * WORDS];
        PATTERN.fill(&mut words, sector, generation);
        words
    }

    #[test]
    fn what_was_filled_compares_equal() {
        assert_eq!(PATTERN.compare(&block(80, 3), 80, 3..=3), None);
    }

    #[test]
    fn an_older_generation_is_named() {
        let found = PATTERN.compare(&block(80, 2), 80, 3..=4);
        assert_eq!(found, Some((8, Found::Pattern { sector: 80, generation: 2 })));
    }

    #[test]
    fn a_misplaced_block_is_named() {
        let found = PATTERN.compare(&block(88, 3), 80, 3..=3);
        assert_eq!(found, Some((0, Found::Pattern { sector: 88, generation: 3 })));
    }

    #[test]
    fn a_lost_sector_in_the_middle_is_found() {
        let mut words = block(80, 3);
        words[2 * WORDS..3 * WORDS].fill(0);
        assert_eq!(PATTERN.compare(&words, 80, 3..=3), Some((1024, Found::Zeroes)));
        words[2 * WORDS..3 * WORDS].fill(UNTOUCHED_WORD);
        assert_eq!(PATTERN.compare(&words, 80, 3..=3), Some((1024, Found::Untouched)));
    }

    #[test]
    fn one_bit_is_found_in_each_word() {
        let good = block(80, 3);
        for index in 0..good.len() {
            let mut words = good.clone();
            words[index] ^= 1 << (index % 64);
            let found = Found::Damaged { expected: good[index], found: words[index] };
            assert_eq!(PATTERN.compare(&words, 80, 3..=3), Some((index * 8, found)));
        }
    }

    #[test]
    fn damage_is_measured_against_the_generation_that_the_sector_names() {
        let good = block(80, 4);
        let mut words = good.clone();
        words[12] ^= 4;
        let found = Found::Damaged { expected: good[12], found: words[12] };
        assert_eq!(PATTERN.compare(&words, 80, 3..=4), Some((96, found)));
    }

    #[test]
    fn two_generations_may_mix_while_a_write_is_in_flight_and_not_else() {
        let mut words = block(80, 3);
        words[100..200].copy_from_slice(&block(80, 4)[100..200]);
        assert_eq!(PATTERN.compare(&words, 80, 3..=4), None);
        assert!(PATTERN.compare(&words, 80, 4..=4).is_some());
        assert!(PATTERN.compare(&words, 80, 3..=3).is_some());
    }

    #[test]
    fn another_load_is_another_content() {
        let other = Pattern { seed: 6 };
        assert!(matches!(other.compare(&block(80, 3), 80, 3..=3), Some((8, Found::Damaged { .. }))));
    }
}
