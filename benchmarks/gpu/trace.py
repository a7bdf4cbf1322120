"""Find the most expensive kernels in a trace of `jax.profiler`."""

from __future__ import annotations

import collections
import gzip
import json
import pathlib
from typing import Any

TOP = 10


def costliest(folder: pathlib.Path, top: int = TOP) -> dict[str, Any]:
    """Return the kernels with the largest total time in the newest trace of a folder.

    Kernels are the events that name an operation of the compiled program; on a GPU, only events of its streams.

    Returns:
      `total` seconds of all kernels, and `kernels` with name, calls, seconds and share of the total.
    """
    file = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(file, "rt", encoding="utf-8") as text:
        events = json.load(text)["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "process_name"}
    devices = {pid for pid, name in names.items() if "/device:GPU" in name}
    seconds: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for event in events:
        on_device = not devices or event.get("pid") in devices
        if event.get("ph") == "X" and on_device and "hlo_op" in event.get("args", {}):
            seconds[event["name"]] += event["dur"] / 1e6
            calls[event["name"]] += 1
    total = sum(seconds.values())
    kernels = [
        {"kernel": name, "calls": calls[name], "seconds": time, "share": time / total}
        for name, time in seconds.most_common(top)
    ]
    return {"total": total, "kernels": kernels}
