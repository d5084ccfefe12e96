//! Peak rates of some GPUs, for rooflines.

use super::driver::{ArithmeticUnit, Capabilities, Work};

/// A GPU and its peak rates, for dense matrices (structured sparsity would double them).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GpuModel {
    /// The value of `--gpu`.
    pub name: &'static str,
    /// The variant and the source of its figures, for messages.
    pub description: &'static str,
    /// The properties that launch code needs.
    pub capabilities: Capabilities,
    /// Device memory in bytes.
    pub memory_bytes: u64,
    /// Bytes per second between device memory and chip.
    pub bytes_per_second: f64,
    /// Float32 additions and multiplications per second outside tensor cores.
    pub fp32_per_second: f64,
    /// The same on tensor cores in tf32; `None` without such tensor cores.
    pub tf32_per_second: Option<f64>,
    /// The same in bf16.
    pub bf16_per_second: Option<f64>,
}

const TERA: f64 = 1e12;

/// Data sheets: NVIDIA H200 (2024), H100 SXM5 (2023), A100 80 GB SXM (2021), the Ada GPU architecture paper (2022: bf16 with
/// float32 accumulation), T4 (2019). The H200's memory and tensor-core rates are not the sheet's 4.8 TB/s and 989 TFLOP/s
/// but what was measured elsewhere to be reachable, 4.3 TB/s and 790 TFLOP/s; its tf32 rate is half of that.
pub const GPU_MODELS: [GpuModel; 5] = [
    GpuModel {
        name: "h200",
        description: "H200 SXM, memory and tensor cores as measured, not as in the data sheet",
        capabilities: Capabilities { compute_capability: 90, multiprocessors: 132, shared_bytes_per_block: 232_448 },
        memory_bytes: 141_000_000_000,
        bytes_per_second: 4.3 * TERA,
        fp32_per_second: 66.9 * TERA,
        tf32_per_second: Some(395.0 * TERA),
        bf16_per_second: Some(790.0 * TERA),
    },
    GpuModel {
        name: "h100",
        description: "H100 SXM5 80 GB, data sheet",
        capabilities: Capabilities { compute_capability: 90, multiprocessors: 132, shared_bytes_per_block: 232_448 },
        memory_bytes: 80_000_000_000,
        bytes_per_second: 3.35 * TERA,
        fp32_per_second: 66.9 * TERA,
        tf32_per_second: Some(494.7 * TERA),
        bf16_per_second: Some(989.4 * TERA),
    },
    GpuModel {
        name: "a100",
        description: "A100 SXM 80 GB, data sheet",
        capabilities: Capabilities { compute_capability: 80, multiprocessors: 108, shared_bytes_per_block: 166_912 },
        memory_bytes: 80_000_000_000,
        bytes_per_second: 2.039 * TERA,
        fp32_per_second: 19.5 * TERA,
        tf32_per_second: Some(156.0 * TERA),
        bf16_per_second: Some(312.0 * TERA),
    },
    GpuModel {
        name: "rtx4090",
        description: "GeForce RTX 4090, architecture paper",
        capabilities: Capabilities { compute_capability: 89, multiprocessors: 128, shared_bytes_per_block: 101_376 },
        memory_bytes: 24_000_000_000,
        bytes_per_second: 1.008 * TERA,
        fp32_per_second: 82.6 * TERA,
        tf32_per_second: Some(82.6 * TERA),
        bf16_per_second: Some(165.2 * TERA),
    },
    GpuModel {
        name: "t4",
        description: "T4, data sheet",
        capabilities: Capabilities { compute_capability: 75, multiprocessors: 40, shared_bytes_per_block: 65_536 },
        memory_bytes: 16_000_000_000,
        bytes_per_second: 0.32 * TERA,
        fp32_per_second: 8.1 * TERA,
        tf32_per_second: None,
        bf16_per_second: None,
    },
];

/// The resource that bounds a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The arithmetic.
    Operations,
    /// The traffic with device memory.
    Bytes,
}

/// The minimum time of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofline {
    /// The larger of the two times.
    pub seconds: f64,
    /// The resource that needs it.
    pub bound: Bound,
}

impl GpuModel {
    /// The model with this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        GPU_MODELS.iter().find(|model| model.name == name)
    }

    /// The model that a driver's description of a GPU (`NVIDIA H200, ...`) names.
    pub fn described(description: &str) -> Option<&'static Self> {
        let words = description.to_lowercase().replace(' ', "");
        // The PCIe versions of H100 and A100 are other chips than those in the table.
        GPU_MODELS.iter().find(|model| words.contains(model.name)).filter(|_| !words.contains("pcie"))
    }

    /// Operations per second of a unit; `None` if the GPU does not have it.
    pub fn operations_per_second(&self, unit: ArithmeticUnit) -> Option<f64> {
        match unit {
            ArithmeticUnit::Float32 => Some(self.fp32_per_second),
            ArithmeticUnit::TensorTf32 => self.tf32_per_second,
            ArithmeticUnit::TensorBf16 => self.bf16_per_second,
        }
    }

    /// The minimum time of a launch: its operations at the rate of their unit or its bytes at that of the memory, whichever
    /// takes longer. Work for a unit that the GPU lacks takes infinitely long.
    pub fn roofline(&self, work: &Work) -> Roofline {
        let operations = match (work.operations, self.operations_per_second(work.unit)) {
            (0, _) => 0.0,
            (operations, Some(rate)) => operations as f64 / rate,
            (_, None) => f64::INFINITY,
        };
        let bytes = (work.bytes_read + work.bytes_written) as f64 / self.bytes_per_second;
        let bound = if operations > bytes { Bound::Operations } else { Bound::Bytes };
        Roofline { seconds: operations.max(bytes), bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(operations: u64, bytes: u64) -> Work {
        Work { operations, unit: ArithmeticUnit::TensorBf16, bytes_read: bytes / 2, bytes_written: bytes - bytes / 2 }
    }

    #[test]
    fn the_slower_side_bounds() {
        let h200 = GpuModel::find("h200").unwrap();
        let by_operations = h200.roofline(&work(790_000_000_000, 1000));
        assert_eq!(by_operations.bound, Bound::Operations);
        assert!((by_operations.seconds - 1e-3).abs() < 1e-9);
        let by_bytes = h200.roofline(&work(1000, 4_300_000_000));
        assert_eq!(by_bytes.bound, Bound::Bytes);
        assert!((by_bytes.seconds - 1e-3).abs() < 1e-9);
        assert!(GpuModel::find("t4").unwrap().roofline(&work(1, 1)).seconds.is_infinite());
    }

    #[test]
    fn descriptions_name_models() {
        let name = |description: &str| GpuModel::described(description).map(|model| model.name);
        assert_eq!(name("NVIDIA H200, compute capability 9.0"), Some("h200"));
        assert_eq!(name("NVIDIA GeForce RTX 4090, 24 GB"), Some("rtx4090"));
        assert_eq!(name("Tesla T4"), Some("t4"));
        assert_eq!(name("NVIDIA H100 PCIe"), None);
        assert_eq!(name("the CUDA kernels on the CPU, for tests"), None);
    }
}
