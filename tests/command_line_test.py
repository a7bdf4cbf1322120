"""The command `crossearth`, and the experiments that `--config` finds by name, from a folder outside the clone."""

import subprocess
import sys
from pathlib import Path

import pytest

from crossearth_jax import __main__ as crossearth
from crossearth_jax import main as main_command
from crossearth_jax.config import UserError

ROOT = Path(__file__).parents[1]


def test_list_of_tasks(capsys):
    assert crossearth.main(["--help"]) == 0
    assert "  predict         map a georeferenced scene\n" in capsys.readouterr().out
    assert crossearth.main([]) == 2


def test_unknown_task_is_refused():
    with pytest.raises(UserError, match=r"crossearth predcit is unknown; expected one of run, train, evaluate, "):
        crossearth.main(["predcit"])


def test_task_adds_its_mode(monkeypatch):
    seen = []
    monkeypatch.setattr(main_command, "main", lambda arguments: seen.append(arguments) or 0)
    assert crossearth.main(["evaluate", "--config=own", "--config.seed=1"]) == 0
    assert seen == [["--config=own", "--config.seed=1", "--mode=evaluate"]]


def test_arguments_of_a_notebooks_kernel_are_left_alone():
    """In a kernel `sys.argv` belongs to the kernel, and a cell may call the command more than once."""
    code = """
import sys
kernel = sys.argv = ["ipykernel_launcher.py", "-f", "kernel.json"]
from crossearth_jax import main
for fields in (["--config.train.steps=7", "--config.evaluate.stride=2"], ["--config.train.steps=8"]):
    config, _ = main._parse(["--config=blue_marble", "--workdir=run", *fields])
    print(config.train.steps, config.evaluate.stride)
assert sys.argv is kernel
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["7", "2", "8", "4"], done.stderr


@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"]])
def test_names_and_files_of_experiments(form, tmp_path, monkeypatch):
    def file_of(value):
        (*_, last) = main_command.with_config_files([part.format(value) for part in form])
        return last.removeprefix("--config=")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    configs = ROOT / "configs"
    assert file_of("blue_marble") == str(configs / "blue_marble.py")
    assert file_of("crossearth:P(i)2V") == f"{configs / 'crossearth.py'}:P(i)2V"
    assert file_of("own:/a/domains.toml,x") == f"{configs / 'own.py'}:/a/domains.toml,x"
    assert file_of("mine.py:argument") == "mine.py:argument"
    for missing in ("blue_marbel", "configs/blue_marble.py"):
        with pytest.raises(UserError, match=rf"--config={missing}: .* a file or one of blue_marble, .*, own, "):
            file_of(missing)


def test_other_flags_stay_as_they_are():
    flags = ["--workdir=x", "--config.train.steps=3", "--noshifts", "--config"]
    assert main_command.with_config_files(flags) == flags


def test_an_experiment_is_read_by_name_in_another_folder(tmp_path):
    """`blue_marble_ablation` imports another experiment."""
    arguments = ["compile", "--config=blue_marble_ablation:style", "--config.train.stepz=1"]
    done = subprocess.run(
        [sys.executable, "-m", "crossearth_jax", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "stepz" in done.stderr and len(done.stderr.splitlines()) == 1
