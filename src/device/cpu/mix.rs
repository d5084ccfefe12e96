//! Mixes each image of a batch with the one before it, in place. Bound by memory: it reads and writes the rectangle of every image
//! once. One thread does it, because that takes less than a hundredth of a training step.

use super::memory::Views;
use super::vectorised::vectorised;
use crate::device::interface::Mix;

pub(super) fn run(arguments: &Mix) {
    let &[images, height, width, channels] = arguments.images.shape().dims() else {
        panic!("{:?} is not a batch of images", arguments.images);
    };
    let mut views = Views::default();
    let words = views.read::<f32>(arguments.words);
    let values = views.write::<f32>(arguments.images);
    let weight = words[1];
    let [top, left, bottom, right] = [2, 3, 4, 5].map(|place| words[place] as usize);
    let (bottom, right) = (bottom.min(height), right.min(width));
    if images < 2 || left >= right {
        return;
    }
    let (of_image, of_row) = (height * width * channels, (right - left) * channels);
    let mut last = vec![0.0; of_row];
    for row in top..bottom {
        let start = (row * width + left) * channels;
        last.copy_from_slice(&values[(images - 1) * of_image + start..][..of_row]);
        // From the last image on, so that each is mixed with one that is not mixed yet.
        for image in (1..images).rev() {
            let (before, from) = values.split_at_mut(image * of_image);
            mix(&mut from[start..][..of_row], &before[(image - 1) * of_image + start..][..of_row], weight);
        }
        mix(&mut values[start..][..of_row], &last, weight);
    }
}

vectorised! {
    fn mix(values: &mut [f32], others: &[f32], weight: f32) {
        for (value, other) in values.iter_mut().zip(others) {
            *value = (1.0 - weight) * other + weight * *value;
        }
    }
}
