//! The plan and its execution: which gradients exist, how long buffers live, where they lie, and that a planned run
//! reads no unwritten memory and allocates nothing.

mod reference;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use reference::Random;
use reference::delegate::WithoutReductions;
use reference::devices::{PRECISIONS, devices, kernel_devices, run_at_lower_levels};
use reference::recorder::{GradientCall, Recorder};
use retune::device::cpu::Cpu;
use retune::device::{Device, Gradient, read_f32, threads, write_f32, write_i32};
use retune::graph::{
    Activation, Arena, BatchShape, BufferKind, ConvolutionOptions, Executor, Freezing, MaxPoolWindow, NetworkGraph,
    ParameterRole, Parameters, Phase, Plan, Source, Specification, Value,
};
use retune::model::{Architecture, ResNet};
use retune::ops::{BackwardBuffers, ForwardBuffers, LossReduction, Wanted};
use retune::optim::{GroupSettings, OptimizerSettings, Updater};
use retune::tensor::{ElementType, Shape, Tensor};

/// Counts allocations on the threads that enable it.
struct CountingAllocator;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

fn count_allocation() {
    if COUNTS.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: all calls are passed on to the system allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_allocation();
        // SAFETY: guaranteed by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// A small network with shortcuts, several readers of one value, and branches that lead to no output.
fn random_network(device: &dyn Device, random: &mut Random) -> NetworkGraph {
    let batch = 2 + random.below(2);
    let mut network = Specification::new("random", 3);
    let image = [5 + random.below(5), 5 + random.below(5)];
    let mut frozen = Vec::new();
    // Each value with its rows and columns.
    let mut values = vec![(Source::Pixels, image)];
    for index in 0..3 + random.below(8) {
        let last = values.len() - 1;
        let (from, extents) = values[if random.below(4) == 0 { random.below(values.len()) } else { last }];
        let name = format!("node{index}");
        let channels = [4, 4, 5][random.below(3)];
        let kernel = [1, 3][random.below(2)];
        let options = ConvolutionOptions { channels, kernel, stride: 1, padding: kernel / 2 };
        let value = match random.below(8) {
            0 => {
                let window = MaxPoolWindow { size: 3, stride: 1 + random.below(2), padding: 1 };
                let pooled = extents.map(|extent| (extent - 1) / window.stride + 1);
                (network.max_pool(from, &name, window), pooled)
            }
            1 => (network.conv2d(from, &name, options), extents),
            _ => {
                let names = [&*format!("{name}.conv"), &*format!("{name}.norm")];
                if random.below(3) == 0 {
                    frozen.push(names[1].to_string());
                }
                let fits = |(source, of): &(Source, [usize; 2])| {
                    (network.channels(*source) == channels && *of == extents).then_some(*source)
                };
                let fits: Vec<Source> = values.iter().filter_map(fits).collect();
                let residual = (!fits.is_empty() && random.below(4) > 0).then(|| fits[random.below(fits.len())]);
                let activation = if random.below(2) == 0 { Activation::Relu } else { Activation::None };
                (network.conv2d_batch_norm(from, names, options, residual, activation), extents)
            }
        };
        values.push(value);
    }
    let (last, _) = values[values.len() - 1 - random.below(2)];
    let pooled = network.avg_pool(last, "pool");
    network.linear(pooled, "fc", 3);
    let shape = BatchShape { batch, height: image[0], width: image[1] };
    let phase = Phase::Training(Freezing { modules: frozen, batch_norm: true });
    network.graph(device, shape, &phase, LossReduction::Sum, &[]).expect("valid shapes")
}

/// A network's parameters with random values. Those that `is_trainable` rejects are frozen.
fn parameters(device: &dyn Device, network: &NetworkGraph, is_trainable: impl Fn(&str) -> bool) -> Parameters {
    let group = |name: &str| is_trainable(name).then(|| usize::from(name.starts_with("fc.")));
    let specifications = network.graph.parameters();
    let mut parameters = Parameters::new(device, specifications, 2, &["velocity"], |s| group(&s.name)).unwrap();
    let mut random = Random(11);
    for specification in specifications {
        let shape = specification.shape;
        let values = match specification.role {
            ParameterRole::BatchNormWeight | ParameterRole::RunningVariance => random.uniforms(shape.len(), 0.5, 1.5),
            ParameterRole::ConvolutionWeight | ParameterRole::LinearWeight => {
                let inputs = (shape.len() / shape.dims()[0]) as f32;
                random.normals(shape.len()).into_iter().map(|value| value / inputs.sqrt()).collect()
            }
            _ => random.normals(shape.len()),
        };
        parameters.write(device, &specification.name, &values).unwrap();
    }
    parameters
}

fn training_plan(device: &dyn Device, network: &NetworkGraph, parameters: &Parameters) -> Plan {
    Plan::training(&network.graph, device, |id| parameters.is_trainable(id))
}

/// The values of an input batch.
fn batch(network: &NetworkGraph, seed: u64) -> (Vec<f32>, Vec<i32>) {
    let mut random = Random(seed);
    let count = network.graph.value(network.targets).shape.len();
    let images = random.normals(network.graph.value(network.input).shape.len());
    (images, random.labels(count, 2).into_iter().map(|label| label as i32).collect())
}

type Bits = BTreeMap<String, Vec<u32>>;

fn bits(device: &dyn Device, tensor: &Tensor) -> Vec<u32> {
    // Adding to zero turns -0 into 0.
    read_f32(device, tensor).unwrap().into_iter().map(|value| (value + 0.0).to_bits()).collect()
}

/// Loss, logits, running statistics and gradients.
fn results(device: &dyn Device, parameters: &Parameters, logits: &Tensor, loss: &Tensor) -> Bits {
    let mut results = Bits::from([("logits".into(), bits(device, logits)), ("loss".into(), bits(device, loss))]);
    for specification in parameters.specifications() {
        let name = &specification.name;
        if specification.role.is_buffer() {
            results.insert(name.clone(), bits(device, parameters.value_of(name).unwrap()));
        }
        if let Some(gradient) = parameters.gradient_of(name).unwrap() {
            results.insert(format!("gradient of {name}"), bits(device, gradient));
        }
    }
    results
}

/// A network bound to an arena, with its initial running statistics.
struct Bound {
    device: Rc<dyn Device>,
    executor: Executor,
    ends: [Value; 4],
    batch: (Vec<f32>, Vec<i32>),
}

impl Bound {
    fn new(device: Rc<dyn Device>, network: NetworkGraph, parameters: &Parameters, arena: Option<&Arena>) -> Self {
        let batch = batch(&network, 5);
        let plan = training_plan(device.as_ref(), &network, parameters);
        let own = Arena::new(device.as_ref(), plan.arena_bytes()).unwrap();
        let ends = [network.input, network.targets, network.logits, network.loss];
        let executor = Executor::new(network.graph, plan, parameters, arena.unwrap_or(&own)).unwrap();
        Self { device, executor, ends, batch }
    }

    fn fill(&self) {
        let device = self.device.as_ref();
        let [input, targets, ..] = self.ends.map(|value| self.executor.value(value));
        write_f32(device, &self.batch.0, input).unwrap();
        write_i32(device, &self.batch.1, targets).unwrap();
    }

    /// One forward and backward pass, starting from the same running statistics.
    fn run(&self, parameters: &mut Parameters) -> Bits {
        let device = self.device.as_ref();
        let specifications: Vec<_> = parameters.specifications().cloned().collect();
        let buffers = specifications.iter().filter(|specification| specification.role.is_buffer());
        let before: Vec<_> = buffers.map(|s| (&s.name, parameters.read(device, &s.name).unwrap())).collect();
        for specification in &specifications {
            if let Some(gradient) = parameters.gradient_of(&specification.name).unwrap() {
                write_f32(device, &vec![f32::NAN; gradient.len()], gradient).unwrap();
            }
        }
        self.fill();
        self.executor.forward(device).unwrap();
        self.executor.backward(device).unwrap();
        let [.., logits, loss] = self.ends.map(|value| self.executor.value(value));
        let results = results(device, parameters, logits, loss);
        for (name, values) in before {
            parameters.write(device, name, &values).unwrap();
        }
        results
    }
}

/// The same computation without a plan: every value, gradient and workspace has its own memory, and every gradient is
/// added to zeros.
fn run_without_plan(device: &dyn Device, network: &NetworkGraph, parameters: &Parameters) -> Bits {
    let allocate = |shape: Shape, element_type: ElementType| {
        Tensor::new(device.allocate(shape.len() * element_type.size()).unwrap(), 0, shape, element_type)
    };
    let bytes = |count: usize| allocate([count].into(), ElementType::U8);
    let (images, targets) = batch(network, 5);
    let graph = &network.graph;
    let mut values: BTreeMap<Value, Tensor> = BTreeMap::new();
    for value in [network.input, network.targets] {
        values.insert(value, allocate(graph.value(value).shape, graph.value(value).element_type));
    }
    write_f32(device, &images, &values[&network.input]).unwrap();
    write_i32(device, &targets, &values[&network.targets]).unwrap();
    let names = graph.parameters();
    let mut next_parameter = 0;
    let mut forward = Vec::new();
    for node in graph.nodes() {
        for (&value, (shape, element_type)) in node.outputs.iter().zip(node.operation.outputs()) {
            values.insert(value, allocate(shape, element_type));
        }
        let tensors = |of: &[Value]| -> Vec<Tensor> { of.iter().map(|value| values[value].clone()).collect() };
        // Parameters are numbered in the order in which nodes name them.
        let own = &names[next_parameter..next_parameter + node.parameters.len()];
        next_parameter += node.parameters.len();
        let buffers = ForwardBuffers {
            inputs: tensors(&node.inputs),
            parameters: own.iter().map(|s| parameters.compute_copy_of(&s.name).unwrap().clone()).collect(),
            outputs: tensors(&node.outputs),
            saved: node.operation.saved(true).into_iter().map(|(shape, element)| allocate(shape, element)).collect(),
            workspace: bytes(node.operation.forward_workspace(device)),
        };
        node.operation.forward(device, &buffers).unwrap();
        forward.push((buffers, own));
    }
    let gradient_of = |&value: &Value| {
        let info = graph.value(value);
        (value, allocate(info.shape, info.element_type))
    };
    let gradients: BTreeMap<Value, Tensor> = values.keys().map(gradient_of).collect();
    for (node, (forward, own)) in graph.nodes().iter().zip(&forward).rev() {
        let wanted = Wanted {
            inputs: (0..node.inputs.len()).map(|index| node.operation.is_differentiable(index)).collect(),
            parameters: own.iter().map(|s| !s.role.is_buffer()).collect(),
        };
        let is_loss = node.operation.is_loss();
        let input_gradients =
            node.inputs.iter().zip(&wanted.inputs).map(|(value, wanted)| {
                wanted.then(|| Gradient { tensor: gradients[value].clone(), accumulate: !is_loss })
            });
        let parameter_gradients = own.iter().zip(&wanted.parameters).map(|(specification, wanted)| {
            let known = parameters.gradient_of(&specification.name).unwrap().cloned();
            wanted.then(|| known.unwrap_or_else(|| allocate(specification.shape, ElementType::F32)))
        });
        let all = |tensors: &[Tensor]| tensors.iter().cloned().map(Some).collect();
        // The output is kept only if needed: batch norm computes its mask from the tensors that it receives.
        let reads = node.operation.backward_reads(&wanted).outputs;
        let buffers = BackwardBuffers {
            inputs: all(&forward.inputs),
            outputs: forward.outputs.iter().zip(reads).map(|(tensor, read)| read.then(|| tensor.clone())).collect(),
            parameters: forward.parameters.clone(),
            saved: forward.saved.clone(),
            output_gradient: (!is_loss).then(|| gradients[&node.outputs[0]].clone()),
            input_gradients: input_gradients.collect(),
            parameter_gradients: parameter_gradients.collect(),
            workspace: bytes(node.operation.backward_workspace(device, &wanted)),
            is_reduced: false,
        };
        node.operation.backward(device, &buffers).unwrap();
    }
    results(device, parameters, &values[&network.logits], &values[&network.loss])
}

#[track_caller]
fn assert_same(ours: &Bits, truth: &Bits) {
    assert!(ours.keys().eq(truth.keys()), "{:?} and {:?}", ours.keys(), truth.keys());
    for (name, bits) in ours {
        assert!(bits == &truth[name], "{name} differs");
    }
}

#[track_caller]
fn assert_no_shared_bytes(plan: &Plan) {
    for (index, buffer) in plan.buffers().iter().enumerate() {
        assert!(buffer.first <= buffer.last, "{buffer:?}");
        assert!(buffer.offset + buffer.bytes <= plan.arena_bytes(), "{buffer:?} of {}", plan.arena_bytes());
        for other in &plan.buffers()[..index] {
            let live_together = buffer.first <= other.last && other.first <= buffer.last;
            let share = buffer.offset < other.offset + other.bytes && other.offset < buffer.offset + buffer.bytes;
            assert!(!(live_together && share), "{buffer:?} and {other:?}");
        }
    }
    assert!(plan.peak_bytes() <= plan.arena_bytes());
}

fn resnet(width: usize) -> ResNet {
    ResNet { architecture: Architecture::default(), width, classes: 3 }
}

/// Bottlenecks, whose first stage has a shortcut with stride 1 that changes the channels.
fn bottlenecks(width: usize) -> ResNet {
    ResNet { architecture: "resnet50".parse().unwrap(), width, classes: 3 }
}

fn resnet_graph(device: &dyn Device, resnet: &ResNet, shape: BatchShape, phase: &Phase) -> NetworkGraph {
    resnet.specification().graph(device, shape, phase, LossReduction::Sum, &[]).unwrap()
}

const SMALL: BatchShape = BatchShape { batch: 3, height: 40, width: 49 };
const LESSON: BatchShape = BatchShape { batch: 32, height: 224, width: 224 };

fn lower_layers() -> Freezing {
    Freezing { modules: ["conv1", "bn1", "layer1", "layer2"].map(String::from).to_vec(), batch_norm: false }
}

/// Reductions change the order of sums in the backward pass, and so the rounding of operands and of stored gradients.
#[track_caller]
fn assert_near(ours: &Bits, truth: &Bits) {
    assert!(ours.keys().eq(truth.keys()), "{:?} and {:?}", ours.keys(), truth.keys());
    for (name, bits) in ours {
        let values = |bits: &[u32]| bits.iter().map(|&bits| f64::from(f32::from_bits(bits))).collect::<Vec<_>>();
        let (ours, truth) = (values(bits), values(&truth[name]));
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let error = norm(&mut ours.iter().zip(&truth).map(|(ours, truth)| ours - truth));
        let limit = 0.05 * norm(&mut truth.iter().copied()) + 1e-3;
        // Gradients that no loss reaches are NaN in both.
        let unwritten = truth.iter().all(|value| value.is_nan());
        let same = |(a, b): (&f64, &f64)| a.is_nan() == b.is_nan();
        assert!(
            ours.iter().zip(&truth).all(same) && (error <= limit || unwritten),
            "{name}: error {error}, limit {limit}"
        );
    }
}

/// With any frozen layers, the planned run gives the bits of the run without a plan, and with reductions nearly the same.
fn check_planned_run(device: &Rc<dyn Device>, seed: u64) {
    let separate: Rc<dyn Device> = Rc::new(WithoutReductions(device.clone()));
    let [separate, reduced] = [&separate, device].map(|device| check_planned_run_on(device, seed));
    assert_near(&reduced, &separate);
}

/// Returns the results, with NaN in gradients that no loss reaches.
fn check_planned_run_on(device: &Rc<dyn Device>, seed: u64) -> Bits {
    let mut random = Random(seed);
    let network = random_network(device.as_ref(), &mut random);
    let share = random.below(4);
    let frozen: Vec<String> =
        network.graph.parameters().iter().map(|s| s.name.clone()).filter(|_| random.below(4) < share).collect();
    let mut parameters = parameters(device.as_ref(), &network, |name| !frozen.iter().any(|f| f == name));
    let plan = training_plan(device.as_ref(), &network, &parameters);
    assert_no_shared_bytes(&plan);
    assert_no_shared_bytes(&Plan::inference(&network.graph, device.as_ref()));

    let recorder = Rc::new(Recorder::new(device.clone()));
    let bound = {
        // Builds the same network again, because a graph cannot be copied.
        let network = random_network(device.as_ref(), &mut Random(seed));
        Bound::new(recorder.clone(), network, &parameters, None)
    };
    let clean = bound.run(&mut parameters);
    recorder.poison_latest_allocation();
    assert_same(&bound.run(&mut parameters), &clean);
    let gradient_buffers = plan.buffers().iter().filter(|buffer| buffer.kind == BufferKind::Gradient).count();
    let calls = recorder.gradients.borrow();
    let overwrites = calls.iter().filter(|call| !call.accumulate).count();
    // The loss writes one more, which the recorder does not see. Both runs count.
    assert!(gradient_buffers == 0 || overwrites == 2 * (gradient_buffers - 1));

    let is_reduced = recorder.reductions.get() > 0;
    if is_reduced {
        return clean;
    }
    // Gradients that no loss reaches stay unchanged; the run without a plan writes zeros to them.
    let all = clean.clone();
    let mut truth = run_without_plan(device.as_ref(), &network, &parameters);
    let mut ours = clean;
    ours.retain(|name, bits| {
        let unwritten = bits.iter().all(|&bits| f32::from_bits(bits).is_nan());
        if unwritten {
            let expected = truth.remove(name).unwrap();
            assert!(expected.iter().all(|&bits| f32::from_bits(bits) == 0.0), "{name} was not computed");
        }
        !unwritten
    });
    assert_same(&ours, &truth);
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn planned_run_matches_run_without_plan(seed in any::<u64>()) {
        devices().iter().for_each(|device| check_planned_run(device, seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn planned_run_of_kernels_matches_run_without_plan(seed in any::<u64>()) {
        for precision in PRECISIONS {
            kernel_devices(precision).iter().for_each(|device| check_planned_run(device, seed));
        }
    }
}

#[test]
fn lower_levels() {
    run_at_lower_levels("planned_run_matches");
}

#[test]
fn planned_run_matches_for_resnets() {
    let frozen_batch_norm = Freezing { batch_norm: true, ..lower_layers() };
    let middle = Freezing { modules: vec!["layer2".into(), "layer4.1".into()], batch_norm: true };
    let body = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"].map(String::from).to_vec();
    let head_only = Freezing { modules: body, batch_norm: true };
    for device in devices().into_iter().chain(PRECISIONS.into_iter().flat_map(kernel_devices)) {
        for (resnet, freezing) in [
            (resnet(8), Freezing::default()),
            (resnet(8), lower_layers()),
            (resnet(8), frozen_batch_norm.clone()),
            (resnet(8), middle.clone()),
            (resnet(8), head_only.clone()),
            (bottlenecks(8), Freezing::default()),
            (bottlenecks(8), middle.clone()),
        ] {
            let graph = || resnet_graph(device.as_ref(), &resnet, SMALL, &Phase::Training(freezing.clone()));
            let mut parameters = parameters(device.as_ref(), &graph(), |name| !freezing.covers(name));
            let recorder = Rc::new(Recorder::new(device.clone()));
            let bound = Bound::new(recorder.clone(), graph(), &parameters, None);
            assert_no_shared_bytes(bound.executor.plan());
            recorder.poison_latest_allocation();
            let poisoned = bound.run(&mut parameters);
            assert_same(&bound.run(&mut parameters), &poisoned);
            let without_reductions: Rc<dyn Device> = Rc::new(WithoutReductions(device.clone()));
            let separate = Bound::new(without_reductions, graph(), &parameters, None).run(&mut parameters);
            if recorder.reductions.get() > 0 {
                assert_near(&poisoned, &separate);
            } else {
                assert_same(&poisoned, &separate);
            }
            assert_same(&separate, &run_without_plan(device.as_ref(), &graph(), &parameters));
        }
    }
}

#[test]
fn gradients_of_a_value_with_two_readers_add_up() {
    for device in devices() {
        let mut specification = Specification::new("two readers", 3);
        let options = ConvolutionOptions { channels: 4, kernel: 3, stride: 1, padding: 1 };
        let stem = specification.conv2d(Source::Pixels, "stem", options);
        let block = specification.conv2d_batch_norm(stem, ["conv", "norm"], options, Some(stem), Activation::None);
        let pooled = specification.avg_pool(block, "pool");
        specification.linear(pooled, "fc", 3);
        let shape = BatchShape { batch: 2, height: 4, width: 4 };
        let phase = Phase::Training(Freezing::default());
        let network = specification.graph(device.as_ref(), shape, &phase, LossReduction::Sum, &[]).unwrap();
        let mut parameters = parameters(device.as_ref(), &network, |_| true);
        let recorder = Rc::new(Recorder::new(device.clone()));
        let bound = Bound::new(recorder.clone(), network, &parameters, None);
        bound.run(&mut parameters);

        let calls = recorder.gradients.borrow().clone();
        let of_shortcut = |calls: &[GradientCall]| {
            let address = calls.iter().find(|call| call.accumulate).expect("a call that accumulates").address;
            let calls = calls.iter().filter(move |call| call.address == address);
            calls.map(|call| (call.operation, call.accumulate)).collect::<Vec<_>>()
        };
        assert_eq!(of_shortcut(&calls), [("batch_norm", false), ("conv2d", true)]);
        assert_eq!(calls.iter().filter(|call| call.accumulate).count(), 1);

        // The slope of the loss along the gradient of the stem is the norm of that gradient.
        let read = |parameters: &Parameters| {
            read_f32(device.as_ref(), parameters.gradient_of("stem.weight").unwrap().unwrap()).unwrap()
        };
        let gradient = read(&parameters);
        let length = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
        let before = parameters.read(device.as_ref(), "stem.weight").unwrap();
        let mut loss_at = |distance: f64| {
            let moved =
                before.iter().zip(&gradient).map(|(w, g)| (f64::from(*w) + distance * f64::from(*g) / length) as f32);
            parameters.write(device.as_ref(), "stem.weight", &moved.collect::<Vec<_>>()).unwrap();
            f64::from(f32::from_bits(bound.run(&mut parameters)["loss"][0]))
        };
        let slope = (loss_at(0.005) - loss_at(-0.005)) / 0.01;
        assert!((slope / length - 1.0).abs() < 2e-3, "slope {slope}, gradient {length}");
    }
}

#[test]
fn each_resnet_block_adds_one_gradient() {
    for (device, (resnet, blocks)) in devices()
        .into_iter()
        .flat_map(|device| [(resnet(8), 8), (bottlenecks(4), 16)].map(|each| (device.clone(), each)))
    {
        let network = resnet_graph(device.as_ref(), &resnet, SMALL, &Phase::Training(Freezing::default()));
        let mut parameters = parameters(device.as_ref(), &network, |_| true);
        let recorder = Rc::new(Recorder::new(device.clone()));
        let bound = Bound::new(recorder.clone(), network, &parameters, None);
        bound.run(&mut parameters);
        let gradients = |plan: &Plan| plan.buffers().iter().filter(|b| b.kind == BufferKind::Gradient).count();
        let calls = recorder.gradients.borrow();
        assert_eq!(calls.iter().filter(|call| call.accumulate).count(), blocks);
        assert_eq!(calls.iter().filter(|call| !call.accumulate).count() + 1, gradients(bound.executor.plan()));
    }
}

#[test]
fn frozen_layers_have_no_backward_pass() {
    for device in devices() {
        let plan_of = |freezing: &Freezing| {
            let network = resnet_graph(device.as_ref(), &resnet(8), SMALL, &Phase::Training(freezing.clone()));
            let parameters = parameters(device.as_ref(), &network, |name| !freezing.covers(name));
            let plan = training_plan(device.as_ref(), &network, &parameters);
            (network, plan)
        };
        let (_, whole) = plan_of(&Freezing::default());
        let freezing = lower_layers();
        let (network, plan) = plan_of(&freezing);
        let lower = |name: &str| freezing.covers(name) || name == "maxpool";
        let nodes = network.graph.nodes();
        for (index, node) in nodes.iter().enumerate() {
            assert_eq!(plan.has_backward(index), !lower(&node.name), "{}", node.name);
        }
        let end_of_forward = nodes.len();
        for buffer in plan.buffers().iter().filter(|buffer| lower(buffer.name.split(' ').next().unwrap())) {
            assert_ne!(buffer.kind, BufferKind::Gradient, "{buffer:?}");
            // The first trained layer reads the output of the last frozen one.
            assert!(buffer.last <= end_of_forward || buffer.name == "layer2.1", "{buffer:?} is kept");
        }
        assert!(plan.arena_bytes() < whole.arena_bytes());
        println!("arena with frozen lower layers: {} of {} bytes", plan.arena_bytes(), whole.arena_bytes());

        // With only the head trained, the only buffers that outlive the forward pass are those that the loss and the
        // head read.
        let body = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"].map(String::from).to_vec();
        let (network, plan) = plan_of(&Freezing { modules: body, batch_norm: true });
        let end_of_forward = network.graph.nodes().len();
        let kept =
            plan.buffers().iter().filter(|buffer| buffer.first <= end_of_forward && buffer.last > end_of_forward);
        let kept: Vec<&str> = kept.map(|buffer| buffer.name.as_str()).collect();
        assert_eq!(kept, ["target", "avgpool", "fc", "loss"]);
    }
}

#[test]
fn values_that_no_gradient_reads_are_freed() {
    for device in devices() {
        let network = resnet_graph(device.as_ref(), &resnet(8), SMALL, &Phase::Training(Freezing::default()));
        let parameters = parameters(device.as_ref(), &network, |_| true);
        let plan = training_plan(device.as_ref(), &network, &parameters);
        let end_of_forward = network.graph.nodes().len();
        let mut freed = 0;
        for buffer in plan.buffers().iter().filter(|buffer| buffer.kind == BufferKind::Value) {
            // Partial statistics are used only in the forward pass, the batch norm of a shortcut has no ReLU, and max
            // pooling keeps argmax indices instead of its input.
            let expected =
                buffer.name.ends_with("statistics") || buffer.name.ends_with("downsample.1") || buffer.name == "bn1";
            assert_eq!(buffer.last <= end_of_forward, expected, "{buffer:?}");
            freed += usize::from(expected);
        }
        assert_eq!(freed, 20 + 3 + 1);
    }
}

#[test]
fn inference_keeps_nothing() {
    for device in devices() {
        let network = resnet_graph(device.as_ref(), &resnet(8), SMALL, &Phase::Evaluation);
        let inference = Plan::inference(&network.graph, device.as_ref());
        let end_of_forward = network.graph.nodes().len();
        let outputs = ["fc", "loss"];
        for buffer in inference.buffers() {
            assert_ne!(buffer.kind, BufferKind::Gradient);
            assert!(buffer.last <= end_of_forward || outputs.contains(&buffer.name.as_str()), "{buffer:?}");
        }
        let training = resnet_graph(device.as_ref(), &resnet(8), SMALL, &Phase::Training(Freezing::default()));
        let parameters = parameters(device.as_ref(), &training, |_| true);
        let training = training_plan(device.as_ref(), &training, &parameters);
        assert!(2 * inference.arena_bytes() < training.arena_bytes());
    }
}

#[test]
fn arena_is_hardly_larger_than_its_peak() {
    for device in devices() {
        for (what, freezing) in [("everything trained", Freezing::default()), ("lower layers frozen", lower_layers())] {
            let network = resnet_graph(device.as_ref(), &resnet(64), LESSON, &Phase::Training(freezing.clone()));
            let specifications = network.graph.parameters();
            // Planning only needs to know which parameters are trained.
            let parameters = Parameters::new(device.as_ref(), specifications, 1, &[], |specification| {
                (!freezing.covers(&specification.name)).then_some(0)
            })
            .unwrap();
            let plan = training_plan(device.as_ref(), &network, &parameters);
            assert_no_shared_bytes(&plan);
            let (arena, peak) = (plan.arena_bytes() as f64, plan.peak_bytes() as f64);
            println!("ResNet-18, batch 32, {what}: arena {:.1} MB, {:.4} of its peak", arena / 1e6, arena / peak);
            assert!(arena <= 1.05 * peak, "{what}: arena {arena}, peak {peak}");
        }
        let network = resnet_graph(device.as_ref(), &resnet(64), LESSON, &Phase::Evaluation);
        let plan = Plan::inference(&network.graph, device.as_ref());
        assert_no_shared_bytes(&plan);
        let (arena, peak) = (plan.arena_bytes() as f64, plan.peak_bytes() as f64);
        println!("ResNet-18, batch 32, inference: arena {:.1} MB, {:.4} of its peak", arena / 1e6, arena / peak);
        assert!(arena <= 1.05 * peak);
    }
}

#[test]
fn plans_that_share_an_arena_do_not_disturb_each_other() {
    for device in devices() {
        let phase = Phase::Training(Freezing::default());
        let graph = |batch| resnet_graph(device.as_ref(), &resnet(8), BatchShape { batch, ..SMALL }, &phase);
        let mut parameters = parameters(device.as_ref(), &graph(3), |_| true);
        let separate =
            [3, 2, 3].map(|batch| Bound::new(device.clone(), graph(batch), &parameters, None).run(&mut parameters));
        let plan = training_plan(device.as_ref(), &graph(3), &parameters);
        let arena = Arena::new(device.as_ref(), plan.arena_bytes()).unwrap();
        let [full, short] = [3, 2].map(|batch| Bound::new(device.clone(), graph(batch), &parameters, Some(&arena)));
        for (bound, truth) in [&full, &short, &full].into_iter().zip(&separate) {
            assert_same(&bound.run(&mut parameters), truth);
        }
        let too_small = Arena::new(device.as_ref(), plan.arena_bytes() - 1).unwrap();
        assert!(Executor::new(graph(3).graph, plan, &parameters, &too_small).is_err());
    }
}

/// Enables counting on two threads: this one and the pool's other thread.
fn count_on_two_threads() {
    let counted = AtomicUsize::new(0);
    let begin = Instant::now();
    while counted.load(Ordering::Relaxed) < 2 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the second thread did not run");
        counted.store(0, Ordering::Relaxed);
        threads::run(2, |_| {
            COUNTS.set(true);
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        });
    }
}

/// Allocations of three training steps, after a first one.
fn allocations_of_steps(count: usize) -> usize {
    COUNTS.set(true);
    threads::with(count, || {
        if count == 2 {
            count_on_two_threads();
        }
        let device: Rc<dyn Device> = Rc::new(Cpu);
        // Wide enough to use every kind of convolution.
        let network = resnet_graph(
            device.as_ref(),
            &resnet(32),
            BatchShape { height: 64, width: 64, ..SMALL },
            &Phase::Training(Freezing::default()),
        );
        let parameters = parameters(device.as_ref(), &network, |_| true);
        let bound = Bound::new(device.clone(), network, &parameters, None);
        let group = GroupSettings { learning_rate: 1e-3, weight_decay: 1e-3 };
        let optimizer = OptimizerSettings::sgd(0.9).unwrap().build();
        let mut updater = Updater::new(device.as_ref(), optimizer, vec![group; 2], None, None).unwrap();
        let mut step = || {
            // Targets do not survive the backward pass, like every value without a later reader.
            bound.fill();
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            bound.executor.forward(device.as_ref()).unwrap();
            bound.executor.backward(device.as_ref()).unwrap();
            updater.begin_step(device.as_ref()).unwrap();
            updater.issue(device.as_ref(), &parameters, None, None).unwrap();
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        step();
        let allocations = step() + step() + step();
        // Checks that the counter works.
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        drop(std::hint::black_box(Box::new(1)));
        assert!(ALLOCATIONS.load(Ordering::Relaxed) > before);
        allocations
    })
}

#[test]
fn step_allocates_nothing() {
    assert_eq!(allocations_of_steps(1), 0);
    assert_eq!(allocations_of_steps(2), 0);
}
