"""The compilation cache: where it is, its limits, and how a user chooses otherwise."""

import os
import subprocess
import sys

import jax
import pytest

from crossearth_jax.runtime import compilation_cache
from crossearth_jax.runtime.compilation_cache import use_compilation_cache

OPTIONS = (
    "jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs",
    "jax_enable_compilation_cache",
)  # fmt: skip


@pytest.fixture
def options():
    """Start without a cache folder, and restore the options of the test process."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_made_and_bounded(options, tmp_path):
    use_compilation_cache(str(tmp_path / "a" / "compiled"))
    assert (tmp_path / "a" / "compiled").is_dir()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "compiled")
    assert jax.config.jax_compilation_cache_max_size == compilation_cache.MAX_BYTES


def test_the_choice_of_the_user_counts(options, tmp_path):
    jax.config.update("jax_compilation_cache_dir", "chosen")
    use_compilation_cache(str(tmp_path / "compiled"))
    assert jax.config.jax_compilation_cache_dir == "chosen"
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    use_compilation_cache(str(tmp_path / "compiled"))
    assert jax.config.jax_compilation_cache_dir is None
    assert not (tmp_path / "compiled").exists()


def test_a_folder_that_cannot_be_made_is_a_warning(options, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    use_compilation_cache(str(tmp_path / "file" / "compiled"))
    assert jax.config.jax_compilation_cache_dir is None
    assert "compiled programs are not stored" in caplog.text


def test_a_command_does_not_import_jax_for_the_cache():
    program = "import sys; from crossearth_jax.runtime import command; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


PROGRAM = """
import sys
import jax
from crossearth_jax.runtime import command, compilation_cache

compilation_cache.MIN_SECONDS = 0.0

def main(arguments):
    jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64)))

command.run(main, [])
"""


LATE = PROGRAM.replace("import jax\n", "", 1).replace("    jax.jit", "    import jax\n    jax.jit")


@pytest.mark.parametrize("program", [PROGRAM, LATE])
def test_commands_store_compiled_programs_below_the_home_folder(tmp_path, program):
    """Whether JAX is imported before the command starts or later."""
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run([sys.executable, "-c", program], env=environment | {"HOME": str(tmp_path)}, check=True)
    assert list((tmp_path / ".cache" / "crossearth_jax" / "compiled").glob("*-cache"))
