"""Format the records of `compile.json`: the lines that `--mode=compile` prints, and the tables of `compile.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = (
    "step", "slice", "mesh (data, fsdp, model)", "images per chip", "HBM GiB: arguments", "temporaries",
    "results, not aliased", "total", "TFLOP", "MB sent", "roofline ms (compute, memory, links, network)",
    "compiler's estimate", "compiled in s",
)  # fmt: skip


def step_line(record: Mapping[str, Any]) -> str:
    """Format one record for the terminal: a line, and one more for each kind of collective and reason."""
    name = (
        f"{record['step']} on {record['topology']} ({record['chips']} chips, {record['images_per_chip']:g} images each)"
    )
    if "failure" in record:
        return f"{name}: {record['failure']}"
    hbm, bound = record["hbm"], record["roofline"]
    lines = [
        f"{name}: {_gib(hbm['total'])} of {_gib(hbm['capacity'])} GiB per chip (arguments {_gib(hbm['arguments'])}, "
        f"temporaries {_gib(hbm['temporaries'])}, results {_gib(hbm['outputs'])}, of which {_gib(hbm['aliased'])} "
        f"in place), {record['flops'] / 1e12:.3g} TFLOP, at least {1e3 * max(bound.values()):.1f} ms by the roofline, "
        f"{_estimate(record['compiler'])} by the compiler, compiled in {record['seconds']:.0f} s"
    ]
    for reason, kinds in record["reasons"].items():
        lines += [f"  {kind}: {size / 1e6:.3g} MB sent per chip: {reason}" for kind, size in kinds.items()]
    return "\n".join(lines)


def compile_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Format all records as a Markdown table, followed by a table of their collectives."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *(_line(_row(record)) for record in records), ""]
    lines += [_line(["step", "slice", "collective", "MB sent", "why"]), _line(["---"] * 5)]
    for record in records:
        for reason, kinds in record.get("reasons", {}).items():
            for kind, size in kinds.items():
                lines.append(_line([record["step"], record["topology"], kind, f"{size / 1e6:.3g}", reason]))
    return "\n".join(lines) + "\n"


def _row(record: Mapping[str, Any]) -> list[str]:
    mesh = ", ".join(str(size) for size in record["mesh"].values())
    start = [record["step"], record["topology"], mesh, f"{record['images_per_chip']:g}"]
    if "failure" in record:
        return [*start, record["failure"], *[""] * (len(_COLUMNS) - len(start) - 1)]
    hbm, bound = record["hbm"], record["roofline"]
    return [
        *start,
        _gib(hbm["arguments"]),
        _gib(hbm["temporaries"]),
        _gib(hbm["outputs"] - hbm["aliased"]),
        f"{_gib(hbm['total'])} of {_gib(hbm['capacity'])}",
        f"{record['flops'] / 1e12:.3g}",
        f"{sum(record['sent'].values()) / 1e6:.3g}",
        ", ".join(f"{1e3 * bound[part]:.1f}" for part in ("compute", "memory", "interconnect", "network")),
        _estimate(record["compiler"]),
        f"{record['seconds']:.0f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gib(size: int | float) -> str:
    return f"{size / 2**30:.2f}"


def _estimate(compiler: Mapping[str, Any]) -> str:
    """Format the compiler's own estimates: `optimal_seconds` if positive (it is not with loops) and cycles if known."""
    seconds, cycles = compiler["optimal_seconds"], compiler["cycles"]
    estimates = [f"{1e3 * seconds:.1f} ms"] if seconds and seconds > 0 else []
    return ", ".join([*estimates, f"{cycles / 1e6:.0f} Mcycles"] if cycles else estimates) or "none"
