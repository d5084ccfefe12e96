//! The modules that are not trained.

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
}
