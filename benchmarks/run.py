"""Measure time and memory of this package, compared with PyTorch in the same run.

`python -m benchmarks.run [NAMES...] [--torch_python=PATH] [--rounds=5] [--out=benchmarks.json]`

NAMES are parity, forward, step, styled, inputs, decoders, deformable, predict and busy; without names, all of them.
Without --torch_python, only this package is measured. Prints a table and writes all numbers to a JSON file.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from absl import logging

from benchmarks import network, parts
from benchmarks.host import machine
from benchmarks.network import Options, Result
from benchmarks.sizes import SIZES
from crossearth_jax.config import ViTConfig
from crossearth_jax.runtime import command


def of_maps(name: str) -> Callable[[Options], Result]:
    """Return a measure of `benchmarks.maps`, left out where the extra `geo` is not installed."""

    def measure(options: Options) -> Result:
        try:
            from benchmarks import maps
        except ModuleNotFoundError as error:
            return {"left_out": f"{error.name} is not installed; install the extra geo"}
        return getattr(maps, name)(options)

    return measure


MEASURES: dict[str, Callable[[Options], Result]] = {
    "parity": network.parity,
    "forward": network.forward,
    "step": network.step,
    "styled": network.styled,
    "inputs": parts.inputs,
    "decoders": parts.decoders,
    "deformable": parts.deformable,
    "predict": of_maps("predict"),
    "busy": of_maps("busy"),
}


class Bar(NamedTuple):
    """A limit for a measured number."""

    what: str
    path: tuple[str, ...]  # keys in the results
    limit: float
    at_most: bool = True  # whether `limit` is an upper or a lower limit


BARS = (
    Bar("converting: peak memory, bytes", ("parity", "convert_peak_bytes"), 6e9),
    Bar("scoring one window: peak memory, bytes", ("parity", "score_peak_bytes"), 6e9),
    Bar("scores: greatest difference from PyTorch", ("parity", "greatest_difference"), 2e-3),
    Bar("forward: time / PyTorch's", ("forward", "ratios", "scores/seconds", "median"), 0.75),
    Bar("backbone: share of the product's peak", ("forward", "ours", "backbone_share_of_gemm", "median"), 0.75, False),
    Bar("training step: time / PyTorch's", ("step", ViTConfig.remat, "ratios", "step/seconds", "median"), 0.7),
    Bar("training step: memory / PyTorch's", ("step", ViTConfig.remat, "ratios", "memory"), 0.6),
    Bar("training step: compilation, s", ("step", ViTConfig.remat, "ours", "facts", "step", "compile_seconds"), 90),
    Bar("a tenth restyled: time / none restyled", ("styled", "ratio_at_one_tenth", "median"), 1.1),
    Bar("both tasks: time / segmentation alone", ("styled", "ratio_of_both_tasks", "median"), 1.6),
    Bar("map: time / its network's", ("busy", "map", "ratio_to_network", "median"), 1.05),
    Bar("evaluation: time / its network's", ("busy", "evaluation", "ratio_to_network", "median"), 1.05),
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Run the measurements given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAMES", help=", ".join(MEASURES))
    parser.add_argument("--torch_python", help="interpreter with torch, numpy and scipy")
    parser.add_argument("--size", choices=SIZES, default="vit_l")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks.json"))
    parser.add_argument("--scratch", type=pathlib.Path, help="folder to keep the checkpoint (1.3 GB) for the next run")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.names) - set(MEASURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MEASURES)}")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.scratch or pathlib.Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        options = Options(scratch, arguments.size, arguments.torch_python, arguments.rounds, arguments.threads)
        results: Result = {"machine": machine(), "options": {k: str(v) for k, v in vars(options).items()}}
        for name in arguments.names or MEASURES:
            logging.info("measuring: %s", name)
            results[name] = MEASURES[name](options)
            network.write(arguments.out, results)
    for line in table(results):
        print(line)


def table(results: Result) -> Iterator[str]:
    """Yield the lines of the table of limits that were measured, then every number."""
    yield "| what | bar | found | |"
    yield "|---|---|---|---|"
    for bar in BARS:
        found = _at(results, bar.path)
        if found is not None:
            holds = found <= bar.limit if bar.at_most else found >= bar.limit
            sign = "≤" if bar.at_most else "≥"
            yield f"| {bar.what} | {sign} {bar.limit:g} | {found:.4g} | {'holds' if holds else 'misses'} |"
    yield ""
    yield from _numbers(results)


def _at(results: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        if key not in results:
            return None
        results = results[key]
    return float(results)


def _numbers(value: Any, path: str = "") -> Iterator[str]:
    """Yield one line per number; median, minimum and maximum share a line."""
    if isinstance(value, dict) and set(value) == {"median", "min", "max"}:
        yield f"{path[1:]:70} {value['median']:12.5g}   {value['min']:.5g} … {value['max']:.5g}"
    elif isinstance(value, dict):
        for key, part in value.items():
            if key == "rounds":  # single rounds are only in the file
                continue
            yield from _numbers(part, f"{path}.{key}")
    elif isinstance(value, float | int):
        yield f"{path[1:]:70} {value:12.5g}"
    else:
        yield f"{path[1:]:70} {value}"


if __name__ == "__main__":
    command.run(main)
