"""The CrossEarth benchmark as a TFDS dataset collection: the training and test data of every setting.

    collection = tfds.dataset_collection("crossearth_benchmark")

Keys are "<setting>/train" and "<setting>/test" ("P(i)2V/test"). Their splits are called `train` and `test`, whatever
their names in the dataset. The four in-domain settings of CASID are included.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_collection_builder, naming

from crossearth_jax.benchmark import DOMAINS, SETTINGS, training_of


class CrossearthBenchmark(dataset_collection_builder.DatasetCollection):
    """Sources and targets of 25 cross-domain settings and four in-domain rows."""

    @property
    def info(self) -> dataset_collection_builder.DatasetCollectionInfo:
        """Name, description and releases."""
        return dataset_collection_builder.DatasetCollectionInfo.from_cls(
            dataset_collection_class=self.__class__,
            description="Domain-generalizable semantic segmentation of remote-sensing images: source and target of "
            "every setting of CrossEarth.",
            release_notes={"1.0.0": "25 cross-domain settings and the in-domain rows of CASID."},
            citation="Gong et al., CrossEarth, arXiv 2410.22629",
            homepage="https://arxiv.org/abs/2410.22629",
        )

    @property
    def datasets(self) -> Mapping[str, Mapping[str, naming.DatasetReference]]:
        """Version -> setting and role -> dataset, configuration, version and split; there is one version."""
        rows = {}
        for setting in SETTINGS.values():
            if training_of(setting.name) is not None:
                rows[f"{setting.name}/train"] = _reference(setting.source, {"train": "train"})
                rows[f"{setting.name}/test"] = _reference(setting.target, {"test": DOMAINS[setting.target].eval_split})
        return {"1.0.0": rows}


def _reference(domain: str, splits: Mapping[str, str]) -> naming.DatasetReference:
    facts = DOMAINS[domain]
    return naming.DatasetReference(
        dataset_name=facts.dataset,
        config=facts.config,
        version=str(tfds.builder_cls(facts.dataset).VERSION),
        split_mapping=splits,
    )
