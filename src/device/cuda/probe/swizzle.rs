//! The model of swizzles.

use crate::device::cuda::nvidia::tensor_map::Swizzle;

/// Bytes within which a swizzle permutes, which are those of one row of its pattern. Without a swizzle, 16.
pub(super) fn span(swizzle: Swizzle) -> usize {
    match swizzle {
        Swizzle::None => 16,
        Swizzle::Bytes32 => 32,
        Swizzle::Bytes64 => 64,
        Swizzle::Bytes128 => 128,
    }
}

/// Where the byte at this offset from a multiple of 1024 goes: the number of its piece of 16 bytes within the span is
/// combined, by exclusive or, with the number of its 128 bytes.
pub(super) fn apply(swizzle: Swizzle, offset: usize) -> usize {
    let pieces = span(swizzle) / 16;
    offset ^ ((offset / 128 % pieces) * 16)
}

/// The code of a swizzle in a descriptor of wgmma.
pub(super) fn descriptor_code(swizzle: Swizzle) -> u64 {
    match swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes128 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes32 => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_the_ptx_manual() {
        // Pieces of 16 bytes in the order in which they lie in memory: eight rows of 128 bytes.
        let row = |swizzle, row: usize| -> Vec<usize> {
            let mut pieces = vec![0; 8];
            for piece in 0..8 {
                pieces[apply(swizzle, 128 * row + 16 * piece) / 16 % 8] = piece;
            }
            pieces
        };
        assert_eq!(row(Swizzle::Bytes128, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Swizzle::Bytes128, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(row(Swizzle::Bytes128, 2), [2, 3, 0, 1, 6, 7, 4, 5]);
        assert_eq!(row(Swizzle::Bytes128, 7), [7, 6, 5, 4, 3, 2, 1, 0]);
        assert_eq!(row(Swizzle::Bytes64, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(row(Swizzle::Bytes64, 3), [3, 2, 1, 0, 7, 6, 5, 4]);
        assert_eq!(row(Swizzle::Bytes64, 4), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Swizzle::Bytes32, 1), [1, 0, 3, 2, 5, 4, 7, 6]);
        assert_eq!(row(Swizzle::Bytes32, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Swizzle::None, 5), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn every_byte_has_one_place_and_stays_in_its_span() {
        for swizzle in [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128] {
            let mut places: Vec<usize> = (0..2048).map(|offset| apply(swizzle, offset)).collect();
            assert!((0..2048).all(|offset| places[offset] / span(swizzle) == offset / span(swizzle)));
            places.sort_unstable();
            assert!(places.into_iter().eq(0..2048));
        }
    }
}
