"""Check numerical results on this device: `python -m benchmarks.gpu.right …`

- Scores of one image at full size compared with PyTorch's on the same device, in float32, tf32 and bfloat16.
- Error of a float32 matrix product at JAX's default precision.
- The same training step twice: whether the bits are equal, else which tensors differ and which compiler option helps.
- The bfloat16 step compared with the float32 step: loss and direction of the gradient.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import subprocess
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workers
from benchmarks.gpu import stage
from benchmarks.gpu.ours import PRODUCTS, Bench, config_of_step, start_of_training
from benchmarks.gpu.stage import Case, Records
from benchmarks.images import random_images
from crossearth_jax.config import MeshConfig
from crossearth_jax.models.network import SegmentationModel
from crossearth_jax.ops.normalization import normalize
from crossearth_jax.runtime import command, parallel

# Limits. That of the scores is the same as on a CPU (scores range from 0 to about 49); the others compare bfloat16 with
# float32.
SCORES_BAR = 2e-3
BFLOAT16_SCORES = 0.05  # norm of the difference divided by the norm of the scores
BFLOAT16_LOSS = 0.02  # relative difference
BFLOAT16_COSINE = 0.95  # of the gradients
SCORED = ("float32", "tf32", "bfloat16")
DETERMINISTIC: tuple[dict[str, Any], ...] = (
    {},
    {"xla_gpu_deterministic_ops": True},
    {"xla_gpu_exclude_nondeterministic_ops": True},
)


def main(argv: Sequence[str]) -> None:
    """Run the checks that are not yet in the records."""
    arguments = stage.parser("benchmarks.gpu.right").parse_args(argv)
    records = Records(arguments.records)
    theirs = arguments.scratch / "theirs.npy"
    if arguments.torch_python and not theirs.exists():
        # Before this process allocates the memory of the GPU.
        given = ("--size", arguments.size, "--scratch", str(arguments.scratch), "--records", str(arguments.records))
        program = workers.torch_command(
            arguments.torch_python, "scores", f"--save={theirs}", *given, module="accelerator"
        )
        subprocess.run(program, check=True, cwd=workers.ROOT)
    bench = Bench.load(arguments.size, arguments.scratch / f"{arguments.size}.pth")
    if "default precision" not in records:
        records.add("default precision", **default_precision())
    compare_scores(bench, np.load(theirs) if theirs.exists() else None, records)
    if not {"step twice", "bfloat16 step"} <= records.found.keys():
        # Nothing is timed here and compilation takes most of the time, so all run in parallel.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            twice = pool.submit(repeated_step, bench)
            both = [pool.submit(gradients, bench, precision) for precision in ("float32", "bfloat16")]
            records.add("bfloat16 step", **compare_gradients(*(future.result() for future in both)))
            records.add("step twice", **twice.result())
    if failed := [name for name, record in records.found.items() if record.get("holds") is False]:
        raise SystemExit(f"beyond the bar: {', '.join(failed)}")


def default_precision(size: int = 1024) -> dict[str, Any]:
    """Return relative errors of a float32 matrix product: about 1e-3 with operands in tf32, 1e-6 without."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    products = {name: np.asarray(jnp.matmul(a, b, precision=name)) for name in ("default", "highest")}
    return {f"error_{name}": relative(product, exact) for name, product in products.items()}


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference divided by the norm of `expected`."""
    return float(np.linalg.norm(np.float64(found) - expected) / np.linalg.norm(np.float64(expected)))


def compare_scores(bench: Bench, theirs: np.ndarray | None, records: Records) -> None:
    """Compare scores of one image at every precision with PyTorch's in float32 (without PyTorch, with our own)."""
    images = normalize(jnp.asarray(random_images(bench.size.image)[0]))
    expected = theirs
    for precision in SCORED if not all(f"scores/{precision}" in records for precision in SCORED) else ():
        model = SegmentationModel(bench.model(precision))
        with jax.default_matmul_precision(PRODUCTS[precision]):
            scores = np.asarray(jax.jit(model.scores)(bench.params, images))
        if expected is None:
            expected = scores
        found: dict[str, Any] = {
            "oracle": "PyTorch" if theirs is not None else "ours",
            "greatest_difference": float(np.abs(scores - expected).max()),
            "relative_difference": relative(scores, expected),
            "same_class": float((scores.argmax(-1) == expected.argmax(-1)).mean()),
            "greatest_score": float(expected.max()),
        }
        if precision == "float32":
            found |= {"bar": SCORES_BAR, "holds": found["greatest_difference"] <= SCORES_BAR}
        if precision == "bfloat16":
            found |= {"bar": BFLOAT16_SCORES, "holds": found["relative_difference"] <= BFLOAT16_SCORES}
        records.add(f"scores/{precision}", **found)


def step_case(bench: Bench, precision: str) -> Case:
    """Return the case of a step of both tasks on two images."""
    return Case("both", bench.size.image, 2, precision, "ours")


def repeated_step(bench: Bench) -> dict[str, Any]:
    """Run the same bfloat16 step twice; if bits differ, repeat it with compiler options for determinism."""
    case = step_case(bench, "bfloat16")
    tried: list[dict[str, Any]] = []
    for options in DETERMINISTIC:
        with jax.set_mesh(parallel.make_mesh(MeshConfig(), jax.devices()[:1])):
            program, state, arguments = start_of_training(bench, config_of_step(bench, case, 2), case.side)
            compiled = program.step.lower(state, *arguments).compile(options)
            results = []
            for _ in range(2):
                state = program.create_state({name: bench.params[name] for name in program.trainable})
                after, metrics = compiled(state, *arguments)
                results.append(jax.device_get((after.trainable, metrics)))
        pairs = zip(jax.tree.leaves_with_path(results[0]), jax.tree.leaves(results[1]), strict=True)
        differing = {
            jax.tree_util.keystr(path): float(np.abs(np.float64(one) - np.float64(other)).max())
            for (path, one), other in pairs
            if not np.array_equal(one, other, equal_nan=True)
        }
        tried.append({"options": options, "differing": len(differing), "greatest": dict(list(differing.items())[:10])})
        if not differing:
            break
    first, last = (one["differing"] == 0 for one in (tried[0], tried[-1]))
    return {"same_bits_by_default": first, "same_bits": last, "tried": tried}


def gradients(bench: Bench, precision: str) -> tuple[Any, Any]:
    """Return gradients and loss terms of a step at a precision, in host memory."""
    case = step_case(bench, precision)
    config = config_of_step(bench, case, 2)
    # The loss samples points by their logits, and rounding would change the choice; here it uses all candidates.
    assert config.loss is not None
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, oversample=1.0, importance=1.0))
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh), jax.default_matmul_precision(PRODUCTS[precision]):
        program, state, arguments = start_of_training(bench, config, case.side)
        return jax.device_get(program.gradients(state, *arguments))


def compare_gradients(exact: tuple[Any, Any], rounded: tuple[Any, Any]) -> dict[str, Any]:
    """Return the relative difference of the losses and the cosine similarity of all gradients as one vector."""
    (expected, terms), (found, found_terms) = exact, rounded
    norms = [np.sqrt(sum(np.vdot(x, x) for x in tree.values())) for tree in (expected, found)]
    cosine = float(sum(np.vdot(expected[name], found[name]) for name in expected) / (norms[0] * norms[1]))
    difference = abs(float(found_terms["loss"] / terms["loss"]) - 1)
    return {
        "loss_difference": difference,
        "gradient_cosine": cosine,
        "bars": {"loss_difference": BFLOAT16_LOSS, "gradient_cosine": BFLOAT16_COSINE},
        "holds": difference <= BFLOAT16_LOSS and cosine >= BFLOAT16_COSINE,
    }


if __name__ == "__main__":
    command.run(main)
