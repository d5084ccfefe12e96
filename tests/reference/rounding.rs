//! A device in tf32 or bf16, based on the CPU: operands of convolutions and values stored in bf16 are rounded, and
//! everything else is the CPU's float32. It is the simplest form of a tensor-core engine.

use retune::device::cpu::Cpu;
use retune::device::{
    BatchNormBackward, BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dShape, Conv2dWeightGradient, Device,
    Features, Gradient, MaxPoolWindow, Mix, Precision, UpdateArguments, read_f32, write_f32,
};
use retune::error::Result;
use retune::tensor::{ElementType, Tensor};

use super::delegate::Delegate;
use super::devices::operands;
use super::{conv2d, conv2d_input_gradient, conv2d_weight_gradient};

/// See the module documentation.
pub struct RoundingDevice {
    precision: Precision,
    adds_in_float64: bool,
}

impl RoundingDevice {
    /// Creates a device in this precision.
    pub fn new(precision: Precision) -> Self {
        Self { precision, adds_in_float64: false }
    }

    /// Creates a device whose convolutions add in float64, with the simplest loops.
    pub fn adding_in_float64(precision: Precision) -> Self {
        Self { precision, adds_in_float64: true }
    }

    /// The tensor in float32: itself, or a copy.
    fn widened(&self, tensor: &Tensor) -> Result<Tensor> {
        if tensor.element_type() != ElementType::Bf16 {
            return Ok(tensor.clone());
        }
        self.copy(tensor, &read_f32(&Cpu, tensor)?)
    }

    /// A copy of the tensor with the values that a convolution multiplies.
    fn operand(&self, tensor: &Tensor) -> Result<Tensor> {
        self.copy(tensor, &self.operand_values(tensor)?)
    }

    fn operand_values(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(operands(self.precision, &read_f32(&Cpu, tensor)?))
    }

    fn copy(&self, tensor: &Tensor, values: &[f32]) -> Result<Tensor> {
        let copy = Tensor::new(Cpu.allocate(values.len() * 4)?, 0, tensor.shape(), ElementType::F32);
        write_f32(&Cpu, values, &copy)?;
        Ok(copy)
    }

    fn widened_option(&self, tensor: Option<&Tensor>) -> Result<Option<Tensor>> {
        tensor.map(|tensor| self.widened(tensor)).transpose()
    }

    fn widened_gradient(&self, gradient: &Gradient) -> Result<Gradient> {
        Ok(Gradient { tensor: self.widened(&gradient.tensor)?, accumulate: gradient.accumulate })
    }

    /// Rounds a result to the type of its target.
    fn store(&self, result: &Tensor, target: &Tensor) -> Result<()> {
        match target.element_type() {
            ElementType::Bf16 => write_f32(&Cpu, &read_f32(&Cpu, result)?, target),
            _ => Ok(()),
        }
    }
}

/// Writes sums to a tensor of float32, or adds them to it.
fn write_sums(mut sums: Vec<f64>, accumulate: bool, target: &Tensor) -> Result<()> {
    if accumulate {
        sums.iter_mut().zip(read_f32(&Cpu, target)?).for_each(|(sum, before)| *sum += f64::from(before));
    }
    let rounded: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
    write_f32(&Cpu, &rounded, target)
}

delegate_device!(RoundingDevice);

impl Delegate for RoundingDevice {
    fn inner(&self) -> &dyn Device {
        &Cpu
    }

    fn name(&self) -> String {
        format!("cpu in {}", self.precision)
    }

    fn features(&self) -> Features {
        Features { conv2d_batch_norm: false, ..Cpu.features() }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn conv2d_forward(&self, shape: &Conv2dShape, arguments: &Conv2dForward) -> Result<()> {
        let output = self.widened(arguments.output)?;
        if self.adds_in_float64 {
            let [input, weight] = [arguments.input, arguments.weight].map(|tensor| self.operand_values(tensor));
            write_sums(conv2d(shape, &input?, &weight?), false, &output)?;
        } else {
            Cpu.conv2d_forward(
                shape,
                &Conv2dForward {
                    input: &self.operand(arguments.input)?,
                    weight: &self.operand(arguments.weight)?,
                    output: &output,
                    statistics: None,
                    ..*arguments
                },
            )?;
        }
        self.store(&output, arguments.output)?;
        match arguments.statistics {
            Some(statistics) => Device::batch_norm_statistics(self, arguments.output, statistics),
            None => Ok(()),
        }
    }

    fn conv2d_input_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
        let input_gradient = self.widened_gradient(arguments.input_gradient)?;
        if self.adds_in_float64 {
            let [weight, gradient] = [arguments.weight, arguments.output_gradient].map(|t| self.operand_values(t));
            let sums = conv2d_input_gradient(shape, &weight?, &gradient?);
            write_sums(sums, input_gradient.accumulate, &input_gradient.tensor)?;
            return self.store(&input_gradient.tensor, &arguments.input_gradient.tensor);
        }
        Cpu.conv2d_input_gradient(
            shape,
            &Conv2dInputGradient {
                output_gradient: &self.operand(arguments.output_gradient)?,
                weight: &self.operand(arguments.weight)?,
                input_gradient: &input_gradient,
                ..*arguments
            },
        )?;
        self.store(&input_gradient.tensor, &arguments.input_gradient.tensor)
    }

    fn conv2d_weight_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()> {
        if self.adds_in_float64 {
            let [input, gradient] = [arguments.input, arguments.output_gradient].map(|t| self.operand_values(t));
            let sums = conv2d_weight_gradient(shape, &input?, &gradient?);
            return write_sums(sums, false, arguments.weight_gradient);
        }
        Cpu.conv2d_weight_gradient(
            shape,
            &Conv2dWeightGradient {
                input: &self.operand(arguments.input)?,
                output_gradient: &self.operand(arguments.output_gradient)?,
                ..*arguments
            },
        )
    }

    fn batch_norm_statistics(&self, input: &Tensor, statistics: &Tensor) -> Result<()> {
        Cpu.batch_norm_statistics(&self.widened(input)?, statistics)
    }

    fn batch_norm_forward(&self, arguments: &BatchNormForward) -> Result<()> {
        let output = self.widened(arguments.output)?;
        Cpu.batch_norm_forward(&BatchNormForward {
            input: &self.widened(arguments.input)?,
            residual: self.widened_option(arguments.residual)?.as_ref(),
            output: &output,
            ..*arguments
        })?;
        self.store(&output, arguments.output)
    }

    fn batch_norm_backward(&self, arguments: &BatchNormBackward) -> Result<()> {
        let gradients = [arguments.input_gradient, arguments.residual_gradient];
        let [input_gradient, residual_gradient] =
            gradients.map(|gradient| gradient.map(|gradient| self.widened_gradient(gradient)));
        let results = [input_gradient.transpose()?, residual_gradient.transpose()?];
        Cpu.batch_norm_backward(&BatchNormBackward {
            input: self.widened_option(arguments.input)?.as_ref(),
            output: self.widened_option(arguments.output)?.as_ref(),
            output_gradient: &self.widened(arguments.output_gradient)?,
            input_gradient: results[0].as_ref(),
            residual_gradient: results[1].as_ref(),
            ..*arguments
        })?;
        for (result, gradient) in results.iter().flatten().zip(gradients.into_iter().flatten()) {
            self.store(&result.tensor, &gradient.tensor)?;
        }
        Ok(())
    }

    fn max_pool_forward(
        &self,
        window: MaxPoolWindow,
        input: &Tensor,
        output: &Tensor,
        indices: Option<&Tensor>,
    ) -> Result<()> {
        let result = self.widened(output)?;
        Cpu.max_pool_forward(window, &self.widened(input)?, &result, indices)?;
        self.store(&result, output)
    }

    fn max_pool_backward(
        &self,
        window: MaxPoolWindow,
        indices: &Tensor,
        output_gradient: &Tensor,
        input_gradient: &Gradient,
    ) -> Result<()> {
        let result = self.widened_gradient(input_gradient)?;
        Cpu.max_pool_backward(window, indices, &self.widened(output_gradient)?, &result)?;
        self.store(&result.tensor, &input_gradient.tensor)
    }

    fn avg_pool_forward(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        Cpu.avg_pool_forward(&self.widened(input)?, output)
    }

    fn avg_pool_backward(&self, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()> {
        let result = self.widened_gradient(input_gradient)?;
        Cpu.avg_pool_backward(output_gradient, &result)?;
        self.store(&result.tensor, &input_gradient.tensor)
    }

    fn mix(&self, arguments: &Mix) -> Result<()> {
        let images = self.widened(arguments.images)?;
        Cpu.mix(&Mix { images: &images, ..*arguments })?;
        self.store(&images, arguments.images)
    }

    fn update(&self, arguments: &UpdateArguments) -> Result<()> {
        Cpu.update(&UpdateArguments { compute_copy: None, ..*arguments })?;
        match arguments.compute_copy {
            Some(copy) => write_f32(&Cpu, &read_f32(&Cpu, arguments.values)?, copy),
            None => Ok(()),
        }
    }
}
