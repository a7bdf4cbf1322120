"""Measure the gain and the cost of averaging: mirror images of each window (`evaluate.flips`), and several checkpoints.

    python -m benchmarks.averaging runs/a runs/b

The runs must have the same source. All targets of the source are scored with each run alone and with the average of all
runs, without and with flips. Prints a Markdown table: mIoU in percent in-domain and in the mean of the unseen domains,
and the time per window. The runs alone are one row, with their mean and range. `--stride` saves time.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

from crossearth_jax.benchmark import Setting
from crossearth_jax.benchmark.registry import find_domain, settings_from
from crossearth_jax.inference import metrics, resizing
from crossearth_jax.inference.ensemble import check_alike
from crossearth_jax.inference.results import score
from crossearth_jax.inference.segmentor import load
from crossearth_jax.inference.windows import SlidingWindows
from crossearth_jax.inputs.sources import PreparedSplit
from crossearth_jax.training.weights_file import read_run_config

CHUNK = 64  # images whose scores are held in memory at once


def main() -> None:
    """Print the table of the runs on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--stride", type=int, help="distance between windows in pixels; default: that of the first run")
    arguments = parser.parse_args()
    config = read_run_config(Path(arguments.runs[0]))
    stride = arguments.stride or config.evaluate.stride
    segmentors = [load(folder, window=config.evaluate.window, stride=stride) for folder in arguments.runs]
    check_alike(segmentors, arguments.runs)
    settings = settings_from(config.data.source, config.data.data_dir)
    print("| scores | mIoU in-domain | mIoU unseen, mean | milliseconds per window |\n|---|---:|---:|---:|")
    for flips in (False, True):
        windows = [s.sliding_windows(batch_size=config.evaluate.batch_size, flips=flips) for s in segmentors]
        list(windows[0].scores([np.zeros((segmentors[0].window,) * 2 + (3,), np.uint8)]))  # compiles
        found = [measure(windows, setting, config.data.data_dir) for setting in settings]
        alone, together = np.split(np.array([miou for miou, _, _ in found]), [len(segmentors)], axis=1)
        unseen = np.array([setting.cross_domain for setting in settings])
        per_window = 1000 * sum(seconds for _, seconds, _ in found) / sum(count for _, _, count in found)
        what = "with flips" if flips else "without flips"
        for name, scores, times in (
            ("one checkpoint", alone, per_window / len(segmentors)),
            (f"{len(segmentors)} checkpoints averaged", together, per_window),
        ):
            cells = [spread(scores[~unseen].mean(axis=0)), spread(scores[unseen].mean(axis=0)), f"{times:.2f}"]
            print(f"| {name}, {what} | {' | '.join(cells)} |", flush=True)


def measure(windows: list[SlidingWindows], setting: Setting, data_dir: str) -> tuple[list[float], float, int]:
    """Score a target with every model.

    Scores of overlapping windows are averaged linearly, so the mean of the models' scores is that of a map from all of
    them.

    Returns:
      mIoU in percent of each model alone and of their average; seconds of all models together; number of windows.
    """
    target = find_domain(setting.target, data_dir)
    split = PreparedSplit(target.name, target.eval_split, data_dir)
    classes = len(target.classes)
    confusions = np.zeros((len(windows) + 1, classes, classes), np.int64)
    seconds, count = 0.0, 0
    for numbers in itertools.batched(range(len(split)), CHUNK):
        records = [split[number] for number in numbers]
        images = [resizing.resized_image(record["image"], target.resize) for record in records]
        start = time.perf_counter()
        found = [dict(model.scores(images)) for model in windows]
        seconds += time.perf_counter() - start
        count += sum(len(windows[0].plan(image.shape[:2])) for image in images)
        for position, record in enumerate(records):
            scores = [of_model[position] for of_model in found]
            for confusion, values in zip(confusions, [*scores, np.mean(scores, axis=0)], strict=True):
                predicted, _ = resizing.best_classes(values, record["label"].shape, ())
                confusion += metrics.confusion(record["label"], predicted, classes)
    return [score(setting, target.classes, confusion)["miou"] for confusion in confusions], seconds, count


def spread(values: np.ndarray) -> str:
    """Return the mean of the values, with their range if there are several."""
    return f"{values.mean():.1f}" + (f" ({values.min():.1f} to {values.max():.1f})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
