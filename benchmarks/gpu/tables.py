"""Write the tables of `docs/performance.md` from the committed results: `python -m benchmarks.gpu.tables [--check]`

Every folder in `benchmarks/gpu/results/` contains the results of one run on one GPU. Without results, the page says
that nothing has been measured yet.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.run import ROOT
from benchmarks.gpu.stage import write_atomically
from crossearth_jax.config import UserError
from crossearth_jax.runtime import command

RESULTS = ROOT / "benchmarks" / "gpu" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- accelerator tables: begin -->", "<!-- accelerator tables: end -->"
NOTHING = "Not yet measured: the run is prepared and rehearsed on a CPU, and no GPU has been at hand."
COMPARED = ("step", "forward", "both", "styled", "predict")
VARIANTS = ("ours", "compiled", "eager", "eager, attention not fused")

type Records = Mapping[str, Mapping[str, Any]]


def main(argv: Sequence[str]) -> None:
    """Write the page, or check it.

    Raises:
      UserError: with --check, the page does not agree with the results.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args(argv)
    before = PAGE.read_text("utf-8")
    after = with_tables(before, "\n".join(page_part(RESULTS)))
    if not arguments.check:
        write_atomically(PAGE, after)
    elif before != after:
        raise UserError(f"{PAGE.name} does not agree with the results; run python -m benchmarks.gpu.tables")


def with_tables(page: str, tables: str) -> str:
    """Return the page with new tables between the two marks."""
    start, rest = page.split(BEGIN)
    return f"{start}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}"


def page_part(results: pathlib.Path) -> Iterator[str]:
    """Yield the lines of the page about all runs."""
    runs = sorted(path for path in results.glob("*/") if list(path.glob("*.json")))
    if not runs:
        yield NOTHING
    for number, folder in enumerate(runs):
        stages = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
        if number:
            yield ""
        yield from of_run(folder.name, stages)


def of_run(name: str, stages: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about one run."""
    found = {stage: {record["name"]: record for record in result["records"]} for stage, result in stages.items()}
    yield from heading(name, stages, found.get("machine", {}))
    records = {key: record for stage in found.values() for key, record in stage.items()}
    parts = (
        ("Right", right_rows(found.get("right", {}), found.get("golden", {}))),
        ("Beside PyTorch", compared_rows(records)),
        ("Parts of a step, bfloat16", part_rows(found.get("parts", {}), records)),
        ("The costliest kernels of a step, bfloat16", kernel_rows(records.get("kernels", {}))),
        ("Options of the compiler, the same step", option_rows(records)),
    )
    for title, rows in parts:
        lines = list(rows)
        if len(lines) > 2:  # more than the head of a table
            yield from ("", f"**{title}**", "", *lines)
    if job := records.get("blue_marble"):
        yield from ("", f"The README's run took {job['seconds']:.0f} s from the command to the report.")


def heading(name: str, stages: Mapping[str, Any], machine: Records) -> Iterator[str]:
    """Yield the lines about GPU, versions, date, command and incomplete stages."""
    versions = {key: value for key, value in machine.get("versions", {}).items() if key != "name"}
    versions["torch"] = machine.get("torch", {}).get("version", "none")
    yield f"### {machine.get('jax', {}).get('device', name)}"
    yield ""
    yield f"{', '.join(f'{key} {value}' for key, value in versions.items())}. Card and driver: " + (
        machine.get("nvidia-smi", {}).get("text", "no NVIDIA card") + "."
    )
    dates = sorted(stage["date"] for stage in stages.values())
    days = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    yield f"Measured on {days} by `python -m benchmarks.gpu.run --out=DIR`;"
    yield f"every number is in `benchmarks/gpu/results/{name}/records.csv`."
    if missing := [f"{key} ({stage['outcome']})" for key, stage in stages.items() if stage["outcome"] != "complete"]:
        yield f"Not complete: {', '.join(missing)}."


def right_rows(right: Records, golden: Records) -> Iterator[str]:
    """Yield the table of numerical checks."""
    yield "| what | found | bar |"
    yield "|---|---|---|"
    if record := right.get("default precision"):
        error, exact = record["error_default"], record["error_highest"]
        yield f"| float32 product, JAX's default / `highest`: relative error | {error:.1e} / {exact:.1e} | |"
    for precision in ("float32", "tf32", "bfloat16"):
        if record := right.get(f"scores/{precision}"):
            difference = f"{record['greatest_difference']:.1e} ({record['relative_difference']:.1e} of the norm)"
            bar = f"{record['bar']:g}" if "bar" in record else ""
            yield f"| scores, {precision}: greatest difference from {record['oracle']} | {difference} | {bar} |"
    if record := right.get("bfloat16 step"):
        yield (
            f"| step in bfloat16 against float32: loss, cosine of the gradients | {record['loss_difference']:.1e}, "
            f"{record['gradient_cosine']:.4f} | {record['bars']['loss_difference']:g}, "
            f"{record['bars']['gradient_cosine']:g} |"
        )
    if record := right.get("step twice"):
        last = record["tried"][-1]["options"]
        with_options = f"with {', '.join(last)}" if record["same_bits"] else "no, whatever the options"
        yield f"| the same step twice: same bits | {'yes' if record['same_bits_by_default'] else with_options} | |"
    for name, record in golden.items():
        precision, tests = name.split(": ")
        found = f"{record['passed']} passed, {len(record['failed'])} failed"
        yield f"| tests, products `{precision}`: {tests} | {found} | {'all' * (precision == 'highest')} |"


def compared_rows(records: Records) -> Iterator[str]:
    """Yield the table of throughput, memory and share of the peak rate, for this package and PyTorch's variants."""
    yield (
        "| task | pixels | images | precision | ours, images/s | compiled | eager | not fused | ours / compiled "
        "| memory, GiB: ours / compiled | share of the product's rate: ours / compiled |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    measured = [record for record in records.values() if record.get("variant") == "ours"]
    for ours in sorted(measured, key=lambda record: COMPARED.index(record["task"])):
        stem = ours["name"].rsplit("/", 1)[0]
        sides = [records.get(f"{stem}/{variant}", {}) for variant in VARIANTS]
        rates = [side["images"] / side["seconds"] if "seconds" in side else None for side in sides]
        ratio = rates[0] / rates[1] if rates[0] and rates[1] else None
        memory = [side.get("bytes") and side["bytes"] / 2**30 for side in sides[:2]]
        ceiling = records.get(f"product/{ours['precision']}", {}).get("flops_per_second")
        by_image = ours["flops"] / ours["images"] if "flops" in ours else None
        shares = [by_image * rate / ceiling if by_image and rate and ceiling else None for rate in rates[:2]]
        images = " / ".join(str(side["images"]) for side in sides[:2] if "images" in side) if not ours["batch"] else ""
        yield (
            f"| {ours['task']} | {ours['side']} | {images or ours['batch']} | {ours['precision']} "
            f"| {' | '.join(number(rate) for rate in rates)} | {number(ratio)} "
            f"| {' / '.join(map(number, memory))} | {' / '.join(map(number, shares))} |"
        )


def part_rows(parts: Records, records: Records) -> Iterator[str]:
    """Yield the table of times and lower bounds of parts."""
    yield "| part | ms | floor by products, ms | floor by bytes, ms | floor / time |"
    yield "|---|---|---|---|---|"
    rate = records.get("product/bfloat16", {}).get("flops_per_second")
    bandwidth = records.get("copy", {}).get("bytes_per_second")
    for name, record in parts.items():
        if "error" in record:
            yield f"| {name} | {' '.join(record['error'].split())[:80]} | | | |"
        elif rate and bandwidth:
            floors = record["flops"] / rate, record["bytes"] / bandwidth
            times = " | ".join(number(1000 * seconds) for seconds in (record["seconds"], *floors))
            yield f"| {name} | {times} | {number(max(floors) / record['seconds'])} |"


def kernel_rows(trace: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of kernels in a trace."""
    yield "| kernel | calls | ms | share |"
    yield "|---|---|---|---|"
    for kernel in trace.get("kernels", ()):
        share = f"{100 * kernel['share']:.1f} %"
        yield f"| `{kernel['kernel'][:60]}` | {kernel['calls']} | {number(1000 * kernel['seconds'])} | {share} |"


def option_rows(records: Records) -> Iterator[str]:
    """Yield the table of step times by compiler options, relative to the defaults."""
    yield "| options | ms | by the defaults' |"
    yield "|---|---|---|"
    defaults = records.get("options/defaults", {}).get("seconds")
    for name, record in records.items():
        if name.startswith("options/") and "seconds" in record and defaults:
            seconds = record["seconds"]
            yield f"| {name.removeprefix('options/')} | {number(1000 * seconds)} | {number(seconds / defaults)} |"


def number(value: float | None) -> str:
    """Format with three digits, or a dash if the value is missing."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    command.run(main)
