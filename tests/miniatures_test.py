"""There are miniature archives of every dataset of the benchmark, together below 10 MB."""

from miniatures import write_all

from crossearth_jax.benchmark import DOMAINS


def test_every_dataset_has_archives(tmp_path):
    folders = write_all(tmp_path)
    assert folders.keys() == {domain.dataset for domain in DOMAINS.values()} - {"blue_marble"}
    sizes = {name: sum(file.stat().st_size for file in path.rglob("*.*")) for name, path in folders.items()}
    assert all(sizes.values()) and sum(sizes.values()) < 10_000_000
