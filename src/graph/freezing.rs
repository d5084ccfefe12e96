//! The modules that are not trained.

use super::{ParameterSpecification, Specification};
use crate::error::{Error, Result};

/// Modules whose parameters are frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Freezing {
    /// torch's module names: `conv1`, `layer2`, `layer3.0`. Freezing a module freezes its parts.
    pub modules: Vec<String>,
    /// Whether the batch norms among them normalise by their running statistics and do not update them.
    pub batch_norm: bool,
}

impl Freezing {
    /// Whether the parameter or module with this name is frozen.
    pub fn covers(&self, name: &str) -> bool {
        self.modules.iter().any(|module| {
            name.strip_prefix(module.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// Rejects names that are not modules of the network, and names that leave nothing to train.
    ///
    /// # Errors
    /// A usage error that names the module, with the network's modules as a hint.
    pub fn check(&self, specification: &Specification) -> Result<()> {
        let parameters = specification.parameters();
        for module in &self.modules {
            let one = Freezing { modules: vec![module.clone()], batch_norm: false };
            if !parameters.iter().any(|parameter| one.covers(&parameter.name)) {
                return Err(Error::usage(format!("{} has no module {module:?}", specification.name()))
                    .hint(format!("its modules are {}", specification.modules().join(", "))));
            }
        }
        let trains = |parameter: &ParameterSpecification| !parameter.role.is_buffer() && !self.covers(&parameter.name);
        if !parameters.iter().any(trains) {
            return Err(Error::usage("every module is frozen; nothing is left to train"));
        }
        Ok(())
    }
}
