//! The images whose features are most similar, by cosine similarity.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::device::threads;

/// A similar image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Its index among the candidates.
    pub index: usize,
    /// The cosine of the angle between the two vectors of features: 1 for the same direction.
    pub similarity: f32,
}

/// Vectors of the length 1.
#[derive(Debug, Clone)]
pub struct Directions {
    values: Vec<f32>,
    dimension: usize,
}

impl Directions {
    /// Of vectors `[N, dimension]`. One of zeros stays as it is, and is similar to nothing.
    pub fn new(mut values: Vec<f32>, dimension: usize) -> Self {
        for row in values.chunks_exact_mut(dimension) {
            let length = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            if length > 0.0 {
                row.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
        }
        Self { values, dimension }
    }

    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.values.chunks_exact(self.dimension)
    }

    /// For each vector, its `count` most similar `candidates`, the most similar first; of equals, the first. With
    /// `candidates` that are these vectors themselves, a vector is no neighbour of its own.
    pub fn nearest(&self, candidates: &Self, count: usize, among_themselves: bool) -> Vec<Vec<Neighbour>> {
        let mut found = vec![Vec::new(); self.rows().len()];
        threads::for_each(found.iter_mut().zip(self.rows()).enumerate(), |(own, (found, row))| {
            *found = nearest(row, candidates.rows(), count, among_themselves.then_some(own));
        });
        found
    }
}

fn nearest<'a>(
    row: &[f32],
    candidates: impl Iterator<Item = &'a [f32]>,
    count: usize,
    own: Option<usize>,
) -> Vec<Neighbour> {
    // The least similar of the best so far is on top.
    let mut best: BinaryHeap<Reverse<(i32, Reverse<usize>)>> = BinaryHeap::with_capacity(count + 1);
    for (index, candidate) in candidates.enumerate() {
        if own == Some(index) {
            continue;
        }
        best.push(Reverse((ordered(dot(row, candidate)), Reverse(index))));
        if best.len() > count {
            best.pop();
        }
    }
    let sorted = best.into_sorted_vec();
    sorted
        .into_iter()
        .map(|Reverse((bits, Reverse(index)))| Neighbour { index, similarity: from_ordered(bits) })
        .collect()
}

/// An integer that sorts like the number.
fn ordered(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

fn from_ordered(key: i32) -> f32 {
    f32::from_bits((key ^ (((key >> 31) as u32) >> 1) as i32) as u32)
}

/// With as many partial sums as vector registers have room for.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let ((a, left_a), (b, left_b)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + left_a.iter().zip(left_b).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_are_the_first_of_all_sorted() {
        let (count, dimension) = (61, 37);
        let value = |index: usize| ((index as u32).wrapping_mul(2654435761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let directions = Directions::new((0..count * dimension).map(value).collect(), dimension);
        let found = threads::with(3, || directions.nearest(&directions, 7, true));
        assert_eq!(found, threads::with(1, || directions.nearest(&directions, 7, true)));
        for (own, found) in found.iter().enumerate() {
            let row = directions.rows().nth(own).unwrap();
            let cosine = |other: &[f32]| row.iter().zip(other).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
            let mut all: Vec<(usize, f64)> = directions.rows().map(cosine).enumerate().collect();
            all.remove(own);
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            assert_eq!(found.len(), 7);
            for (found, (index, similarity)) in found.iter().zip(all) {
                assert_eq!(found.index, index);
                assert!((f64::from(found.similarity) - similarity).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn equals_are_in_order_and_zeros_are_similar_to_nothing() {
        let directions = Directions::new(vec![3.0, 4.0, 0.0, 0.0, 6.0, 8.0, -3.0, -4.0, 30.0, 40.0], 2);
        let pairs = |own: usize| {
            let found = directions.nearest(&directions, 9, true).swap_remove(own);
            found.into_iter().map(|one| (one.index, one.similarity)).collect::<Vec<_>>()
        };
        assert_eq!(pairs(0), [(2, 1.0), (4, 1.0), (1, 0.0), (3, -1.0)]);
        assert_eq!(pairs(1), [(0, 0.0), (2, 0.0), (3, 0.0), (4, 0.0)]);
        let query = Directions::new(vec![3.0, 4.0], 2);
        assert_eq!(query.nearest(&directions, 1, false)[0][0].index, 0);
    }
}
