"""Collect the Python packages that a machine with JAX and PyTorch may lack: `python -m benchmarks.gpu.pack`

The versions are those in `constraints.txt`. The result is `build/gpu/packages.zip` (ignored by git), with a folder for
each package. `benchmarks.gpu.run` unpacks the packages that are not installed on the machine. Needs uv.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence

from benchmarks.gpu.run import PACKED, ROOT
from crossearth_jax.config import UserError
from crossearth_jax.runtime import command

# Not included because the machine has them: JAX with flax, optax, orbax, safetensors, scipy, scikit-learn, matplotlib.
PACKAGES = (
    "absl-py", "array-record", "beartype", "cloudpickle", "dm-tree", "docstring-parser", "einops", "etils",
    "execnet", "filelock", "fsspec", "googleapis-common-protos", "grain", "immutabledict", "importlib-resources",
    "iniconfig", "jaxtyping", "jinja2", "markupsafe", "ml-collections", "packaging", "pillow", "pluggy", "portpicker",
    "promise", "psutil", "pygments", "pytest", "pytest-xdist", "simple-parsing", "six", "tensorboardx",
    "tensorflow-datasets", "tensorflow-metadata", "termcolor", "toml", "tqdm", "wadler-lindig", "wrapt", "zipp",
)  # fmt: skip
MOST_BYTES = 32 * 2**20  # together with the repository (28 MB) below 64 MiB
PYTHON, PLATFORM = "3.12", "x86_64-manylinux_2_28"


def main(argv: Sequence[str]) -> None:
    """Write the archive.

    Raises:
      UserError: a package cannot be installed, or the archive is too large.
    """
    argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pack", description=(__doc__ or "").split("\n")[0]
    ).parse_args(argv)
    pins = pinned((ROOT / "constraints.txt").read_text("utf-8"))
    PACKED.parent.mkdir(parents=True, exist_ok=True)
    unfinished = PACKED.with_suffix(".tmp")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for name in PACKAGES:
            install(f"{name}=={pins[name]}", folder / name)
        archive(folder, unfinished)
    size = unfinished.stat().st_size
    if size > MOST_BYTES:
        raise UserError(f"packages take {size:,} bytes, expected at most {MOST_BYTES:,}; leave some out of PACKAGES")
    unfinished.rename(PACKED)
    print(f"{PACKED.relative_to(ROOT)}: {len(PACKAGES)} packages, {size / 2**20:.1f} MiB")


def pinned(constraints: str) -> dict[str, str]:
    """Return the versions by package name."""
    lines = (line.split("==") for line in constraints.splitlines() if "==" in line)
    return {name: version for name, version in lines}


def install(requirement: str, folder: pathlib.Path) -> None:
    """Install one package for the platform of the machine, without its dependencies.

    Raises:
      UserError: it cannot be installed.
    """
    uv = ["uv"] if shutil.which("uv") else [sys.executable, "-m", "uv"]
    options = [f"--target={folder}", "--no-deps", f"--python-version={PYTHON}", f"--python-platform={PLATFORM}"]
    done = subprocess.run([*uv, "pip", "install", *options, requirement], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{requirement} was not installed: {' '.join(done.stderr.split())[:300]}")


def archive(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Pack all files below a folder, except compiled Python files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                packed.write(file, file.relative_to(folder))


if __name__ == "__main__":
    command.run(main)
