"""Structure of the code: direction of imports, allowed places of large dependencies, module names.

Only the syntax trees are read. Imports inside functions count, and nothing has to be importable.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Modules and packages of crossearth_jax from the lowest layer to the highest. A unit may import only lower layers.
LAYERS = (
    ("config",),
    ("runtime",),
    ("benchmark",),
    ("config_check",),
    ("ops",),
    ("inputs", "augment", "models", "losses"),
    ("weights",),
    ("training", "reporting"),
    ("inference",),
    ("mapping", "analysis", "aot", "exporting"),
    ("predict", "report", "prepare", "convert", "estimate_style", "export", "push", "replay"),
    ("main", "__init__", "__main__"),
)

# Dependency -> the only places (files or folders) that may import it.
HOMES = {
    "flax": ("crossearth_jax/models/",),
    "optax": ("crossearth_jax/training/", "crossearth_jax/ops/matching.py"),
    "rasterio": (
        "crossearth_jax/mapping/",
        "crossearth_jax/estimate_style.py",
        "crossearth_jax/benchmark/own_files.py",  # sizes of images from their headers
        "data/",
    ),
    "pyogrio": ("crossearth_jax/mapping/", "data/"),
    "shapely": ("crossearth_jax/mapping/", "data/"),
    "tensorflow_datasets": ("crossearth_jax/inputs/sources.py", "crossearth_jax/prepare.py", "data/"),
    "sklearn": (
        "crossearth_jax/analysis/baselines.py",
        "crossearth_jax/inference/familiarity.py",
        "crossearth_jax/reporting/",
    ),
    "matplotlib": ("crossearth_jax/reporting/",),
    "jinja2": ("crossearth_jax/reporting/rendering.py",),
    "tensorboardX": ("crossearth_jax/training/writer.py",),
    "onnx": ("crossearth_jax/exporting/", "crossearth_jax/weights/onnx_style.py"),
    "huggingface_hub": (),  # optional: weights/hub.py imports it by name when it is needed
    "tensorflow": (),
    "torch": (),
    "cv2": (),
}

# The packages that the builders in data/ (import name crossearth_data) may import.
DATA_MAY_IMPORT = {"benchmark", "config", "runtime", "mapping"}  # mapping: rasters are read like scenes of predict

MAX_CONFIG = 100  # maximum number of lines of an experiment


def sources(*folders: str) -> list[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in paths if not path.name.endswith("_test.py"))


def imports(file: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import; `from a import b` gives a.b, relative imports are resolved."""
    package = list(Path(file).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*module, alias.name])) for alias in node.names)


def unit_of(parts: list[str]) -> str:
    """Return the entry of LAYERS that contains an imported name; `__init__` for names defined by the package itself."""
    known = {unit for layer in LAYERS for unit in layer}
    exists = len(parts) > 1 and any((ROOT / "crossearth_jax" / (parts[1] + end)).exists() for end in ("", ".py"))
    return parts[1] if len(parts) > 1 and (parts[1] in known or exists) else "__init__"


def direction_breaches(file: str, text: str) -> Iterator[str]:
    """Find imports of the same layer or of a higher one."""
    level = {unit: i for i, layer in enumerate(LAYERS) for unit in layer}
    own = Path(file).with_suffix("").parts[1]
    if own not in level:
        yield f"{file}: '{own}' is in no layer of tests/architecture_test.py; add it to LAYERS where it belongs"
        return
    for line, name in imports(file, text):
        parts = name.split(".")
        if parts[0] == "crossearth_data" and own != "prepare":
            yield f"{file}:{line} imports {name}: only prepare.py loads the builders, others go through inputs/"
        if parts[0] != "crossearth_jax" or (unit := unit_of(parts)) == own:
            continue
        if level.get(unit, len(LAYERS)) >= level[own]:
            yield (
                f"{file}:{line} imports {name}: '{own}' may only import layers below its own; move what both need "
                "down, or let the caller pass it in"
            )


def data_breaches(file: str, text: str) -> Iterator[str]:
    """Find imports of the builders that DATA_MAY_IMPORT does not allow."""
    for line, name in imports(file, text):
        parts = name.split(".")
        if parts[0] == "crossearth_jax" and unit_of(parts) not in DATA_MAY_IMPORT:
            yield f"{file}:{line} imports {name}: data/ may import only {sorted(DATA_MAY_IMPORT)} of crossearth_jax"


def home_breaches(file: str, text: str) -> Iterator[str]:
    """Find imports of large dependencies outside the places in HOMES."""
    for line, name in imports(file, text):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None and not file.startswith(homes):
            where = f"belongs in {' or '.join(homes)}" if homes else "is not a dependency"
            yield f"{file}:{line} imports {name}: {name.split('.')[0]} {where}"


def shape_breaches(file: str, text: str) -> Iterator[str]:
    """Find experiments that are too long, and modules with names that say nothing about their content."""
    lines = len(text.splitlines())
    if file.startswith("configs/") and lines > MAX_CONFIG:
        yield f"{file}: {lines} lines, at most {MAX_CONFIG}; an experiment says what differs from the defaults"
    if Path(file).stem in ("util", "utils", "helpers", "misc"):
        yield f"{file}: name the module after what it does, or move each function to where it is used"


def test_no_two_modules_of_the_package_share_a_name():
    stems = Counter(Path(file).stem for file in sources("crossearth_jax") if not file.endswith("__init__.py"))
    assert [stem for stem, count in stems.items() if count > 1] == []


@pytest.mark.parametrize(
    ("check", "folders"),
    [
        (direction_breaches, ["crossearth_jax"]),
        (data_breaches, ["data"]),
        (home_breaches, ["crossearth_jax", "data", "configs"]),
        (shape_breaches, ["crossearth_jax", "data", "configs"]),
    ],
)
def test_repository(check, folders):
    breaches = [breach for file in sources(*folders) for breach in check(file, (ROOT / file).read_text("utf-8"))]
    assert not breaches, "\n" + "\n".join(breaches)


@pytest.mark.parametrize(
    ("check", "file", "text"),
    [
        (direction_breaches, "crossearth_jax/ops/tiling.py", "from crossearth_jax.models import vit"),
        (direction_breaches, "crossearth_jax/losses/mim.py", "import crossearth_jax.models.vit"),
        (direction_breaches, "crossearth_jax/losses/mim.py", "from ..augment import masking"),
        (direction_breaches, "crossearth_jax/config.py", "def f():\n  from crossearth_jax import main"),
        (direction_breaches, "crossearth_jax/training/loop.py", "from crossearth_jax import load"),
        (direction_breaches, "crossearth_jax/training/loop.py", "import crossearth_data"),
        (direction_breaches, "crossearth_jax/unheard_of/x.py", ""),
        (data_breaches, "data/casid/builder.py", "from crossearth_jax.inputs import sources"),
        (home_breaches, "crossearth_jax/losses/mim.py", "import flax.nnx as nnx"),
        (home_breaches, "crossearth_jax/ops/attention.py", "from optax import assignment"),
        (home_breaches, "crossearth_jax/weights/x.py", "import torch"),
        (shape_breaches, "configs/x.py", "x = 1\n" * 101),
        (shape_breaches, "crossearth_jax/ops/utils.py", ""),
    ],
)
def test_each_breach_is_found(check, file, text):
    assert len(list(check(file, text))) == 1


@pytest.mark.parametrize(
    ("check", "file", "text"),
    [
        (direction_breaches, "crossearth_jax/models/network.py", "from crossearth_jax.models.vit import ViT"),
        (direction_breaches, "crossearth_jax/models/network.py", "from . import vit\nfrom ..ops import resize"),
        (direction_breaches, "crossearth_jax/prepare.py", "import crossearth_data"),
        (direction_breaches, "crossearth_jax/main.py", "from crossearth_jax import config, training"),
        (data_breaches, "data/casid/builder.py", "from crossearth_jax.benchmark import DOMAINS"),
        (home_breaches, "crossearth_jax/ops/matching.py", "import optax"),
        (shape_breaches, "configs/x.py", "x = 1\n" * 100),
    ],
)
def test_what_is_allowed_passes(check, file, text):
    assert list(check(file, text)) == []
