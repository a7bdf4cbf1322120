"""The examples in README and docs are valid: commands parse, every flag is used by a test, every name exists.

Each command is parsed by its own parser and stopped before it does anything. The tests in `RUN_BY` test the effects of
the flags.
"""

import argparse
import ast
import builtins
import copy
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from crossearth_jax import main
from crossearth_jax.__main__ import TASKS
from crossearth_jax.config import from_config_dict
from crossearth_jax.config_check import check_config
from crossearth_jax.inference.segmentor import Segmentor

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("data/*/README.md"))]
COMMAND = re.compile(r"(?:(?:\.venv/bin/)?python -m crossearth_jax\.|crossearth )([a-z][\w-]*)(.*)", re.DOTALL)

# Command -> flag -> a test that runs it, or CI's own script. "--config." stands for every field of the configuration.
DISTRIBUTED = "tests/distributed_test.py::test_two_processes_train_as_one_does"
PREDICT, MAPPING = "tests/predict_test.py::", "tests/mapping/"
RUN_BY = {
    "main": {
        "--config": ".ci/run",
        "--config.": ".ci/run",
        "--workdir": ".ci/run",
        "--mode": "tests/training/loop_test.py::test_restored_run_is_the_trained_one",
        "--checkpoints": ".ci/run",
        "--shifts": "tests/distributed_test.py::test_two_processes_score_shifts_as_one_does",
        "--profile": "tests/training/loop_test.py::test_the_chosen_steps_are_traced",
        "--topology": "tests/aot/compile_test.py::test_wrong_slices_are_refused",
        "--batch_per_chip": "tests/aot/compile_test.py::test_wrong_slices_are_refused",
        "--distributed": DISTRIBUTED,
        "--coordinator_address": DISTRIBUTED,
        "--num_processes": DISTRIBUTED,
        "--process_id": DISTRIBUTED,
    },
    "prepare": {
        "--data_dir": "tests/prepare_test.py::test_repeating_changes_nothing",
        "--check": "tests/prepare_test.py::test_check_reports_numbers",
        "--manual_dir": "data/faults_test.py::test_check_of_sound_archives",
    },
    "report": {
        "--out": ".ci/run",
        "--projection": "tests/reporting/projection_test.py::test_umap_is_asked_for_repeatable_places",
    },
    "export": dict.fromkeys(
        ("--out", "--classes", "--window"),
        "tests/export_test.py::test_a_run_becomes_a_model_with_these_classes_and_this_window",
    ),
    "push": {"--licence": "tests/hub_test.py::test_a_run_comes_back_as_it_was"},
    "replay": {},
    "predict": {
        "--checkpoint": "tests/notebooks_test.py::test_quickstart_trains_reports_and_maps",
        "--out": "tests/notebooks_test.py::test_quickstart_trains_reports_and_maps",
        "--bounds": "tests/notebooks_test.py::test_quickstart_trains_reports_and_maps",
        "--preview": "tests/notebooks_test.py::test_quickstart_trains_reports_and_maps",
        "--backbone": "tests/inference/segmentor_test.py::test_trained_part_needs_its_backbone",
        "--bands": PREDICT + "test_map_of_a_network_is_the_plain_blend_of_its_windows",
        "--scores": PREDICT + "test_map_of_a_network_is_the_plain_blend_of_its_windows",
        "--stride": PREDICT + "test_map_of_a_network_is_the_plain_blend_of_its_windows",
        "--classes": PREDICT + "test_classes_can_be_named",
        "--batch_size": PREDICT + "test_classes_can_be_named",
        "--skip_existing": PREDICT + "test_several_scenes_and_going_on_after_an_interruption",
        "--shard": PREDICT + "test_shards_map_every_scene_once",
        "--distributed": PREDICT + "test_processes_share_the_scenes",
        "--gsd": MAPPING + "scene_test.py::test_metres_on_the_ground",
        "--range": MAPPING + "scene_test.py::test_eight_bit_is_stretched_only_when_asked",
        "--percentiles": MAPPING + "scene_test.py::test_eight_bit_is_stretched_only_when_asked",
        "--confidence": MAPPING + "map_layers_test.py::test_confidence_of_shares",
        "--polygons": MAPPING + "polygons_test.py::test_areas_are_those_of_the_pixels",
        "--flips": "tests/inference/segmentor_test.py::test_flips_average_the_mirror_images",
        "--blend": PREDICT + "test_map_of_a_network_is_the_plain_blend_of_its_windows",
    },
    "convert": {
        "--to": "tests/convert_test.py::test_there_and_back",
        "--image_size": "tests/convert_test.py::test_mistakes_end_in_one_line_and_leave_nothing",
        "--patch_size": "tests/convert_test.py::test_patches_of_14_are_kept_on_request",
        "--backbone": "tests/inference/segmentor_test.py::test_trained_part_needs_its_backbone",
    },
    "estimate_style": {
        "--out": "tests/estimate_style_test.py::test_equals_two_pass_moments",
        "--tile_size": "tests/estimate_style_test.py::test_equals_two_pass_moments",
        "--overlap": "tests/estimate_style_test.py::test_tiles_cover_in_order",
        "--source": "tests/estimate_style_test.py::test_targets_need_an_explicit_flag",
        "--allow_target": "tests/estimate_style_test.py::test_targets_need_an_explicit_flag",
        "--backend": "tests/weights/style_files_test.py::test_reads_legacy_folder_and_crossearth_checkpoint_alike",
        "--weights": "tests/weights/style_files_test.py::test_reads_legacy_folder_and_crossearth_checkpoint_alike",
    },
}
# First words of other commands -> what CI's own script has of them.
OTHER = {
    "python -m pip install uv": "python -m pip install",
    "python -m uv venv": "python -m uv venv",
    "python -m uv pip install": "python -m uv pip install",
    "source .venv/bin/activate": 'VIRTUAL_ENV="$scratch/venv"',
    ".venv/bin/pytest": "\npytest",
    "mkdocs build --strict": "mkdocs build --strict",
    "python -m benchmarks.generalisation": "\npytest",  # tests/generalisation_test.py
}
# Names that Python snippets use without defining them, with their values.
GIVEN = {"images", "normalised"}
RESULTS = {"model": Segmentor}


def fences(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """Return single commands of shell fences, and commands of this package in the running text."""
    for block in fences(page, "(?:bash|sh|shell|console)"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in line.split("&&") if part.strip() and not part.strip().startswith("#"))
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`((?:python -m crossearth_jax\.|crossearth [a-z-]+ )\w+[^`\n]*)`", text)


SHOWN = sorted({(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page)})
OURS = [(page, command) for page, command in SHOWN if COMMAND.fullmatch(command)]


def words(command: str) -> tuple[str, list[str]]:
    """Return name and arguments of a command; an ellipsis in the text is replaced by a value that parses."""
    name, rest = COMMAND.fullmatch(command).groups()
    rest = rest.split(" # ")[0].replace("--config=…", "--config=configs/blue_marble.py").replace("…", "x")
    arguments = shlex.split(rest)
    if not command.startswith("crossearth "):
        return name, arguments
    return TASKS[name].module, [*arguments, *TASKS[name].arguments]


class Parsed(Exception):
    """Raised instead of everything that a command does after parsing."""


def parse(name: str, arguments: list[str], monkeypatch) -> None:
    """Parse the arguments with the command's own parser."""
    if name == "main":
        parse_main(arguments, monkeypatch)
        return
    original = argparse.ArgumentParser.parse_args

    def stop(*args, **kwargs):
        original(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        importlib.import_module(f"crossearth_jax.{name}").main(arguments)


def parse_main(arguments: list[str], monkeypatch) -> None:
    """Parse flags of main with a copy of their definitions, since flags can be parsed only once."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr("sys.argv", ["main", *arguments])  # where ml_collections finds the fields
    values = flags.FlagValues()
    for flag in flags.FLAGS.get_flags_for_module(main.__name__):
        if flag.name != "config":
            values[flag.name] = copy.deepcopy(flag)
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["main", *main.with_config_files(arguments)])
    check_config(from_config_dict(values.config))


def flags_of(name: str, arguments: list[str]) -> set[str]:
    found = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    return {"--config." if name == "main" and flag.startswith("--config.") else flag for flag in found} - {"--help"}


def test_every_command_is_a_task_of_crossearth():
    files = [path for path in ROOT.glob("crossearth_jax/[a-z]*.py") if "command.run(main)" in path.read_text("utf-8")]
    assert {task.module for task in TASKS.values()} == {path.stem for path in files}


def test_pages_show_commands():
    assert {name for name, _ in (words(command) for _, command in OURS)} >= RUN_BY.keys()
    assert len(OURS) > 30


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections reads configs by it
@pytest.mark.parametrize(("page", "command"), OURS)
def test_command_parses_and_its_flags_are_run_by_tests(page, command, monkeypatch, capsys):
    name, arguments = words(command)
    if "--help" not in arguments:
        parse(name, arguments, monkeypatch)
    unknown = flags_of(name, arguments) - RUN_BY[name].keys()
    assert not unknown, f"{page} shows {unknown} of {name}; name the test that runs it in RUN_BY"


def test_other_commands_are_those_of_ci():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    for page, command in SHOWN:
        if not COMMAND.fullmatch(command):
            start = next((start for start in OTHER if command.startswith(start)), None)
            assert start, f"{page} shows {command!r}, which nothing runs"
            assert OTHER[start] in script


@pytest.mark.parametrize("place", sorted({place for table in RUN_BY.values() for place in table.values()}))
def test_places_that_run_flags_exist(place):
    file, _, test = place.partition("::")
    assert (ROOT / file).exists()
    if test:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("name", "flag"), [(name, flag) for name, table in RUN_BY.items() for flag in table if table[flag] == ".ci/run"]
)
def test_ci_runs_the_flags_it_is_named_for(name, flag):
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert f"crossearth_jax.{name}" in script and flag in script


@pytest.mark.parametrize(
    ("page", "snippet"),
    [(str(page.relative_to(ROOT)), snippet) for page in PAGES for snippet in fences(page, "python")],
)
def test_names_of_python_snippets_exist(page, snippet):
    tree = ast.parse(snippet)
    names = dict(vars(builtins)) | dict.fromkeys(GIVEN)
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), page, "exec"), names)  # imports only
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assigned |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assigned |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            assert node.id in names.keys() | assigned, f"{page}: {node.id} comes from nowhere"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = RESULTS.get(node.value.id, names.get(node.value.id))
            assert owner is None or hasattr(owner, node.attr), f"{page}: {node.value.id} has no {node.attr}"
        if isinstance(node, ast.Call):
            check_call(page, node, names)


def check_call(page: str, call: ast.Call, names: dict) -> None:
    """Check that the keyword arguments of a call exist."""
    try:
        function = eval(compile(ast.Expression(call.func), page, "eval"), names | RESULTS)
    except (AttributeError, NameError):
        return
    if inspect.isfunction(function):
        known = inspect.signature(function).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            return  # takes any name
        assert {keyword.arg for keyword in call.keywords} <= known.keys(), f"{page}: {ast.unparse(call)}"
