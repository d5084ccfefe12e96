//! The parameters of a network, without a network on a device.

use super::{BatchShape, Freezing, Phase, ResNet};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::ParameterSpecification;
use crate::ops::LossReduction;

/// The name of the head: torchvision's last layer.
pub const HEAD: &str = "fc";

/// Any batch shape names the same parameters; this one is the smallest that the builder takes.
const SMALLEST: BatchShape = BatchShape { batch: 2, height: 33, width: 33 };

impl ResNet {
    /// Every parameter and running statistic, in torchvision's order of layers.
    pub fn parameters(&self, device: &dyn Device) -> Result<Vec<ParameterSpecification>> {
        let network = self.graph(device, SMALLEST, &Phase::Evaluation, LossReduction::Sum, &[])?;
        Ok(network.graph.parameters().to_vec())
    }
}

/// Whether a parameter belongs to the head.
pub fn is_head(name: &str) -> bool {
    name.strip_prefix(HEAD).is_some_and(|rest| rest.starts_with('.'))
}

impl Freezing {
    /// Refuses names that are no modules of the network, and names that leave nothing to train.
    pub fn check(&self, resnet: &ResNet, specifications: &[ParameterSpecification]) -> Result<()> {
        for module in &self.modules {
            let one = Freezing { modules: vec![module.clone()], batch_norm: false };
            if !specifications.iter().any(|specification| one.covers(&specification.name)) {
                return Err(Error::usage(format!("{} has no module {module:?}", resnet.architecture))
                    .hint(format!("its modules are {}", resnet.modules().join(", "))));
            }
        }
        let trains = |specification: &ParameterSpecification| {
            !specification.role.is_buffer() && !self.covers(&specification.name)
        };
        if !specifications.iter().any(trains) {
            return Err(Error::usage("every module is frozen, nothing is left to train"));
        }
        Ok(())
    }
}
