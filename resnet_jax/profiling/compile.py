"""The real training and evaluation step of a config, compiled for TPUs or GPUs that aren't there.

Nothing is read but the config, nothing computed: the programs are compiled for shapes, and their
memory, operations and communication read off.
"""

import dataclasses
import math
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict

from resnet_jax.config.schema import validate
from resnet_jax.errors import ConfigError, UsageError
from resnet_jax.parallel.mesh import make_mesh, replicated
from resnet_jax.profiling.collectives import Collective, find_collectives, summarize
from resnet_jax.profiling.flops import count_flops
from resnet_jax.profiling.hlo import Module
from resnet_jax.profiling.roofline import StepTime, step_time
from resnet_jax.profiling.slices import GIB, Slice
from resnet_jax.profiling.tpu import out_of_memory
from resnet_jax.profiling.traffic import Kernels, kernels_by_kind
from resnet_jax.train.data_sizes import known_length
from resnet_jax.train.dispatch import make_train_steps
from resnet_jax.train.evaluate import abstract_batches, chunks_of, make_score
from resnet_jax.train.spec import TrainSpec


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program; all figures are of one device.

    Attributes:
        compile_s: wall time of lowering and compiling.
        flops: by XLA's cost analysis, or of a GPU by `count_flops`.
        accessed_bytes: by XLA's cost analysis, on-chip memory included; None of a GPU.
        kernels: to and from main memory, by `kernels_by_kind`.
        temp_bytes, code_bytes: in the device's memory.
        peak_bytes: of all memory.
        collectives: what it communicates.
        text: HLO.
    """

    compile_s: float
    flops: float
    accessed_bytes: float | None
    kernels: list[Kernels]
    temp_bytes: int
    code_bytes: int
    peak_bytes: int
    collectives: list[Collective]
    text: str = dataclasses.field(repr=False)

    @property
    def memory_bytes(self) -> int:
        """Bytes to and from main memory."""
        return sum(kernels.bytes for kernels in self.kernels)


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler refused a program for lack of memory.

    Attributes:
        needed_bytes: by its message; NaN if that doesn't say.
    """

    needed_bytes: float


def make_spec(config: ConfigDict, slice_: Slice, *, batch_per_chip: int | None = None) -> TrainSpec:
    """Make the spec of `config` on all devices of a slice.

    Args:
        config: of a run.
        slice_: the target.
        batch_per_chip: replaces `config.batch_size`, which is global.

    Raises:
        UsageError: an impossible batch per chip.
        ConfigError: an impossible config, or data whose sizes aren't known.
    """
    config = config.copy_and_resolve_references()
    if batch_per_chip is not None:
        if batch_per_chip < 1:
            raise UsageError(f"--batch-per-chip is {batch_per_chip}; it must be at least 1.")
        config.batch_size = batch_per_chip * slice_.chips
    validate(config)
    have, data, fsdp = len(slice_.devices), config.mesh.data, config.mesh.fsdp
    if data != -1 and data * fsdp != have:
        raise ConfigError(
            f"mesh.data {data} × mesh.fsdp {fsdp} is {data * fsdp} devices, but {slice_.name} has"
            f" {have}; use mesh.data=-1 for all of them."
        )
    if config.mesh.shards not in (0, have):
        raise ConfigError(
            f"mesh.shards is {config.mesh.shards}, and {slice_.name} has {have} devices. A compiled"
            " program doesn't tell how many shards a device takes, so its figures would be those of"
            f" one shard; use mesh.shards={have}."
        )
    return TrainSpec.without_data(config, make_mesh(data=data, fsdp=fsdp, devices=slice_.devices))


def compile_training(spec: TrainSpec) -> Program | TooLarge:
    """Compile the steps of a run, with as many per dispatch as the config says.

    What a dispatch holds in memory is thereby what a run would. The loop over its steps has a
    length that is known at run time, so figures of operations, bytes and communication are of one
    step.
    """
    steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(spec.mesh))
    return compile_program(
        make_train_steps(spec),
        spec.abstract_state,
        *spec.abstract_batches(),
        steps,
        *spec.abstract_teacher(),
        devices=spec.mesh.size,
    )


def compile_evaluation(spec: TrainSpec) -> Program | TooLarge | None:
    """Compile the scoring of the validation split, or else the test split; None without either."""
    config = spec.config
    split = config.data.validation or config.data.test
    if not split:
        return None
    examples = known_length(config, split)
    image_shape = spec.evaluation_shape
    _, batches, size = chunks_of(
        examples,
        image_shape,
        batch_size=config.eval_batch_size,
        mesh=spec.mesh,
        shards=spec.shards,
    )
    state = spec.singles[0].abstract_state
    whole = replicated(spec.mesh)
    variables, normalization = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        (state.variables(), state.normalization),
    )
    return compile_program(
        make_score(spec.model.apply, spec.mesh, shards=spec.shards),
        variables,
        normalization,
        abstract_batches(batches, size, image_shape, spec.mesh),
        None,
        devices=spec.mesh.size,
    )


def compile_program(function: jax.stages.Wrapped, *shapes: Any, devices: int) -> Program | TooLarge:
    """Compile a jitted function for arguments of these shapes, whose shardings name the devices.

    Args:
        function: to compile.
        shapes: of its arguments.
        devices: how many run the program.
    """
    began = time.perf_counter()
    try:
        compiled = function.lower(*shapes).compile()
    except JaxRuntimeError as error:
        needed = out_of_memory(error)
        if needed is None:
            raise
        return TooLarge(needed)
    seconds = time.perf_counter() - began
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise RuntimeError("this version of the compiler tells nothing about a compiled program")
    module = Module.parse(text)
    flops = count_flops(module)
    # XLA counts each loop's body once.
    repeats = flops / max(count_flops(module, repeat_loops=False), 1) if flops else 1.0
    return Program(
        compile_s=seconds,
        flops=cost["flops"] * repeats if cost else flops,
        accessed_bytes=cost["bytes accessed"] * repeats if cost else None,
        kernels=kernels_by_kind(module),
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        peak_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        collectives=find_collectives(module, devices=devices),
        text=text,
    )


def held_bytes(tree: Any) -> int:
    """What the arrays of a tree of shapes with shardings take on one device, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def largest_batch(spec: TrainSpec, program: Program, slice_: Slice) -> int:
    """An estimate of the most examples per chip and step that fit, and that the data have.

    It's a multiple of 8 that splits into micro-batches and groups. Memory is taken to be a fixed
    part (the state, the program, a float32 gradient) and one in proportion to the batch, which
    this compilation tells.
    """
    config = spec.config
    per_chip = config.batch_size / slice_.chips
    state = spec.abstract_state
    fixed = held_bytes(state) + held_bytes(state.params) + program.code_bytes
    if config.data.resident:
        fixed += held_bytes(spec.abstract_batches()[:2])
    per_example = max(program.peak_bytes - fixed, 1) / per_chip
    unit = 8 * slice_.chip.devices * config.accumulate
    if group := (config.model.bn_group_size or 0) * config.accumulate:
        within_a_chip = config.model.bn_group_size <= per_chip
        unit = math.lcm(unit, group if within_a_chip else group // math.gcd(group, slice_.chips))
    most = (slice_.chip.limit_gib * GIB - fixed) / per_example
    most = min(most, spec.intervals.train_examples / slice_.chips)
    return max(0, int(most) // unit * unit)


def gradient_reduction(spec: TrainSpec, program: Program) -> dict[str, Any]:
    """How gradients are summed over the devices: bytes, and per parameter.

    Those of kernels, which hold all but a thousandth of the parameters. Sums of vectors are mostly
    statistics, and square matrices are those of products of channels (`ops.projection`), except
    where a kernel has the same shape.
    """
    kernels = [leaf.shape for leaf in jax.tree.leaves(spec.abstract_state.params)]
    products = {shape[-2:] for shape in kernels if len(shape) > 2 and shape[-2] != shape[-1]}
    matrices = products | {shape for shape in kernels if len(shape) == 2}
    elements: Counter[str] = Counter()
    size = 0
    for collective in program.collectives:
        for array in collective.arrays:
            of_kernel = len(array.shape) > 2 or array.shape in matrices
            if collective.kind in ("all-reduce", "reduce-scatter") and of_kernel:
                elements[array.dtype] += collective.times * array.size
                size += collective.times * array.bytes
    total = sum(elements.values())
    return {
        "bytes": size,
        "elements": total,
        "dtypes": dict(elements),
        "bytes_per_parameter": size / total if total else None,
    }


def roofline(program: Program, slice_: Slice) -> StepTime:
    """The time of one step at best."""
    return step_time(
        slice_.chip,
        slice_.shape,
        flops=program.flops,
        memory_bytes=program.memory_bytes,
        collectives=program.collectives,
        devices=len(slice_.devices),
    )


def describe(spec: TrainSpec, program: Program | TooLarge, slice_: Slice) -> dict[str, Any]:
    """All that a compiled training step tells, as a JSON document.

    Memory, operations, bytes and collectives are of one device; speeds are of chips.
    """
    config, chip = spec.config, slice_.chip
    limit = round(chip.limit_gib * GIB)
    per_chip = config.batch_size // slice_.chips
    state = spec.abstract_state
    document: dict[str, Any] = {
        "model": config.model.name,
        "dtype": str(jnp.dtype(spec.model.dtype)),
        "bn_group_size": config.model.bn_group_size,
        "image_shape": list(spec.image_shape),
        "topology": slice_.name,
        "chip": chip.kind,
        "unit": chip.unit,
        "chips": slice_.chips,
        "devices": len(slice_.devices),
        "mesh": dict(spec.mesh.shape),
        "batch_size": config.batch_size,
        "batch_per_chip": per_chip,
        "accumulate": config.accumulate,
        "steps_per_dispatch": spec.intervals.steps_per_dispatch,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    memory: dict[str, Any] = {
        "limit_bytes": limit,
        "parameter_bytes": held_bytes(state.params),
        "optimizer_bytes": held_bytes(state.opt_state),
        "other_state_bytes": held_bytes(state)
        - held_bytes(state.params)
        - held_bytes(state.opt_state),
        "example_bytes": held_bytes(spec.abstract_batches()),
    }
    if isinstance(program, TooLarge):
        needed = None if math.isnan(program.needed_bytes) else round(program.needed_bytes)
        memory |= {"peak_bytes": needed, "fits": False}
        return document | {"memory": memory}
    memory |= {
        "activation_bytes": program.temp_bytes,
        "program_bytes": program.code_bytes,
        "peak_bytes": program.peak_bytes,
        "fits": program.peak_bytes <= limit,
    }
    seconds = roofline(program, slice_)
    examples = config.batch_size / len(slice_.devices)
    document |= {
        "memory": memory,
        "largest_batch_per_chip": largest_batch(spec, program, slice_),
        "gflop_per_image": program.flops / examples / 1e9,
        "mb_per_image": program.memory_bytes / examples / 1e6,
        "kernels": [dataclasses.asdict(kernels) for kernels in program.kernels],
        "collectives": summarize(program.collectives),
        "gradient_reduction": gradient_reduction(spec, program),
        "compile_s": round(program.compile_s, 1),
    }
    if program.accessed_bytes is not None:
        document["accessed_mb_per_image"] = program.accessed_bytes / examples / 1e6
    document["roofline"] = dataclasses.asdict(seconds) | {
        "bound_by": "arithmetic" if seconds.compute_s > seconds.memory_s else "memory",
        "step_s": seconds.exposed_total_s,
        "img_per_s_per_chip": per_chip / seconds.exposed_total_s,
        "img_per_s": config.batch_size / seconds.exposed_total_s,
        "img_per_s_if_hidden": config.batch_size / seconds.hidden_total_s,
        "mfu": seconds.compute_s / seconds.exposed_total_s,
    }
    if chip.unit == "GPU" and len(slice_.shape) > 1:
        per_node = per_chip * slice_.shape[-1]
        document["roofline"]["img_per_s_per_node"] = per_node / seconds.exposed_total_s
    return document
