"""Small exports of annotation tools in their documented layouts."""

import json

import numpy as np
import pytest
from crossearth_data.own import plan  # pyright: ignore[reportMissingImports]
from miniatures import own

from crossearth_jax.config import UserError


def labels(folder, rows):
    made = plan.make_plan(own.domains(folder, f'images = "images/*.png"\nlabels = {rows}').domains["x"])
    count = sum(len(piece.tiles) for piece in made.pieces["test"])
    return {name: label for name, _, label in plan.examples(made.pieces["test"], count)}


def coco(folder, **changes):
    """Write two images: one with a rectangle, a triangle and a mask, one without annotations."""
    for number in (1, 2):
        own.picture(folder / f"images/{number}.png", (8, 6))
    rectangle = [1, 1, 4, 1, 4, 3, 1, 3]
    mask = np.zeros((6, 8), np.uint8)
    mask[5, 6:] = 1
    flat = mask.T.ravel()  # down the columns
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    counts = np.diff(edges).tolist()
    content = {
        "info": {},
        "licenses": [],
        "categories": [{"id": 1, "name": "building", "supercategory": ""}, {"id": 7, "name": "road"}],
        "images": [
            {"id": 11, "file_name": "1.png", "width": 8, "height": 6},
            {"id": 12, "file_name": "images/2.png", "width": 8, "height": 6},
        ],
        "annotations": [
            {"id": 1, "image_id": 11, "category_id": 1, "segmentation": [rectangle], "iscrowd": 0, "area": 6},
            {"id": 2, "image_id": 11, "category_id": 7, "segmentation": [[3, 0, 6, 0, 6, 2, 3, 2]], "iscrowd": 0},
            {
                "id": 3,
                "image_id": 11,
                "category_id": 7,
                "segmentation": {"counts": counts, "size": [6, 8]},
                "iscrowd": 1,
            },
        ],
        **changes,
    }
    (folder / "x.json").write_text(json.dumps(content))


def test_coco(tmp_path):
    coco(tmp_path)
    found = labels(tmp_path, '{ coco = "x.json", background = "land" }')
    expected = np.full((6, 8), 2)
    expected[1:3, 1:4] = 0
    expected[0:2, 3:6] = 1  # drawn later
    expected[5, 6:] = 1
    assert found["1"].tolist() == expected.tolist()
    assert set(found["2"].ravel().tolist()) == {2}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"categories": [{"id": 1, "name": "hut"}, {"id": 7, "name": "road"}]}, r"has the unknown classes 'hut'"),
        ({"images": [{"id": 11, "file_name": "1.png"}]}, r"no label for image .*2.png"),
        ({"images": [{"id": i, "file_name": f"{i - 10}.png"} for i in (11, 12, 13)]}, r"no image for label 3.png"),
        ({"annotations": [{"id": 5, "image_id": 11, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, r"tion 5 has no seg"),
        ({"annotations": [{"id": 5, "image_id": 99, "category_id": 1, "segmentation": [[0] * 6]}]}, r"x.json lacks 99"),
    ],
)  # fmt: skip
def test_coco_files_that_do_not_fit(tmp_path, changes, expected):
    coco(tmp_path, **changes)
    with pytest.raises(UserError, match=expected):
        labels(tmp_path, '{ coco = "x.json" }')


def test_compressed_masks_and_short_polygons_of_coco(tmp_path):
    for segmentation, expected in (
        ({"counts": "abc", "size": [6, 8]}, "compressed mask"),
        ([[0, 0, 1, 1]], "of 4 numbers"),
    ):
        coco(tmp_path, annotations=[{"id": 5, "image_id": 11, "category_id": 1, "segmentation": segmentation}])
        with pytest.raises(UserError, match=expected):
            labels(tmp_path, '{ coco = "x.json" }')


def cvat(folder, labelmap):
    """Write an unpacked export "Segmentation mask 1.1"."""
    own.picture(folder / "images/1.png", (3, 1))
    colours = np.array([[(0, 0, 0), (250, 50, 83), (50, 183, 250)]], np.uint8)
    own.save(folder / "export/SegmentationClass/1.png", colours)
    own.save(folder / "export/SegmentationObject/1.png", colours)
    (folder / "export/ImageSets/Segmentation").mkdir(parents=True)
    (folder / "export/ImageSets/Segmentation/default.txt").write_text("1\n")
    (folder / "export/labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + labelmap)


def test_cvat(tmp_path):
    cvat(tmp_path, "background:0,0,0::\nbuilding:250,50,83::\nstreet:50,183,250::\n")
    rows = '{ cvat = "export", classes = { street = "road" } }'
    assert labels(tmp_path, rows)["1"].tolist() == [[255, 0, 1]]
    rows = '{ cvat = "export", classes = { street = "road", background = "land" } }'
    assert labels(tmp_path, rows)["1"].tolist() == [[2, 0, 1]]
    with pytest.raises(UserError, match=r"labelmap.txt has the unknown classes 'street'"):
        labels(tmp_path, '{ cvat = "export" }')


def test_cvat_without_its_label_map(tmp_path):
    cvat(tmp_path, "building\n")
    with pytest.raises(UserError, match=r"labelmap.txt has the line 'building', expected label:red,green,blue::"):
        labels(tmp_path, '{ cvat = "export" }')
    (tmp_path / "export/labelmap.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*labelmap.txt .*Segmentation mask 1.1"):
        labels(tmp_path, '{ cvat = "export" }')


def label_studio(folder):
    """Write brush labels as PNG and the JSON export; task 1 has two annotations, task 2 refers to a local file."""
    for name in ("roof one.png", "2.png"):
        own.picture(folder / "images" / name, (3, 2))
    tasks = [
        {"id": 5, "file_upload": "0a1b2c3d-roof one.png", "data": {"image": "/data/upload/1/0a1b2c3d-roof%20one.png"}},
        {"id": 6, "data": {"image": "/data/local-files/?d=images/2.png"}},
    ]
    (folder / "export.json").write_text(json.dumps(tasks))
    masks = {
        "task-5-annotation-8-by-1-tag-land-0": [[255, 255, 255], [255, 255, 255]],
        "task-5-annotation-9-by-1-tag-building-0": [[255, 255, 0], [0, 0, 0]],
        "task-5-annotation-9-by-1-tag-road-1": [[0, 255, 0], [0, 0, 0]],
        "task-6-annotation-3-by-a@b.org-tag-building-0": [[0, 0, 0], [0, 0, 255]],
    }
    for name, mask in masks.items():
        own.save(folder / f"export/{name}.png", np.array(mask, np.uint8))


def test_label_studio(tmp_path):
    label_studio(tmp_path)
    found = labels(tmp_path, '{ label_studio = "export", tasks = "export.json", background = "land" }')
    assert {name: label.tolist() for name, label in found.items()} == {
        "roof one": [[0, 1, 2], [2, 2, 2]],
        "2": [[2, 2, 2], [2, 2, 0]],
    }
    rows = '{ label_studio = "export", tasks = "export.json", order = ["road", "building"] }'
    assert labels(tmp_path, rows)["roof one"].tolist() == [[0, 0, 255], [255, 255, 255]]


def test_label_studio_exports_that_do_not_fit(tmp_path):
    label_studio(tmp_path)
    own.save(tmp_path / "export/task-6-annotation-3-by-1-tag-hut-1.png", np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match=r"task-6-annotation-3-by-1-tag-hut-1.png has the unknown classes 'hut'"):
        labels(tmp_path, '{ label_studio = "export", tasks = "export.json" }')
    (tmp_path / "export/task-6-annotation-3-by-1-tag-hut-1.png").rename(
        tmp_path / "export/task-7-annotation-3-by-1-tag-road-1.png"
    )
    with pytest.raises(UserError, match=r"task-7.*belongs to no task of .*export.json"):
        labels(tmp_path, '{ label_studio = "export", tasks = "export.json" }')
