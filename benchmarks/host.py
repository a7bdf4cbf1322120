"""Describe the machine of a measurement."""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import sys
from typing import Any


def machine() -> dict[str, Any]:
    """Return processor, load, system, Python version and date."""
    model = ""
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "date": datetime.datetime.now().date().isoformat(),
    }
