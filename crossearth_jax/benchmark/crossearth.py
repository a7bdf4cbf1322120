"""Facts of the CrossEarth benchmark: domains, trainings and settings.

Classes, colours, splits, crops and resizing come from the authors' configurations and dataset classes
(https://github.com/Cuzyoung/CrossEarth, folders `configs` and `rs_dataset`). The 25 pairs, their gaps and image counts
come from the authors' benchmark table (images/benchmark_collection.png there), the rest from the datasets' own pages.
Where these disagree, the count of the dataset's own page is used (R2U has 677 test images; the table says 667).
`docs/benchmark.md` lists the open questions and the decisions.
"""

from __future__ import annotations

from crossearth_jax.benchmark.facts import Domain, OpenRow, Published, Resize, Setting, Taxonomy, Training

_WHITE, _BLACK, _BLUE, _CYAN, _GREEN, _YELLOW, _RED = (
    (255, 255, 255), (0, 0, 0), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0),
)  # fmt: skip

TAXONOMIES = (
    Taxonomy(
        name="isprs",
        classes=("impervious_surface", "building", "low_vegetation", "tree", "car", "clutter"),
        palette=(_WHITE, _BLUE, _CYAN, _GREEN, _YELLOW, _RED),
    ),
    Taxonomy(
        name="isprs_5class",  # Potsdam and RescueNet on common classes
        classes=("impervious_surface", "building", "vegetation", "car", "clutter"),
        palette=(_WHITE, _BLUE, _GREEN, _YELLOW, _RED),
    ),
    Taxonomy(
        name="loveda",
        classes=("background", "building", "road", "water", "barren", "forest", "agricultural"),
        palette=(_WHITE, _RED, _YELLOW, _BLUE, (159, 129, 183), _GREEN, (255, 195, 128)),
    ),
    # The published code swaps the names of the two classes; masks and colours show that the object is 1 (white).
    Taxonomy(name="building", classes=("background", "building"), palette=(_BLACK, _WHITE)),
    Taxonomy(name="road", classes=("background", "road"), palette=(_BLACK, _WHITE)),
    Taxonomy(
        name="casid",
        classes=("background", "building", "forest", "road", "water"),
        palette=(_BLACK, _YELLOW, (85, 255, 0), _RED, (0, 112, 255)),
    ),
)

_TAXONOMIES = {taxonomy.name: taxonomy for taxonomy in TAXONOMIES}
OBJECTS = {"building": "building", "road": "road"}  # two-class taxonomy -> its object class


def _domain(
    name: str,
    description: str,
    taxonomy: str,
    gsd: float | None,
    counts: dict[str, int],
    size: tuple[int, int],
    resize: Resize | None,
    eval_split: str | None = None,
) -> Domain:
    """Return one domain; its last split is scored unless `eval_split` names another one."""
    dataset, config = name.split("/")
    return Domain(
        dataset=dataset,
        config=config,
        description=description,
        taxonomy=_TAXONOMIES[taxonomy],
        gsd=gsd,
        eval_split=list(counts)[-1] if eval_split is None else eval_split,
        counts=counts,
        sizes=dict.fromkeys(counts, size),
        resize=resize,
        bands=("nir", "red", "green") if config.startswith("irrg") else ("red", "green", "blue"),
    )


def _square(side: int, keep_ratio: bool = True) -> Resize:
    return Resize(box=(side, side), keep_ratio=keep_ratio)


_POTSDAM = {"train": 3456, "val": 2016}  # 24 and 14 scenes of 144 tiles
_TILE = (512, 512)
_CASID = {  # configuration -> (climate, tiles); 25 tiles a scene
    "subms": ("sub-tropical monsoon", {"train": 4900, "test": 2200}),
    "temms": ("temperate monsoon", {"train": 5025, "test": 2075}),
    "troms": ("tropical monsoon", {"train": 3400, "test": 1650}),
    "trorf": ("tropical rain forest", {"train": 3700, "test": 1550}),
}

DOMAINS = (
    _domain("potsdam/rgb", "ISPRS Potsdam tiles, red, green, blue", "isprs", 0.05, _POTSDAM, _TILE, _square(512)),
    _domain(
        "potsdam/irrg", "ISPRS Potsdam tiles, near infrared, red, green", "isprs", 0.05, _POTSDAM, _TILE, _square(512)
    ),
    _domain(
        "potsdam/rgb_5class", "ISPRS Potsdam tiles, red, green, blue, on the five classes shared with RescueNet",
        "isprs_5class", 0.05, _POTSDAM, _TILE, _square(512),
    ),
    _domain(
        "potsdam/irrg_5class",
        "ISPRS Potsdam tiles, near infrared, red, green, on the five classes shared with RescueNet",
        "isprs_5class", 0.05, _POTSDAM, _TILE, _square(512),
    ),
    _domain(
        "vaihingen/irrg", "ISPRS Vaihingen tiles, near infrared, red, green", "isprs", 0.09,
        {"train": 344, "val": 398}, _TILE, _square(512),
    ),
    _domain(
        "loveda/urban", "LoveDA, urban scenes", "loveda", 0.3, {"train": 1156, "val": 677}, (1024, 1024), _square(1024)
    ),
    _domain(
        "loveda/rural", "LoveDA, rural scenes", "loveda", 0.3, {"train": 1366, "val": 992}, (1024, 1024), _square(1024)
    ),
    # Scored on the official validation split: its 1036 tiles are what the authors count as their test set.
    _domain(
        "whu_building/aerial", "WHU Building, aerial tiles of Christchurch", "building", 0.3,
        {"train": 4736, "val": 1036, "test": 2416}, _TILE, _square(512), eval_split="val",
    ),
    # The ground resolution is the value commonly stated for this set.
    _domain(
        "whu_building/satellite_ii", "WHU Building, Satellite II tiles of East Asia", "building", 0.45,
        {"train": 13662, "test": 3726}, _TILE, _square(512),
    ),
    # The official validation and test splits have no public labels, so the domain is never a target.
    _domain(
        "deepglobe_roads/roads", "DeepGlobe Road Extraction", "road", 0.5, {"train": 6226}, (1024, 1024), None,
        eval_split="",
    ),
    _domain(
        "massachusetts_roads/roads", "Massachusetts Roads", "road", 1.0,
        {"train": 1108, "val": 14, "test": 49}, (1500, 1500), _square(1500),
    ),
    # Drone photographs, most of 3000 x 4000 pixels. The protocol resizes them to fit into 512 x 512. Version 2 has 450
    # test photographs; the authors' table says 449.
    _domain(
        "rescuenet/rescuenet_5class", "RescueNet photographs on the five classes shared with Potsdam",
        "isprs_5class", None, {"test": 450}, (4000, 4000), _square(512),
    ),
    # It is not published whether tiles have 1000 or 1024 pixels a side; the authors stretch the temperate ones.
    *(
        _domain(
            f"casid/{config}", f"CASID, {climate}", "casid", 1.0, counts, (1024, 1024),
            _square(1024, keep_ratio=config != "temms"),
        )
        for config, (climate, counts) in _CASID.items()
    ),
)  # fmt: skip

TRAININGS = (
    Training(name="potsdam_irrg", source="potsdam/irrg", crop=512, weights="Potsdam(i)-source.pth"),
    Training(name="potsdam_rgb", source="potsdam/rgb", crop=512, weights="Potsdam(r)-source.pth"),
    Training(name="vaihingen_irrg", source="vaihingen/irrg", crop=512, weights="Vaihingen-source.pth"),
    Training(name="loveda_urban", source="loveda/urban", crop=1024, weights=None),
    Training(name="loveda_rural", source="loveda/rural", crop=1024, weights=None),
    Training(name="deepglobe_roads", source="deepglobe_roads/roads", crop=1024, weights="D2M-Rein.pth"),
    Training(name="potsdam_rgb_5class", source="potsdam/rgb_5class", crop=512, weights="Potsdam(r)2RescueNet.pth"),
    Training(name="potsdam_irrg_5class", source="potsdam/irrg_5class", crop=512, weights="Potsdam(i)2RescueNet.pth"),
    Training(name="whu_aerial", source="whu_building/aerial", crop=512, weights="WHU-Building-A2S.pth"),
    Training(name="whu_satellite_ii", source="whu_building/satellite_ii", crop=512, weights="WHU-Building-S2A.pth"),
    Training(name="casid_subms", source="casid/subms", crop=1024, weights="casid-sub-source.pth"),
    Training(name="casid_temms", source="casid/temms", crop=1024, weights="casid-tem-source.pth"),
    Training(name="casid_troms", source="casid/troms", crop=1024, weights="casid-tms-source.pth"),
    Training(name="casid_trorf", source="casid/trorf", crop=1024, weights="casid-trf-source.pth"),
)

WEIGHTS_HOME = "https://huggingface.co/Cusyoung/CrossEarth"
BACKBONES = {512: "dinov2_converted.pth", 1024: "dinov2_converted_1024x1024.pth"}  # crop -> published file
# Published files of an architecture that this package does not implement -> why they are not read.
OTHER_WEIGHTS = {"D2M-MTP.pth": "it has the MTP backbone (rotated varied-size attention); D2M-Rein.pth is the other"}

REGION, BAND, PLATFORM, CLIMATE = "region", "spectral_band", "platform", "climate"

_PAIRS = (
    ("P(i)2V", "potsdam/irrg", "vaihingen/irrg", (REGION,)),
    ("V2P(i)", "vaihingen/irrg", "potsdam/irrg", (REGION,)),
    ("U2R", "loveda/urban", "loveda/rural", (REGION,)),
    ("R2U", "loveda/rural", "loveda/urban", (REGION,)),
    ("D2M", "deepglobe_roads/roads", "massachusetts_roads/roads", (REGION,)),
    ("P(r)2Res", "potsdam/rgb_5class", "rescuenet/rescuenet_5class", (REGION,)),
    ("P(r)2P(i)", "potsdam/rgb", "potsdam/irrg", (BAND,)),
    ("P(i)2P(r)", "potsdam/irrg", "potsdam/rgb", (BAND,)),
    ("P(r)2V", "potsdam/rgb", "vaihingen/irrg", (REGION, BAND)),
    ("V2P(r)", "vaihingen/irrg", "potsdam/rgb", (REGION, BAND)),
    ("P(i)2Res", "potsdam/irrg_5class", "rescuenet/rescuenet_5class", (REGION, BAND)),
    ("A2S", "whu_building/aerial", "whu_building/satellite_ii", (REGION, PLATFORM)),
    ("S2A", "whu_building/satellite_ii", "whu_building/aerial", (REGION, PLATFORM)),
)
_CLIMATES = {"Sub": "subms", "Tem": "temms", "Tms": "troms", "Trf": "trorf"}  # as the settings abbreviate them

# Empty: the paper's tables were not accessible, and no other text or table gives a number together with its setting.
# An entry must state its source and how certain the reading is.
PUBLISHED: dict[str, Published] = {}

OPEN_ROWS = (
    OpenRow(
        name="The journal version's 32 scenarios",
        reason="its abstract counts 32, four more than the preprint's 28 (these 25 pairs and three of the four "
        "in-domain rows); neither names nor splits of the additions are public, so they are neither prepared nor run",
    ),
)


def _setting(name: str, source: str, target: str, gap: tuple[str, ...]) -> Setting:
    taxonomy = next(domain.taxonomy for domain in DOMAINS if domain.name == target)
    assert taxonomy is not None
    return Setting(
        name=name,
        source=source,
        target=target,
        gap=gap,
        classes=taxonomy.classes,
        object=OBJECTS.get(taxonomy.name),
        published=PUBLISHED.get(name),
    )


def settings() -> list[Setting]:
    """Return the 25 cross-domain settings and CASID's four in-domain rows, in the order of the authors' table."""
    casid = [
        (f"{a}2{b}", f"casid/{_CLIMATES[a]}", f"casid/{_CLIMATES[b]}", () if a == b else (REGION, CLIMATE))
        for a in _CLIMATES
        for b in _CLIMATES
    ]
    return [_setting(*row) for row in (*_PAIRS, *casid)]
