"""Every file that gives the address of the repository gives that of `pyproject.toml`."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]
GITHUB = re.compile(r"github\.com/([\w.-]+/crossearth_jax)\b|colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/")
PLACEHOLDER = "ORGAN" + "ISATION"  # in two parts, so that the command of CONTRIBUTING.md does not replace it here
FOLDERS = ("benchmarks", "configs", "crossearth_jax", "data", "docs", "notebooks", "tests")
SUFFIXES = (".cff", ".ipynb", ".md", ".py", ".toml", ".yml")


def texts() -> dict[str, str]:
    """Return the texts of the repository by file name."""
    paths = [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    found = [path for path in paths if path.suffix in SUFFIXES or path.name == "Dockerfile"]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in found}


def test_all_files_give_the_same_address():
    named = {name: {a or b for a, b in GITHUB.findall(text)} for name, text in texts().items()}
    named = {name: found for name, found in named.items() if found}
    assert set.union(*named.values()) == {ADDRESS.removeprefix("https://github.com/")}
    assert named.keys() >= {"pyproject.toml", "CITATION.cff", "notebooks/evaluate_colab.ipynb", "docs/index.md"}


def test_citation_gives_the_address_and_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert citation["repository-code"] == ADDRESS
    assert citation["version"] == project["version"]


def test_placeholder_stands_only_in_addresses():
    """So that one replacement of the word sets the address; CONTRIBUTING.md and pyproject.toml explain the word."""
    for name, text in texts().items():
        if name not in ("CONTRIBUTING.md", "pyproject.toml"):
            assert text.count(PLACEHOLDER) == text.count(f"github.com/{PLACEHOLDER}/crossearth_jax") + text.count(
                f"colab.research.google.com/github/{PLACEHOLDER}/crossearth_jax/"
            ), name
