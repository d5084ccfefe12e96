//! Parameters and running statistics in flat arenas, one per group, shared by every plan of the network.

use std::collections::BTreeMap;

use crate::device::{self, Device};
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Shape, Tensor};

/// A parameter or running statistic of the graph: an index into [`Graph::parameters`](super::Graph::parameters).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParameterId(pub(super) usize);

/// The initial values of a parameter in a network that is trained from scratch: PyTorch's and torchvision's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialisation {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// Normal with deviation `sqrt(2 / fan_out)` (`kaiming_normal_(mode="fan_out", nonlinearity="relu")`).
    KaimingNormal {
        /// Output channels times the filter's area.
        fan_out: usize,
    },
    /// Uniform within `1 / sqrt(fan_in)` (the default of `torch.nn.Linear`).
    Uniform {
        /// Features of the layer's input.
        fan_in: usize,
    },
}

/// The role of a parameter, which determines whether it can be trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParameterRole {
    /// `[K, R, S, C]`
    ConvolutionWeight,
    /// `[C]`
    BatchNormWeight,
    /// `[C]`
    BatchNormBias,
    /// `[C]`, a running statistic.
    RunningMean,
    /// `[C]`, a running statistic.
    RunningVariance,
    /// `[outputs, inputs]`
    LinearWeight,
    /// `[outputs]`
    LinearBias,
}

impl ParameterRole {
    /// Whether it is a running statistic: torch calls it a buffer, and no gradient reaches it.
    pub fn is_buffer(self) -> bool {
        matches!(self, Self::RunningMean | Self::RunningVariance)
    }
}

/// A parameter's name, shape and role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpecification {
    /// As torchvision's state dict names it.
    pub name: String,
    /// In this crate's layout: convolution weights are `[K, R, S, C]`.
    pub shape: Shape,
    /// Its role.
    pub role: ParameterRole,
    /// Its initial values in a network that is trained from scratch.
    pub initialisation: Initialisation,
}

impl ParameterSpecification {
    /// The shape in torch's layout: convolution weights are `[K, C, R, S]`.
    pub fn torch_shape(&self) -> Vec<usize> {
        match *self.shape.dims() {
            [outputs, height, width, inputs] => vec![outputs, inputs, height, width],
            ref dims => dims.to_vec(),
        }
    }
}

/// Parameters that are updated together, in flat buffers of the same layout.
pub struct ParameterGroup {
    /// All values, padded between parameters with zeros.
    pub values: Tensor,
    /// Gradients at the same positions.
    pub gradients: Tensor,
    /// The optimiser's state at the same positions, one tensor per slot, and after them the average of the values if one is kept.
    pub slots: Vec<Tensor>,
    /// The values rounded to bf16 at the same positions, if the device's convolutions read them.
    pub compute_copy: Option<Tensor>,
}

struct Entry {
    specification: ParameterSpecification,
    value: Tensor,
    gradient: Option<Tensor>,
    slots: Vec<Tensor>,
    compute_copy: Option<Tensor>,
}

/// The parameters of a network on a device.
pub struct Parameters {
    entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
    groups: Vec<ParameterGroup>,
    slot_names: Vec<&'static str>,
    batches_tracked: BTreeMap<String, i64>,
    bytes: usize,
}

/// Each parameter begins at a multiple of this many elements, so that vector accesses are aligned.
const ALIGNMENT: usize = 64;

impl Parameters {
    /// Allocates parameters, zeroed. `group` puts each into one of `groups` groups, or into none: then it is frozen and
    /// has no gradient; it is not called for running statistics. Each parameter of a group has `slots`.
    pub fn new(
        device: &dyn Device,
        specifications: &[ParameterSpecification],
        groups: usize,
        slots: &[&'static str],
        group: impl Fn(&ParameterSpecification) -> Option<usize>,
    ) -> Result<Self> {
        let group_of = |specification: &ParameterSpecification| match specification.role.is_buffer() {
            true => None,
            false => group(specification),
        };
        let mut lengths = vec![0; groups];
        let mut fixed_length = 0;
        let mut offsets = Vec::with_capacity(specifications.len());
        for specification in specifications {
            let length = group_of(specification).map_or(&mut fixed_length, |group| &mut lengths[group]);
            offsets.push(*length);
            *length += specification.shape.len().next_multiple_of(ALIGNMENT);
        }
        let of_type = |length: usize, element_type: ElementType| -> Result<Tensor> {
            Ok(Tensor::new(device.allocate(length * element_type.size())?, 0, [length].into(), element_type))
        };
        let flat = |length: usize| of_type(length, ElementType::F32);
        let copy_of = |length: usize| match device.precision().activation_type() {
            ElementType::Bf16 => of_type(length, ElementType::Bf16).map(Some),
            _ => Ok(None),
        };
        let (fixed, fixed_copy) = (flat(fixed_length)?, copy_of(fixed_length)?);
        let groups = lengths
            .iter()
            .map(|&length| {
                let slots = slots.iter().map(|_| flat(length)).collect::<Result<_>>()?;
                let (values, gradients, compute_copy) = (flat(length)?, flat(length)?, copy_of(length)?);
                Ok(ParameterGroup { values, gradients, slots, compute_copy })
            })
            .collect::<Result<Vec<_>>>()?;
        let entries: Vec<Entry> = specifications
            .iter()
            .zip(offsets)
            .map(|(specification, offset)| {
                let part = |whole: &Tensor| whole.part(offset, specification.shape);
                let group = group_of(specification).map(|group| &groups[group]);
                Entry {
                    specification: specification.clone(),
                    value: part(group.map_or(&fixed, |group| &group.values)),
                    gradient: group.map(|group| part(&group.gradients)),
                    slots: group.map_or(Vec::new(), |group| group.slots.iter().map(part).collect()),
                    compute_copy: match specification.role {
                        ParameterRole::ConvolutionWeight => {
                            group.map_or(fixed_copy.as_ref(), |group| group.compute_copy.as_ref()).map(part)
                        }
                        _ => None,
                    },
                }
            })
            .collect();
        let by_name = entries.iter().enumerate().map(|(index, entry)| (entry.specification.name.clone(), index));
        let batches_tracked = entries.iter().filter_map(|entry| {
            entry.specification.name.strip_suffix(".running_mean").map(|module| (module.to_string(), 0))
        });
        let of_group = |group: &ParameterGroup| {
            let state = group.slots.iter().chain(&group.compute_copy);
            [&group.values, &group.gradients].into_iter().chain(state).map(Tensor::bytes).sum::<usize>()
        };
        let fixed_bytes = fixed.bytes() + fixed_copy.as_ref().map_or(0, Tensor::bytes);
        let bytes = fixed_bytes + groups.iter().map(of_group).sum::<usize>();
        let (by_name, batches_tracked) = (by_name.collect(), batches_tracked.collect());
        Ok(Self { by_name, batches_tracked, entries, groups, slot_names: slots.to_vec(), bytes })
    }

    /// Bytes that they take on their device: values, gradients, the optimiser's state and compute copies.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All specifications, in the graph's order.
    pub fn specifications(&self) -> impl Iterator<Item = &ParameterSpecification> {
        self.entries.iter().map(|entry| &entry.specification)
    }

    /// The groups, in the order of their numbers.
    pub fn groups(&self) -> &[ParameterGroup] {
        &self.groups
    }

    /// Whether a gradient is computed for the parameter.
    pub fn is_trainable(&self, id: ParameterId) -> bool {
        self.entries[id.0].gradient.is_some()
    }

    /// The tensor that an operation reads: the value, or the bf16 copy for convolutions on a device that computes in bf16.
    pub(super) fn compute_copy(&self, id: ParameterId) -> &Tensor {
        let entry = &self.entries[id.0];
        entry.compute_copy.as_ref().unwrap_or(&entry.value)
    }

    pub(super) fn gradient(&self, id: ParameterId) -> Option<&Tensor> {
        self.entries[id.0].gradient.as_ref()
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        match self.by_name.get(name) {
            Some(&index) => Ok(&self.entries[index]),
            None => Err(Error::new(format!("there is no parameter {name}"))),
        }
    }

    /// The device memory of a parameter's value.
    pub fn value_of(&self, name: &str) -> Result<&Tensor> {
        Ok(&self.entry(name)?.value)
    }

    /// The device memory of the tensor that an operation reads: the value, or the bf16 copy for convolutions of a device that computes
    /// in bf16.
    pub fn compute_copy_of(&self, name: &str) -> Result<&Tensor> {
        let entry = self.entry(name)?;
        Ok(entry.compute_copy.as_ref().unwrap_or(&entry.value))
    }

    /// The device memory of a parameter's gradient; `None` if it is frozen.
    pub fn gradient_of(&self, name: &str) -> Result<Option<&Tensor>> {
        Ok(self.entry(name)?.gradient.as_ref())
    }

    /// Names of the slots of each parameter that is trained.
    pub fn slot_names(&self) -> &[&'static str] {
        &self.slot_names
    }

    /// The state that the optimiser keeps for a parameter: names of slots and their device memory. There are none if the parameter
    /// is frozen.
    pub fn slots_of(&self, name: &str) -> Result<impl Iterator<Item = (&'static str, &Tensor)>> {
        Ok(self.slot_names.iter().copied().zip(&self.entry(name)?.slots))
    }

    /// Sets a parameter, in this crate's layout, and its compute copy.
    pub fn write(&mut self, device: &dyn Device, name: &str, values: &[f32]) -> Result<()> {
        let entry = self.entry(name)?;
        device::write_f32(device, values, &entry.value)?;
        match &entry.compute_copy {
            Some(copy) => device::write_f32(device, values, copy),
            None => Ok(()),
        }
    }

    /// Reads a parameter, in this crate's layout.
    pub fn read(&self, device: &dyn Device, name: &str) -> Result<Vec<f32>> {
        device::read_f32(device, &self.entry(name)?.value)
    }

    /// Batches that each batch norm has seen in training mode (torch's `num_batches_tracked`), by module name.
    pub fn batches_tracked(&self) -> &BTreeMap<String, i64> {
        &self.batches_tracked
    }

    /// Sets [`Parameters::batches_tracked`] of a module that has running statistics.
    pub fn set_batches_tracked(&mut self, module: &str, count: i64) {
        if let Some(tracked) = self.batches_tracked.get_mut(module) {
            *tracked = count;
        }
    }

    /// Counts one more batch for each of the modules.
    pub fn count_batch(&mut self, modules: &[String]) {
        for module in modules {
            if let Some(tracked) = self.batches_tracked.get_mut(module) {
                *tracked += 1;
            }
        }
    }
}
