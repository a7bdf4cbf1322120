"""The model card for a hub: description, use, classes, scores, provenance and licence of a model."""

from __future__ import annotations

import json
from typing import Any

from crossearth_jax.reporting import score_tables
from crossearth_jax.reporting.rendering import escape_markdown
from crossearth_jax.reporting.run import Run
from crossearth_jax.reporting.table_files import as_markdown
from crossearth_jax.weights.native import Description

UNKNOWN = "unknown"  # licence identifier if no licence was given


def model_card(description: Description, digest: str, address: str, licence: str, run: Run | None) -> str:
    """Return the README.md of a repository; it begins with the metadata that hubs read.

    Args:
      description: description of the weights.
      digest: sha256 of the parameters (`weights.native.digest`).
      address: the address under which `crossearth_jax.load` finds the model.
      licence: identifier of the weights' licence, or `UNKNOWN`.
      run: the evaluated run that produced the weights; None leaves the scores out.
    """
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in _metadata(address, licence, run).items())
    parts = [f"---\n{head}\n---", f"# {address.split('/')[-1].split('@')[0]}", _use(address), _classes(description)]
    if run:
        protocol = escape_markdown("; ".join(dict.fromkeys(cell.protocol for cell in run.cells if cell.protocol)))
        note = f"Protocol: {protocol}. In-domain scores are reference points and are not part of any mean."
        parts += ["## Results", as_markdown(score_tables.main_table(run)).rstrip(), note]
    parts.append(_provenance(description, digest, run))
    terms = f"`{licence}`." if licence != UNKNOWN else "The publisher of the weights did not state a licence."
    parts.append(f"## Licence\n\n{terms} The training data have licences of their own.")
    return "\n\n".join(parts) + "\n"


def _metadata(address: str, licence: str, run: Run | None) -> dict[str, Any]:
    """Return the metadata by key; each value is later written as JSON, which is valid YAML."""
    found: dict[str, Any] = {
        "library_name": "crossearth_jax",
        "license": licence,
        "pipeline_tag": "image-segmentation",
        "tags": ["remote-sensing", "semantic-segmentation", "domain-generalization", "jax", "crossearth"],
    }
    if run:
        results = [
            {
                "task": {"type": "image-segmentation"},
                "dataset": {"type": cell.target.split("/")[0], "name": cell.target},
                "metrics": [{"type": "mean_iou", "name": "mIoU, percent", "value": cell.miou}],
            }
            for cell in run.cells
            if cell.miou is not None
        ]
        found["model-index"] = [{"name": address.split("/")[-1].split("@")[0], "results": results}]
    return found


def _use(address: str) -> str:
    return f"""A CrossEarth model for the semantic segmentation of remote-sensing images, trained with crossearth_jax.

```python
import crossearth_jax

model = crossearth_jax.load("{address}")  # needs the extra `hub`
labels = model.predict(images)  # uint8 RGB (b, h, w, 3) -> uint8 (b, h, w)
```

Georeferenced scenes: `python -m crossearth_jax.predict --checkpoint={address} scene.tif --out=map.tif`"""


def _classes(description: Description) -> str:
    names = description.class_names or tuple(f"class {i}" for i in range(description.model.classes))
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in description.palette] or [""] * len(names)
    rows = [f"| {i} | {escape_markdown(n)} | {c} |" for i, (n, c) in enumerate(zip(names, colours, strict=True))]
    window = description.window or description.model.vit.image_size
    text = f"Input: 8-bit RGB at the ground resolution of the training data, in windows of {window} x {window} pixels."
    return "\n".join(["## Classes", "", "| id | class | colour |", "| ---: | --- | --- |", *rows, "", text])


def _provenance(description: Description, digest: str, run: Run | None) -> str:
    facts = {"Weights": escape_markdown(description.source or "unknown"), "sha256 of the parameters": f"`{digest}`"}
    if run:
        facts |= {
            "Trained on": ", ".join(dict.fromkeys(f"`{cell.source}`" for cell in run.cells)),
            "Started from": escape_markdown(run.config.get("train.init_from", "null")).replace(
                "null", "random weights"
            ),
            "Evaluated": run.date.isoformat(),
            "Configuration": "`config.json`, field `experiment`",
        }
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join(["## Provenance", "", *lines])
