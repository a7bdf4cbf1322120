"""A small real dataset for the tests of the inputs."""

import pytest

from crossearth_jax.prepare import prepare


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Prepare blue_marble/temperate_brown: 62 training, 17 validation and 19 test images."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare("blue_marble/temperate_brown", folder)
    return str(folder)
