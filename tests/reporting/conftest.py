"""A made-up run with the files of a real one: temperate source, eight Blue Marble domains, seeded numbers."""

import json
import shutil

import numpy as np
import pytest

from crossearth_jax import benchmark
from crossearth_jax.config import Config, StyleConfig, to_config_dict

SOURCE = "blue_marble/temperate_green"
CLASSES = benchmark.TAXONOMIES["blue_marble"].classes
PALETTE = np.array(benchmark.TAXONOMIES["blue_marble"].palette, np.uint8)
SETTINGS = [setting for setting in benchmark.SETTINGS.values() if setting.source == SOURCE]


def smooth(rng, shape, scale):
    """Smooth noise with frequencies of at most `scale` per image."""
    spectrum = np.fft.rfft2(rng.normal(size=shape))
    rows, columns = np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])
    return np.fft.irfft2(spectrum * (np.hypot(rows, columns) < scale / shape[-1]), shape[-2:])


def tiles(rng, count, confusion, size=32):
    """Images, ground truth and a prediction that is wrong in patches."""
    fields = smooth(rng, (count, len(CLASSES), size, size), 4)
    fields = fields / fields.std() + np.array([-0.3, 0.2, 0.7, 0.0, -1.2])[:, None, None]
    noise = smooth(rng, fields.shape, 6) * np.array([0.2, 0.7, 0.9, 1.2, 1.0])[:, None, None]
    labels = np.argmax(fields, axis=1).astype(np.uint8)
    predictions = np.argmax(fields + confusion * noise / noise.std(), axis=1).astype(np.uint8)
    light = 0.85 + 0.5 * smooth(rng, (count, size, size), 10)[..., None]
    images = PALETTE[labels] * light + rng.normal(scale=9, size=(count, size, size, 3))
    labels[:, :3, : size // 3] = benchmark.IGNORE
    return np.clip(images, 0, 255).astype(np.uint8), labels, predictions


def matrix(labels, predictions):
    valid = labels != benchmark.IGNORE
    flat = labels[valid].astype(np.int64) * len(CLASSES) + predictions[valid]
    return np.bincount(flat, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), len(CLASSES))


def score(confusion, classes):
    hits = np.diag(confusion)
    iou = 100 * hits / (confusion.sum(0) + confusion.sum(1) - hits)
    by_class = {name: round(float(v), 3) for name, v in zip(CLASSES, iou, strict=True)}
    return {"miou": float(np.mean([by_class[name] for name in classes])), "iou": by_class}


def result(setting, confusion, rng):
    majority = np.zeros_like(confusion)
    majority[:, 2] = confusion.sum(1)
    colour = (confusion + confusion.mean() * rng.uniform(0.1, 0.6, confusion.shape)).astype(np.int64)
    return score(confusion, setting.classes) | {
        "source": setting.source,
        "target": setting.target,
        "gap": list(setting.gap),
        "cross_domain": setting.cross_domain,
        "classes": list(setting.classes),
        "accuracy": 100 * float(np.trace(confusion) / confusion.sum()),
        "pixels": int(confusion.sum()),
        "checkpoint_step": 4000,
        "protocol": "last checkpoint; no target domain was used for model selection",
        "baselines": {
            "majority": score(majority, setting.classes),
            "colour": score(colour, setting.classes),
        },
        "published": None,
    }


def metrics(rng, steps):
    for step in steps:
        fall = np.exp(-step / 900)
        noise = rng.normal(scale=0.04, size=3)
        last = {"class": 0.3 + 1.4 * fall, "mask": 0.25 + 0.8 * fall, "dice": 0.9 + 2.2 * fall}
        terms = {f"loss/{k}/last": v * np.exp(n) for (k, v), n in zip(last.items(), noise, strict=True)}
        terms |= {f"loss/{k}/{i}": 1.05 * v for i in range(3) for k, v in last.items()}
        yield {
            "step": int(step),
            "time": 1.7e9 + float(step) / 8,
            "loss": sum(terms.values()),
            **terms,
            "learning_rate": 5e-4 * (1 - step / 4001) ** 0.9,
            "images_per_second": 118 + 6 * rng.normal(),
        }


def write_run(folder, *, seed=0, confusion=1.0, seed_of_config=42):
    """Write a run into `folder`; a larger `confusion` makes a worse model."""
    rng = np.random.default_rng(seed)
    (folder / "evaluation").mkdir(parents=True)
    experiment = Config(name="blue_marble", style=StyleConfig(), seed=seed_of_config)
    (folder / "config.json").write_text(to_config_dict(experiment).to_json_best_effort(indent=2))
    results = {}
    for setting in SETTINGS:
        images, labels, predictions = tiles(rng, 40, confusion * (0.6 + 0.3 * len(setting.gap)))
        counts = matrix(labels, predictions)
        results[setting.name] = result(setting, counts, rng)
        np.savez(
            folder / "evaluation" / f"{setting.name}.npz",
            confusion=counts,
            classes=np.array(CLASSES),
            palette=PALETTE,
            images=images[:4],
            labels=labels[:4],
            predictions=predictions[:4],
        )
    (folder / "results.json").write_text(json.dumps(results))
    lines = [json.dumps(record) for record in metrics(rng, range(50, 4001, 50))]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def fake_run(tmp_path_factory):
    """A run that tests must not change."""
    return write_run(tmp_path_factory.mktemp("fake") / "blue_marble")


@pytest.fixture
def make_run(fake_run, tmp_path):
    """Make a run of the given name, which the test may change."""

    def make(name, **options):
        return write_run(tmp_path / name, **options) if options else shutil.copytree(fake_run, tmp_path / name)

    return make
