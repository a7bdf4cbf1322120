"""Prepare miniatures and read the result."""

import json

from crossearth_jax.inputs.sources import PreparedSplit, dataset_directory, prepared_splits
from crossearth_jax.prepare import prepare


def examples(domain, manual_dir, data_dir, **options):
    """Prepare `domain` and return {split: {id: example}}."""
    prepare(domain, data_dir, manual_dir, options)
    found = {}
    for split in prepared_splits(domain, data_dir):
        source = PreparedSplit(domain, split, data_dir)
        records = [source[index] for index in range(len(source))]
        assert {record["domain"] for record in records} == {domain}
        found[split] = {record["id"]: record for record in records}
        assert len(found[split]) == len(source)
    return found


def metadata(domain, data_dir):
    """Return the metadata that the builder recorded."""
    return json.loads((dataset_directory(domain, data_dir) / "metadata.json").read_text())
