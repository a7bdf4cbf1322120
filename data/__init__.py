"""TFDS builders of the benchmark datasets (import name `crossearth_data`).

Importing the package registers every builder, after which `tfds.builder("blue_marble/temperate_green")` works.
"""

from .blue_marble import blue_marble_dataset_builder

__all__ = ["blue_marble_dataset_builder"]
