"""TFDS builders of the benchmark datasets (import name `crossearth_data`).

Importing the package registers all builders and the dataset collection of the benchmark. Afterwards
`tfds.builder("blue_marble/temperate_green")` works.
"""

# Absolute imports: pytest also imports this folder as `data`, but each builder may be registered only once.
# pyright: reportMissingImports=false
from crossearth_data.blue_marble import blue_marble_dataset_builder
from crossearth_data.casid import casid_dataset_builder
from crossearth_data.crossearth_benchmark import CrossearthBenchmark
from crossearth_data.deepglobe_roads import deepglobe_roads_dataset_builder
from crossearth_data.loveda import loveda_dataset_builder
from crossearth_data.massachusetts_roads import massachusetts_roads_dataset_builder
from crossearth_data.potsdam import potsdam_dataset_builder
from crossearth_data.rescuenet import rescuenet_dataset_builder
from crossearth_data.vaihingen import vaihingen_dataset_builder
from crossearth_data.whu_building import whu_building_dataset_builder

__all__ = [
    "CrossearthBenchmark",
    "blue_marble_dataset_builder",
    "casid_dataset_builder",
    "deepglobe_roads_dataset_builder",
    "loveda_dataset_builder",
    "massachusetts_roads_dataset_builder",
    "potsdam_dataset_builder",
    "rescuenet_dataset_builder",
    "vaihingen_dataset_builder",
    "whu_building_dataset_builder",
]
