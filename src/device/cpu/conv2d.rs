//! Two-dimensional convolution: forward, input gradient, weight gradient.
//!
//! 3 x 3 filters of stride 1 use Winograd's algorithm (`winograd.rs`) if it is faster; everything else is an implicit
//! matrix product (`direct.rs`, and `few_pixels.rs` forward if there are few pixels). Each splits the work by shape
//! alone and adds in a fixed order, so results are the same to the bit for any number of threads. Nothing is allocated:
//! scratch memory comes from the caller's workspace, whose contents do not matter before and are meaningless after the
//! call.

use super::batch_norm::Finish;
use super::jobs::{LINE, aligned};
use super::simd::Level;
use super::winograd::Direction;
use super::{direct, few_pixels, winograd};
use crate::device::conv2d::{Conv2dPass, Conv2dShape};

/// Floats of workspace that a pass needs with the current number of threads.
pub fn workspace_len(shape: &Conv2dShape, pass: Conv2dPass) -> usize {
    let len = match (winograd::suits(shape), pass) {
        (true, Conv2dPass::Forward) => winograd::convolution_workspace(shape, false),
        (true, Conv2dPass::InputGradient) => winograd::convolution_workspace(shape, true),
        (true, Conv2dPass::WeightGradient) => winograd::weight_gradient_workspace(shape),
        (false, Conv2dPass::Forward) if few_pixels::suits(shape) => few_pixels::workspace(shape),
        (false, Conv2dPass::Forward) => direct::forward_workspace(shape),
        (false, Conv2dPass::InputGradient) => direct::input_gradient_workspace(shape),
        (false, Conv2dPass::WeightGradient) => direct::weight_gradient_workspace(shape),
    };
    len + LINE
}

/// Computes the output from the input and the weight.
///
/// # Panics
/// If a slice does not have the length that the shape requires, or the workspace is shorter than [`workspace_len`].
pub fn forward(shape: &Conv2dShape, input: &[f32], weight: &[f32], output: &mut [f32], workspace: &mut [f32]) {
    forward_and_finish(shape, input, weight, output, None, workspace);
}

/// Like [`forward`]; each job applies `finish` to the pixels that it has written.
pub(super) fn forward_and_finish(
    shape: &Conv2dShape,
    input: &[f32],
    weight: &[f32],
    output: &mut [f32],
    finish: Option<&Finish>,
    workspace: &mut [f32],
) {
    forward_at(Level::current(), shape, input, weight, output, finish, workspace);
}

/// Computes the input gradient from the output gradient and the weight. With `accumulate` it is added to
/// `input_gradient`; otherwise it replaces the contents.
///
/// # Panics
/// As [`forward`].
pub fn input_gradient(
    shape: &Conv2dShape,
    output_gradient: &[f32],
    weight: &[f32],
    input_gradient: &mut [f32],
    accumulate: bool,
    workspace: &mut [f32],
) {
    input_gradient_at(Level::current(), shape, output_gradient, weight, input_gradient, accumulate, workspace);
}

/// Computes the weight gradient from the output gradient and the input. Replaces the contents of `weight_gradient`.
///
/// # Panics
/// As [`forward`].
pub fn weight_gradient(
    shape: &Conv2dShape,
    input: &[f32],
    output_gradient: &[f32],
    weight_gradient: &mut [f32],
    workspace: &mut [f32],
) {
    weight_gradient_at(Level::current(), shape, input, output_gradient, weight_gradient, workspace);
}

fn check(shape: &Conv2dShape, pass: Conv2dPass, input: usize, weight: usize, output: usize, workspace: usize) {
    assert_eq!(input, shape.input_len(), "length of the input");
    assert_eq!(weight, shape.weight_len(), "length of the weight");
    assert_eq!(output, shape.output_len(), "length of the output");
    assert!(workspace >= workspace_len(shape, pass), "length of the workspace");
}

fn forward_at(
    level: Level,
    shape: &Conv2dShape,
    input: &[f32],
    weight: &[f32],
    output: &mut [f32],
    finish: Option<&Finish>,
    workspace: &mut [f32],
) {
    check(shape, Conv2dPass::Forward, input.len(), weight.len(), output.len(), workspace.len());
    let workspace = aligned(workspace);
    if winograd::suits(shape) {
        winograd::convolution(level, shape, Direction::Forward { finish }, input, weight, output, workspace);
    } else if few_pixels::suits(shape) {
        few_pixels::forward(level, shape, input, weight, output, finish, workspace);
    } else {
        direct::forward(level, shape, input, weight, output, finish, workspace);
    }
}

fn input_gradient_at(
    level: Level,
    shape: &Conv2dShape,
    output_gradient: &[f32],
    weight: &[f32],
    input_gradient: &mut [f32],
    accumulate: bool,
    workspace: &mut [f32],
) {
    let lens = (input_gradient.len(), weight.len(), output_gradient.len());
    check(shape, Conv2dPass::InputGradient, lens.0, lens.1, lens.2, workspace.len());
    let workspace = aligned(workspace);
    if winograd::suits(shape) {
        let direction = Direction::InputGradient { accumulate };
        winograd::convolution(level, shape, direction, output_gradient, weight, input_gradient, workspace);
    } else {
        direct::input_gradient(level, shape, output_gradient, weight, input_gradient, accumulate, workspace);
    }
}

fn weight_gradient_at(
    level: Level,
    shape: &Conv2dShape,
    input: &[f32],
    output_gradient: &[f32],
    weight_gradient: &mut [f32],
    workspace: &mut [f32],
) {
    let lens = (input.len(), weight_gradient.len(), output_gradient.len());
    check(shape, Conv2dPass::WeightGradient, lens.0, lens.1, lens.2, workspace.len());
    let workspace = aligned(workspace);
    if winograd::suits(shape) {
        winograd::weight_gradient(level, shape, input, output_gradient, weight_gradient, workspace);
    } else {
        direct::weight_gradient(level, shape, input, output_gradient, weight_gradient, workspace);
    }
}

#[cfg(test)]
mod tests;
