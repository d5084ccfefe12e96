//! One step of an optimiser over a flat group of parameters, shared by all optimisers. Bound by memory: it reads
//! values, gradients and slots, and writes values and slots.

use super::jobs::{self, Pieces};
use super::memory::Views;
use crate::device::update::{Clip, UpdateArguments, UpdatePiece};
use crate::tensor::Tensor;

/// Values that one thread updates at a time.
const BLOCK: usize = 64 * 1024;

pub(super) fn run(arguments: &UpdateArguments) {
    let UpdateArguments { rule, slots, .. } = *arguments;
    assert_eq!(slots.len(), rule.slots, "{}", rule.kernel);
    let mut views = Views::default();
    let first = |tensor: &Tensor, views: &mut Views| views.read::<f32>(tensor)[0];
    let loss = arguments.loss.map_or(0.0, |loss| first(loss, &mut views));
    let norm = arguments.clip.map_or(0.0, |clip| first(clip.norm, &mut views));
    if !(loss.is_finite() && norm.is_finite()) {
        return;
    }
    let scale = arguments.clip.map_or(1.0, |clip| Clip::factor(clip.max_norm, norm));
    let words = views.read::<f32>(arguments.words);
    let values = views.write::<f32>(arguments.values);
    let gradients = views.read::<f32>(arguments.gradients);
    let mut slot = |index: usize| slots.get(index).map(|slot| Pieces::new(views.write::<f32>(slot), BLOCK));
    let slots = [slot(0), slot(1)];
    jobs::for_each_piece(values, BLOCK, |index, values| {
        let gradients = &gradients[index * BLOCK..gradients.len().min((index + 1) * BLOCK)];
        let slots = slots.each_ref().map(|slot| match slot {
            // SAFETY: each job has its own index.
            Some(pieces) => unsafe { pieces.piece(index) },
            None => &mut [],
        });
        (rule.cpu)(UpdatePiece { values, gradients, slots, scale, words });
    });
}
