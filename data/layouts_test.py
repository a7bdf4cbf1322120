"""Layouts on the real file names of every archive, and two files that match the same scene."""

from typing import Any

import crossearth_data  # noqa: F401  # pyright: ignore[reportMissingImports] (registers the builders)
import pytest
import tensorflow_datasets as tfds
from crossearth_data.archives import list_members  # pyright: ignore[reportMissingImports]
from crossearth_data.layouts import Layout, find  # pyright: ignore[reportMissingImports]
from miniatures import pictures

from crossearth_jax.benchmark import DOMAINS

VAIHINGEN = "ISPRS_semantic_labeling_Vaihingen"
AERIAL = "3. The cropped image tiles and raster labels"
EAST_ASIA = "Satellite dataset \u2161 (East Asia)/1. The cropped image data and raster labels"
# Dataset -> configuration -> role -> file names in the archives; the README.md of each dataset gives the sources. Role
# None: files that are neither an image nor a label of the benchmark. For every configuration, the names of the other
# configurations also have the role None.
NAMES = {
    "potsdam": {
        "rgb": {
            "image": [
                "2_Ortho_RGB.zip/2_Ortho_RGB/top_potsdam_2_10_RGB.tif",
                "a/RGB/img_dir/train/2_10_0_0_512_512.png",
            ],
            "label": [
                "5_Labels_all_noBoundary.zip/top_potsdam_2_10_label_noBoundary.tif",
                "a/RGB/ann_dir/train/2_10_0_0_512_512.png",
            ],
        },
        "irrg": {
            "image": [
                "3_Ortho_IRRG.zip/3_Ortho_IRRG/top_potsdam_2_10_IRRG.tif",
                "a/IRRG/img_dir/val/2_13_0_0_512_512.png",
            ],
            "label": [
                "5_Labels_all_noBoundary.zip/top_potsdam_2_10_label_noBoundary.tif",
                "a/IRRG/ann_dir/val/2_13_0_0_512_512.png",
            ],
        },
        None: [
            "2_Ortho_RGB.zip/2_Ortho_RGB/top_potsdam_2_10_RGB.tfw",
            "4_Ortho_RGBIR.zip/4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif",
            "5_Labels_all.zip/top_potsdam_2_10_label.tif",
            "1_DSM.zip/1_DSM/dsm_potsdam_02_10.tif",
            "1_DSM_normalisation.zip/1_DSM_normalisation/dsm_potsdam_02_10_normalized_lastools.jpg",
        ],
    },
    "vaihingen": {
        "irrg": {
            "image": [f"{VAIHINGEN}.zip/top/top_mosaic_09cm_area1.tif", "v/img_dir/train/area1_0_0_512_512.png"],
            "label": [
                f"{VAIHINGEN}_ground_truth_eroded_COMPLETE.zip/top_mosaic_09cm_area1_noBoundary.tif",
                f"{VAIHINGEN}_ground_truth_eroded_for_participants.zip/top_mosaic_09cm_area1_noBoundary.tif",
                "Vaihingen/gts_eroded_for_participants/top_mosaic_09cm_area1_noBoundary.tif",
                "v/ann_dir/train/area1_0_0_512_512.png",
            ],
        },
        None: [
            f"{VAIHINGEN}.zip/gts_for_participants/top_mosaic_09cm_area1.tif",
            f"{VAIHINGEN}_ground_truth_COMPLETE.zip/top_mosaic_09cm_area1.tif",
            f"{VAIHINGEN}.zip/dsm/dsm_09cm_matching_area1.tif",
        ],
    },
    "loveda": {
        "urban": {
            "image": ["Train.zip/Train/Urban/images_png/1366.png", "Val/Urban/images_png/3514.png"],
            "label": ["Train.zip/Train/Urban/masks_png/1366.png", "Val/Urban/masks_png/3514.png"],
        },
        "rural": {
            "image": ["Train.zip/Train/Rural/images_png/0.png", "Val.zip/Val/Rural/images_png/2522.png"],
            "label": ["Train.zip/Train/Rural/masks_png/0.png", "Val.zip/Val/Rural/masks_png/2522.png"],
        },
        None: ["Test.zip/Test/Urban/images_png/5167.png"],
    },
    "whu_building": {
        "aerial": {
            "image": [
                f"{AERIAL}.zip/{AERIAL}/train/image/0.tif",
                f"{AERIAL}/val/image/0.tif",
                f"{AERIAL}/test/image/0.TIF",
            ],
            "label": [
                f"{AERIAL}.zip/{AERIAL}/train/label/0.tif",
                f"{AERIAL}/val/label/0.tif",
                f"{AERIAL}/test/label/0.TIF",
                "WHU/Aerial/train/label2/0.tif",
            ],
        },
        "satellite_ii": {
            "image": [
                f"{EAST_ASIA}/{folder}/image/1003.tif"
                for folder in ("train", "train_no", "test", "test_no", "test_all")
            ],
            "label": [
                f"{EAST_ASIA}/{folder}/label/1003.tif"
                for folder in ("train", "train_no", "test", "test_no", "test_all")
            ],
        },
        None: [
            "Satellite dataset \u2160 (global cities)/image/1.tif",
            "Satellite dataset \u2160 (global cities)/label/1.tif",
            f"{EAST_ASIA}/train/image/1003.tfw",
        ],
    },
    "deepglobe_roads": {
        "roads": {"image": ["archive.zip/train/100034_sat.jpg"], "label": ["archive.zip/train/100034_mask.png"]},
        None: ["archive.zip/valid/1_sat.jpg", "archive.zip/test/3_sat.jpg", "archive.zip/class_dict.csv"],
    },
    "massachusetts_roads": {
        "roads": {
            "image": [
                "mass_roads/train/sat/10078660_15.tiff",
                "mass_roads/valid/sat/10228690_15.tiff",
                "archive.zip/tiff/test/10378780_15.tiff",
            ],
            "label": [
                "mass_roads/train/map/10078660_15.tif",
                "mass_roads/valid/map/10228690_15.tif",
                "archive.zip/tiff/test_labels/10378780_15.tif",
                "Massachusetts.zip/test_labels_new/10378780_15.tif",
            ],
        },
        None: ["mass_buildings/train/sat/22678915_15.tiff", "mass_buildings/train/map/22678915_15.tif"],
    },
    "rescuenet": {
        "rescuenet_5class": {
            "image": ["RescueNet.zip/RescueNet/test/test-org-img/10778.jpg"],
            "label": ["RescueNet.zip/RescueNet/test/test-label-img/10778_lab.png"],
        },
        None: [
            "RescueNet.zip/RescueNet/train/train-org-img/10781.jpg",
            "ColorMasks-RescueNet/ColorMasks-TestSet/10778_lab_ColorMask.png",
            "FloodNet-Supervised_v1.0/test/test-org-img/6651.jpg",
            "FloodNet-Supervised_v1.0/test/test-label-img/6651_lab.png",
        ],
    },
    "casid": {
        "subms": {
            "image": ["CAISD.zip/CASID/SubMs/all_train/image/12_0_0.png", "CASID/SubMs/test/3.png"],
            "label": ["CAISD.zip/CASID/SubMs/all_train/label/12_0_0-label.png", "CASID/SubMs/test/3-label.png"],
        },
        "troms": {
            "image": ["CAISD.zip/CASID/TroMs/all_test/image/3_0_0.png"],
            "label": [
                "CAISD.zip/CASID/TroMs/all_test/label/3_0_0-label.png",
                "CAISD.zip/CASID/TroMs/all_test/label_id/3_0_0-label.png",
            ],
        },
        None: ["CAISD.zip/CASID/readme.txt"],
    },
}


def every_name(dataset):
    for config, names in NAMES[dataset].items():
        yield from names if config is None else (name for role in names.values() for name in role)


@pytest.mark.parametrize("role", ["image", "label"])
@pytest.mark.parametrize("domain", [f"{dataset}/{config}" for dataset in NAMES for config in NAMES[dataset] if config])
def test_a_layout_takes_files_of_its_own_role_and_no_others(tmp_path, domain, role):
    dataset, config = domain.split("/")
    builder: Any = tfds.builder(domain, data_dir=tmp_path)
    names = sorted(set(every_name(dataset)))
    taken = {name for name in names for layout in builder.layouts().values() if layout.scene_of(role, name) is not None}
    assert taken == set(NAMES[dataset][config][role])


def test_every_benchmark_dataset_is_listed():
    assert NAMES.keys() == {domain.dataset for domain in DOMAINS.values()} - {"blue_marble"}


LAYOUT = Layout("image/{id}.tif", "label/{id}.tif")


def found(folder, layout=LAYOUT, only=None):
    return find(list_members(folder), layout, only)


def test_two_files_of_one_name_are_never_chosen_between_by_order(tmp_path):
    """Two files of equal size and different content are a fault; neither is preferred."""
    files = {"a/image/1.tif": b"one", "b/image/1.tif": b"two", "label/1.tif": b"label"}
    pictures.write_files(tmp_path, files)
    expected = "a/image/1.tif and b/image/1.tif may both be the image of 1, and differ; remove the wrong one"
    assert found(tmp_path).faults == [expected]
    (tmp_path / "b/image/1.tif").write_bytes(b"one")
    assert found(tmp_path).faults == []
    pictures.write_zip(tmp_path / "a.zip", {"image/1.tif": b"two"})
    assert "a.zip/image/1.tif and a/image/1.tif" in found(tmp_path).faults[0]


def test_the_loose_one_of_two_equal_files_is_read(tmp_path):
    pictures.write_zip(tmp_path / "a.zip", {"image/1.tif": b"one", "label/1.tif": b"label"})
    pictures.write_files(tmp_path / "z", {"image/1.tif": b"one"})
    (scene,) = found(tmp_path).scenes
    assert (scene.image.path, scene.label.path) == ("z/image/1.tif", "a.zip/label/1.tif")


def test_case_and_endings_do_not_matter(tmp_path):
    files = {"Image/Area10.TIF": b"", "label/area10.tif": b"", "image/area2.tiff": b"", "LABEL/AREA2.tif": b""}
    pictures.write_files(tmp_path, files)
    scenes = found(tmp_path).scenes
    assert [(scene.id, scene.image.path, scene.label.path) for scene in scenes] == [
        ("area2", "image/area2.tiff", "LABEL/AREA2.tif"),
        ("Area10", "Image/Area10.TIF", "label/area10.tif"),
    ]
    (scene,) = found(tmp_path, only=["area10"]).scenes
    assert scene.id == "area10"  # as the benchmark writes it


def test_jpeg_endings(tmp_path):
    pictures.write_files(tmp_path, {"1.JPEG": b"", "1.png": b""})
    assert len(found(tmp_path, Layout("{id}.jpg", "{id}.png")).scenes) == 1
