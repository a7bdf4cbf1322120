"""Record device, driver and versions of a measurement: `python -m benchmarks.gpu.machine …`"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.gpu import stage
from benchmarks.gpu.stage import Records
from benchmarks.host import machine
from crossearth_jax.runtime import command

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "orbax-checkpoint", "numpy")
TORCH = (
    "import json, torch; cuda = torch.cuda.is_available();"
    "print(json.dumps({'version': torch.__version__, 'cudnn': torch.backends.cudnn.version(),"
    "'device': torch.cuda.get_device_name() if cuda else 'cpu'}))"
)


def main(argv: Sequence[str]) -> None:
    """Record device, driver and versions."""
    arguments = stage.parser("benchmarks.gpu.machine").parse_args(argv)
    records = Records(arguments.records)
    device = jax.devices()[0]
    memory: Any = device.memory_stats() or {}
    records.add(
        "jax", device=device.device_kind, platform=device.platform, devices=jax.device_count(),
        bytes_limit=memory.get("bytes_limit"), xla_flags=os.environ.get("XLA_FLAGS", ""),
    )  # fmt: skip
    records.add("versions", python=platform.python_version(), **versions())
    records.add("host", **machine())
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        records.add("nvidia-smi", text=subprocess.run(query, capture_output=True, text=True).stdout.strip())
    if arguments.torch_python:
        found = subprocess.run([arguments.torch_python, "-c", TORCH], check=True, capture_output=True, text=True)
        records.add("torch", **json.loads(found.stdout))


def versions() -> dict[str, str]:
    """Return the versions of those of `PACKAGES` that are installed."""
    installed = {distribution.name.lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


if __name__ == "__main__":
    command.run(main)
