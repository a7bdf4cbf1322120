"""Profile a bfloat16 step: `python -m benchmarks.gpu.why …`

- The peak rates of this GPU: matrix products of every precision, and a copy in its memory.
- The parts of a step, forward and with gradient, with the operations and bytes (arguments and results once) from which
  their lower bounds at these rates follow.
- The ten most expensive kernels of a step, from a trace.
- The step with other options of the compiler.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.flops import count_flops
from benchmarks.gpu import stage
from benchmarks.gpu.ours import PRODUCTS, Bench, build_step
from benchmarks.gpu.stage import Case, Records
from benchmarks.gpu.trace import costliest
from benchmarks.images import CLASSES, random_images
from crossearth_jax.config import LossConfig
from crossearth_jax.losses.mask_set import mask_set_loss
from crossearth_jax.models.network import Features, SegmentationModel
from crossearth_jax.models.style_network import StyleNetwork
from crossearth_jax.ops import attention, deformable_attention, matching
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime import command
from crossearth_jax.weights.style_files import load_style

# Options of XLA that are tried one at a time; see XLA's documentation.
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"xla_gpu_enable_triton_gemm": False},
    {"xla_gpu_enable_latency_hiding_scheduler": True},
    {"xla_gpu_autotune_level": 0},
)
PREDICTIONS = 10
Part = tuple[Callable[..., Any], tuple[Any, ...]]


def main(argv: Sequence[str]) -> None:
    """Measure what is not yet in the records."""
    parser = stage.parser("benchmarks.gpu.why")
    parser.add_argument("what", choices=("ceilings", "parts", "step"))
    arguments = parser.parse_args(argv)
    records = Records(arguments.records)
    bench = Bench.load(arguments.size, arguments.scratch / f"{arguments.size}.pth")
    if arguments.what == "ceilings":
        measure_ceilings(bench, records)
    elif arguments.what == "parts":
        measure_parts(bench, records)
    else:
        measure_step(bench, records, arguments.scratch / "trace")


def seconds_of(function: Callable[..., Any], *arguments: Any, seconds: float) -> dict[str, float]:
    """Return the seconds of a call of a jitted function."""
    jitted = jax.jit(function)
    return stage.measure(lambda: jitted(*arguments), jax.block_until_ready, seconds)


def measure_ceilings(bench: Bench, records: Records) -> None:
    """Measure operations per second of a large matrix product and bytes per second (read and written) of a copy."""
    side = 8192 if bench.size.image == 512 else 256
    for precision, products in PRODUCTS.items():
        if f"product/{precision}" in records:
            continue
        dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
        found = seconds_of(functools.partial(jnp.matmul, precision=products), a, b, seconds=bench.plan.seconds)
        records.add(f"product/{precision}", side=side, flops_per_second=2 * side**3 / found["seconds"], **found)
    if "copy" not in records:
        x = jnp.zeros((side, side, 8), jnp.float32)
        found = seconds_of(lambda x: x + 1, x, seconds=bench.plan.seconds)
        records.add("copy", bytes_per_second=2 * x.nbytes / found["seconds"], **found)


def measure_parts(bench: Bench, records: Records) -> None:
    """Measure every part alone, with the operations and bytes that give its lower bound."""
    for name, (function, arguments) in {**dict(attention_parts(bench)), **dict(network_parts(bench))}.items():
        if name in records:
            continue
        try:
            found = seconds_of(function, *arguments, seconds=bench.plan.seconds)
        except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as error:
            records.add(name, error=str(error)[:300])  # an implementation that this device does not support
            continue
        traced = jax.jit(function).trace(*arguments)
        touched = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((arguments, traced.out_info)))
        records.add(name, flops=count_flops(traced.jaxpr), bytes=touched, **found)


def with_gradient(function: Callable[..., jax.Array], first: int) -> Callable[..., Any]:
    """Return the gradient of the sum of squares of `function` with respect to its first `first` arguments."""
    return jax.grad(
        lambda *inputs: jnp.sum(jnp.square(function(*inputs).astype(jnp.float32))), argnums=tuple(range(first))
    )


def attention_parts(bench: Bench) -> Iterator[tuple[str, Part]]:
    """Yield attention of backbone and decoder, and deformable attention, in every implementation."""
    vit, head, batch = bench.size.model.vit, bench.size.model.head, bench.plan.some
    assert head is not None
    patches, queries = (bench.size.image // vit.patch_size) ** 2, head.queries
    shapes = {
        "backbone": (patches + 1, patches + 1, vit.heads, vit.width // vit.heads),
        "decoder, queries": (queries, queries, head.heads, head.width // head.heads),
        "decoder, stride 8": (queries, 4 * patches, head.heads, head.width // head.heads),
    }
    formulations = {
        "ours": attention.attention,
        "xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    }
    if jax.default_backend() == "gpu":
        formulations["cudnn"] = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    for where, (q, k, heads, width) in shapes.items():
        keys = jax.random.split(jax.random.key(0), 3)
        sizes = ((batch, n, heads, width) for n in (q, k, k))
        qkv = tuple(jax.random.normal(key, size, jnp.bfloat16) for key, size in zip(keys, sizes, strict=True))
        for name, function in formulations.items():
            yield f"attention, {where}: {name}", (function, qkv)
            yield f"attention, {where}: {name}, with gradient", (with_gradient(function, 3), qkv)
    side = bench.size.image // 32
    levels = [(side * factor, side * factor) for factor in (1, 2, 4)]
    count = sum(height * width for height, width in levels)
    keys = jax.random.split(jax.random.key(0), 3)
    heads, points = head.heads, head.points
    samples = (
        jax.random.normal(keys[0], (batch, count, heads, head.width // heads), jnp.bfloat16),
        jax.random.uniform(keys[1], (batch, count, heads, 3, points, 2)),
        jax.random.uniform(keys[2], (batch, count, heads, 3, points)),
    )
    for name in ("gather", "products"):
        sample = getattr(deformable_attention, f"sample_by_{name}")

        def function(values: Any, locations: Any, weights: Any, sample: Any = sample) -> jax.Array:
            return sample(values, levels, locations, weights)

        yield f"deformable attention: {name}", (function, samples)
        yield f"deformable attention: {name}, with gradient", (with_gradient(function, 3), samples)


def network_parts(bench: Bench) -> Iterator[tuple[str, Part]]:
    """Yield backbone, heads, matching, loss and style network, in bfloat16 where a bfloat16 step uses it."""
    model, batch, params = SegmentationModel(bench.model("bfloat16")), bench.plan.some, bench.params
    pixels, blocks = random_images(bench.size.image, batch)
    images, labels = normalize(jnp.asarray(pixels)), jnp.asarray(blocks)
    trained = {name: x for name, x in params.items() if not name.startswith("backbone/")}

    def features(trained: Any, images: Any) -> Features:
        return model.features(params | trained, images)

    levels, queries, _ = jax.jit(features)(trained, images)
    logits = jax.jit(lambda levels: model.decode(params, Features(levels, queries)))(levels)
    loss = functools.partial(mask_set_loss, LossConfig(points=bench.size.points), jax.random.key(0))

    def set_loss(classes: Any, masks: Any, labels: Any) -> jax.Array:
        return sum(loss(classes, masks, labels).values(), jnp.zeros(()))

    yield "backbone", (features, (trained, images))
    yield (
        "backbone, with gradient",
        (with_gradient(lambda trained, images: jnp.stack(features(trained, images).levels), 1), (trained, images)),
    )
    decode = functools.partial(_decoded, model, params, queries)
    yield "head", (decode, (trained, levels))
    yield "head, with gradient", (with_gradient(decode, 2), (trained, levels))
    rebuild = functools.partial(_rebuilt, model, params)
    yield "reconstruction head", (rebuild, (trained, levels))
    yield "reconstruction head, with gradient", (with_gradient(rebuild, 2), (trained, levels))
    yield "set loss", (set_loss, (*logits, labels))
    yield "set loss, with gradient", (jax.grad(set_loss, (0, 1)), (*logits, labels))
    costs = jax.random.normal(jax.random.key(0), (PREDICTIONS * batch, queries.shape[0], CLASSES))
    present = jnp.ones(CLASSES, bool)
    yield "matching", (jax.vmap(lambda cost: matching.match(cost, present)), (costs,))
    network = StyleNetwork("mobile", "bfloat16")
    style = {name: jnp.asarray(x) for name, x in load_style(network).items()}
    unit = jnp.asarray(pixels[:1] / 255, jnp.float32)

    def restyle(style: Any, images: Any) -> jax.Array:
        return network.stylize(style, images, network.encode(style, images))

    yield "style network, one image", (restyle, (style, unit))


def _decoded(model: SegmentationModel, params: Any, queries: Any, trained: Any, levels: Any) -> jax.Array:
    """Return all predictions as one array, so that the gradient covers the same outputs as in a step."""
    classes, masks = model.decode(params | trained, Features(levels, queries))
    return jnp.concatenate([classes.ravel(), masks.ravel()])


def _rebuilt(model: SegmentationModel, params: Any, trained: Any, levels: Any) -> jax.Array:
    return model.reconstruct(params | trained, levels)


def measure_step(bench: Bench, records: Records, folder: Any) -> None:
    """Measure the step with every set of compiler options, and trace it with the defaults."""
    case = Case("step", bench.size.image, bench.plan.some, "bfloat16", "ours")
    for options in OPTIONS if bench.plan.precisions == stage.PRECISIONS else OPTIONS[:1]:
        name = ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"
        if f"options/{name}" in records:
            continue
        try:
            built = build_step(bench, case, bench.plan.some, options)
            found = stage.measure(built.start, jax.block_until_ready, bench.plan.seconds)
        except jax.errors.JaxRuntimeError as error:
            records.add(f"options/{name}", error=str(error)[:300])
            continue
        records.add(f"options/{name}", compile_seconds=built.compile_seconds, **found)
        if not options and "kernels" not in records:
            shutil.rmtree(folder, ignore_errors=True)
            with jax.profiler.trace(folder):
                jax.block_until_ready(built.start())
            records.add("kernels", **costliest(folder))


if __name__ == "__main__":
    command.run(main)
