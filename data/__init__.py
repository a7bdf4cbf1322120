"""TFDS builders of the benchmark datasets (import name `crossearth_data`).

Importing the package registers every builder, after which `tfds.builder("blue_marble/temperate_green")` works.
"""

# By its absolute name: pytest also imports this folder as `data`, and a builder must be registered once only.
from crossearth_data.blue_marble import (  # pyright: ignore[reportMissingImports]
    blue_marble_dataset_builder,
)

__all__ = ["blue_marble_dataset_builder"]
