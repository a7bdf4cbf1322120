"""The Dockerfile agrees with package and documentation. `.ci/run` builds it, or runs its RUN step in a shell."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def instructions() -> dict[str, str]:
    """Return the arguments of the instructions by name; no instruction occurs twice."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", "")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


def test_base_image_has_the_python_of_the_tests():
    version = (ROOT / ".python-version").read_text("utf-8").strip()
    assert instructions()["FROM"] == f"python:{version}-slim"


def test_files_that_are_copied_exist():
    assert instructions()["COPY"] == ". /source"
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert rules[0] == "*"
    copied = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    needed = {*tool["package-dir"].values(), "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]}
    assert copied >= needed | {"pyproject.toml"}


@pytest.mark.parametrize("accelerator", ["cpu", "cuda12", "cuda13"])
def test_step_installs_what_the_documentation_installs(accelerator):
    """Run the step with a `pip` that prints its arguments and an `rm` that does nothing."""
    stubs = "pip() { printf '%s\\n' \"$@\"; }; rm() { :; }"
    step = f"{stubs}; ACCELERATOR={accelerator}; {instructions()['RUN']}"
    done = subprocess.run(["sh", "-c", step], capture_output=True, text=True, check=True)
    *options, package = done.stdout.split()
    assert options == ["install", "--no-cache-dir", "-c", "/source/constraints.txt"]
    extras = set(re.fullmatch(r"/source\[(.*)\]", package)[1].split(","))
    documented = r"uv pip install --python \.venv -c constraints\.txt -e '\.\[(\w+)\]'"
    (of_documentation,) = re.findall(documented, (ROOT / "docs" / "index.md").read_text("utf-8"))
    assert extras == {of_documentation} | ({accelerator} - {"cpu"})
    assert extras <= PROJECT["optional-dependencies"].keys()


def test_command_is_that_of_the_package():
    assert instructions()["ENTRYPOINT"] == '["crossearth"]' and "crossearth" in PROJECT["scripts"]
