"""Types that describe a benchmark: classes, domains, trainings, settings, published numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

IGNORE = 255  # label of pixels that are neither trained on nor scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """Classes in the order of their train ids."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB, one colour per class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize:
    """How images are resized before windows are cut from them; labels keep their size."""

    box: tuple[int, int]  # height and width
    keep_ratio: bool = True  # True: fit into the box and keep the aspect ratio; False: stretch to the box


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """One prepared dataset configuration."""

    dataset: str
    config: str
    description: str
    taxonomy: Taxonomy | None  # None for images without labels
    gsd: float | None  # ground resolution in metres per pixel (plate carrée grids: at the equator); None if it varies
    eval_split: str  # split scored when the domain is a target; "" if it never is one
    counts: Mapping[str, int]  # images per split
    sizes: Mapping[str, tuple[int, int]]  # height and width of the largest images per split, in pixels
    resize: Resize | None = None  # of evaluation; None leaves images as they are
    bands: tuple[str, str, str] = ("red", "green", "blue")  # names of the three channels
    pixels: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)  # per split and class, if counted

    @property
    def name(self) -> str:
        """The TFDS name: "<dataset>/<config>"."""
        return f"{self.dataset}/{self.config}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the train ids; none for images without labels."""
        return self.taxonomy.classes if self.taxonomy else ()

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB of each class."""
        return self.taxonomy.palette if self.taxonomy else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published score of a setting."""

    miou: float  # percent; the object's IoU in settings that have an `object`
    source: str  # where it is published
    confidence: str = ""  # how certain the reading is, e.g. "table in the text", "read off a picture"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a results table: train on `source`, score on `target`."""

    name: str
    source: str  # name of the domain, or names joined by "+"
    target: str  # name of the domain
    gap: tuple[str, ...]  # differences between source and target; () in an in-domain row
    classes: tuple[str, ...]  # scored classes, in the order of the taxonomy
    object: str | None = None  # class whose IoU a two-class setting reports in addition to the two-class mean
    published: Published | None = None

    @property
    def cross_domain(self) -> bool:
        """False for the in-domain reference rows, which are never averaged with the others."""
        return bool(self.gap)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A model, which is evaluated in every setting of its source."""

    name: str
    source: str  # name of the domain
    crop: int  # side of crops and windows, in pixels
    weights: str | None  # published file of this training; None if none was published


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenRow:
    """A placeholder row for settings that are known to exist but whose details are not public."""

    name: str
    reason: str
