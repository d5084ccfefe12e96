//! The names of ImageNet's classes.

/// One name per line, in the order of the outputs of torchvision's networks.
const NAMES: &str = include_str!("imagenet.txt");

/// The number of classes of the ImageNet challenge, for which torchvision's networks are trained.
pub const IMAGENET_CLASSES: usize = 1000;

/// Short names of ImageNet's classes, in the order of the outputs of torchvision's networks.
pub fn imagenet_classes() -> Vec<String> {
    NAMES.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_class_has_a_short_name_of_its_own() {
        let names = imagenet_classes();
        assert_eq!(names.len(), IMAGENET_CLASSES);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), IMAGENET_CLASSES);
        assert!(names.iter().all(|name| !name.is_empty() && name.len() <= 32 && name.trim() == name));
        for (class, name) in [(0, "tench"), (207, "golden retriever"), (713, "photocopier"), (934, "hot dog")] {
            assert_eq!(names[class], name);
        }
    }
}
