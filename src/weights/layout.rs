//! Torch keeps channels before pixels (OIHW, NCHW); this crate keeps them innermost (OHWI, NHWC).
//!
//! Both pairs are the same permutation, so one pair of functions serves convolution weights and activations. Tensors
//! that are not 4-D (linear weights `[outputs, inputs]`, batch norm, biases) are alike in both layouts.

/// Torch's order to ours. `shape` is torch's: `[outputs, inputs, height, width]`, or `[images, channels, height,
/// width]`.
///
/// # Panics
/// When the number of elements in `values` does not match `shape`.
pub fn from_torch<T: Copy>(values: Vec<T>, shape: &[usize]) -> Vec<T> {
    match *shape {
        [outer, channels, height, width] => transpose_inner(&values, outer, channels, height * width),
        _ => values,
    }
}

/// Our order to torch's. `shape` is torch's, as in [`from_torch`], though `values` are in ours.
///
/// # Panics
/// When the number of elements in `values` does not match `shape`.
pub fn to_torch<T: Copy>(values: Vec<T>, shape: &[usize]) -> Vec<T> {
    match *shape {
        [outer, channels, height, width] => transpose_inner(&values, outer, height * width, channels),
        _ => values,
    }
}

/// Transposes each of `outer` matrices of `[rows, columns]`.
fn transpose_inner<T: Copy>(values: &[T], outer: usize, rows: usize, columns: usize) -> Vec<T> {
    assert_eq!(values.len(), outer * rows * columns, "elements of a tensor of shape {outer} x {rows} x {columns}");
    if rows == 1 || columns == 1 {
        return values.to_vec();
    }
    let mut transposed = Vec::with_capacity(values.len());
    for matrix in values.chunks_exact((rows * columns).max(1)) {
        for column in 0..columns {
            transposed.extend(matrix.iter().skip(column).step_by(columns));
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_moves_to_its_index() {
        let shape = [2, 3, 4, 5];
        let ours = from_torch((0..120).collect(), &shape);
        for o in 0..2 {
            for i in 0..3 {
                for y in 0..4 {
                    for x in 0..5 {
                        assert_eq!(ours[((o * 4 + y) * 5 + x) * 3 + i], ((o * 3 + i) * 4 + y) * 5 + x);
                    }
                }
            }
        }
        assert_eq!(to_torch(ours, &shape), (0..120).collect::<Vec<_>>());
    }

    #[test]
    fn only_four_dimensions_are_permuted() {
        let values: Vec<u8> = (0..24).collect();
        for shape in [&[24][..], &[4, 6], &[2, 3, 4], &[1, 2, 3, 2, 2]] {
            assert_eq!(from_torch(values.clone(), shape), values);
            assert_eq!(to_torch(values.clone(), shape), values);
        }
    }

    #[test]
    fn one_pixel_and_one_channel_stay() {
        let values: Vec<u8> = (0..24).collect();
        assert_eq!(from_torch(values.clone(), &[4, 6, 1, 1]), values);
        assert_eq!(from_torch(values.clone(), &[4, 1, 3, 2]), values);
        assert_eq!(from_torch(Vec::<u8>::new(), &[0, 6, 3, 3]), Vec::<u8>::new());
        assert_eq!(from_torch(Vec::<u8>::new(), &[4, 0, 3, 3]), Vec::<u8>::new());
    }
}
