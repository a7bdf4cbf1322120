"""The command with damaged and unusual archives: each fault names its file, and no incomplete dataset is left."""

import re
import subprocess
import sys

import numpy as np
import pytest
from crossearth_data import building, pool  # pyright: ignore[reportMissingImports]
from miniatures import loveda, massachusetts_roads, pictures, potsdam, prepared, rescuenet, whu_building

from crossearth_jax.config import UserError
from crossearth_jax.prepare import main, prepare
from crossearth_jax.runtime import picture_files as picture_files

SCENE = "Train/Urban/images_png/1366.png"
MASK = "Train/Urban/masks_png/1366.png"


def loveda_with(folder, changes):
    """Write the unpacked miniature with some files replaced (pixels or bytes) or left out (None)."""
    files = {**loveda.files("train"), **loveda.files("val"), **changes}
    pictures.write_files(folder, {name: content for name, content in files.items() if content is not None})


def truncated(name, share):
    data = pictures.encoded(loveda.files("train")[name], name)
    return data[: int(len(data) * share)]


def mask(value, shape=(64, 64)):
    return np.full(shape, value, np.uint8)


FAULTS = {
    "unknown value": ({MASK: mask(9)}, r"Urban/masks_png/1366\.png has the unknown label values 9 \(4096 pixels\)"),
    "colours": ({MASK: np.dstack([mask(1), mask(2), mask(3)])}, r"masks_png/1366\.png contains colours"),
    "sizes differ": ({MASK: mask(1, (64, 60))}, r"masks_png/1366\.png has 60 x 64 pixels, its image .*\.png 64 x 64"),
    "too large": (
        {SCENE: np.zeros((8, 1025, 3), np.uint8), MASK: mask(1, (8, 1025))},
        r"images_png/1366\.png has 1025 x 8 pixels, expected at most 1024 x 1024",
    ),
    "truncated image": ({SCENE: truncated(SCENE, 0.6)}, r"images_png/1366\.png cannot be decoded \(.*it again"),
    "truncated mask": ({MASK: truncated(MASK, 0.6)}, r"masks_png/1366\.png cannot be decoded \("),
    "no image": ({SCENE: b"<html>"}, r"images_png/1366\.png cannot be decoded \(cannot identify image file"),
    "grey": ({SCENE: mask(3)}, r"images_png/1366\.png is an image of mode L \(grey\), expected 8-bit RGB"),
    "16 bits": ({MASK: np.zeros((64, 64), np.uint16)}, r"masks_png/1366\.png has 16 bits per channel, expected 8;"),
    "transparent": ({SCENE: np.full((64, 64, 4), 9, np.uint8)}, r"images_png/1366\.png is transparent in places, exp"),
    "mask missing": ({MASK: None}, r"Train/Urban/masks_png/1366\.png is missing, .*Train/Urban/images_png/1366"),
    "image missing": ({SCENE: None}, r"images_png/1366\.png is missing, which belongs to Train/Urban/masks_png/"),
    "splits overlap": (
        {"Val/Urban/images_png/3514.png": loveda.truth("1367")[0]},
        r"images_png/1367\.png \(split train\) and Val/Urban/images_png/3514\.png \(split val\) are the same",
    ),
    "two versions": (
        {"copy/" + SCENE: mask(0)},
        r"Train/Urban/images_png/1366\.png may both be the image of 1366, and differ; remove the wrong one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, capsys, fault):
    changes, expected = FAULTS[fault]
    loveda_with(tmp_path / "manual", changes)
    with pytest.raises(UserError, match=expected):
        prepare("loveda/urban", tmp_path / "data", tmp_path / "manual")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and "1.0.0" in str(path)]
    arguments = [f"--manual_dir={tmp_path / 'manual'}", f"--data_dir={tmp_path / 'data'}", "--check"]
    with pytest.raises(UserError, match=r"not as expected: loveda/urban (train|val)"):
        main(["loveda/urban", *arguments])
    printed = capsys.readouterr().out
    assert "  fault: " in printed
    assert re.search(expected, printed)


def test_an_overlap_may_be_kept(tmp_path):
    loveda_with(tmp_path / "manual", FAULTS["splits overlap"][0])
    found = prepared.examples("loveda/urban", tmp_path / "manual", tmp_path / "data", overlap="kept")
    np.testing.assert_array_equal(found["val"]["3514"]["image"], found["train"]["1367"]["image"])
    recorded = prepared.metadata("loveda/urban", tmp_path / "data")
    assert recorded["options"] == {"overlap": "kept", "unlabelled": "error"}
    assert any("3514.png (split val) are the same image" in warning for warning in recorded["warnings"])


def test_check_finds_every_fault_at_once(tmp_path, capsys):
    changes = {
        name: content for fault in ("mask missing", "splits overlap") for name, content in FAULTS[fault][0].items()
    }
    changes["Train/Urban/masks_png/1367.png"] = mask(8)
    loveda_with(tmp_path, changes)
    with pytest.raises(UserError, match=r"not as expected: loveda/urban train; see above"):
        main(["loveda/urban", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--check"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "loveda/urban train: 0 images of 1 scenes ()"
    assert lines[1] == "  warning: 1156 images expected"
    assert lines[2].startswith("  fault: Train/Urban/masks_png/1367.png has the unknown label values 8 (4096 pixels);")
    assert lines[3].startswith("  fault: Train/Urban/masks_png/1366.png is missing")
    assert not (tmp_path / "data").exists()


def test_check_of_sound_archives(tmp_path, capsys):
    loveda.write(tmp_path)
    arguments = ["loveda/rural", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}", "--check"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("loveda/rural: Train.zip has the MD5 ")
    assert lines[0].endswith("de2b196043ed9b4af1690b3f9a7d558f is published: it was repacked or is damaged")
    assert lines[2:4] == ["loveda/rural train: 3 images of 3 scenes (64x64: 3)", "  warning: 1366 images expected"]
    truth = np.concatenate([loveda.truth(scene)[1].ravel() for scene in loveda.SCENES["train", "rural"]])
    share = np.bincount(truth, minlength=256)[:7] / (truth < 255).sum()
    assert lines[4].startswith(f"  background {share[0]:.1%}, building {share[1]:.1%}, ")
    with pytest.raises(UserError, match="not as expected: loveda/rural train, loveda/rural val; see above"):
        main([*arguments, "--strict"])


def test_progress_is_logged(tmp_path):
    loveda.write(tmp_path)
    arguments = ["loveda/rural", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    command = [sys.executable, "-m", "crossearth_jax.prepare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == ""
    assert "3/3 scenes in 0:00:0" in done.stderr and "loveda/rural train" in done.stderr
    assert "tensorflow_datasets" not in done.stderr and "dataset_builder.py" not in done.stderr


def test_strict_leaves_nothing(tmp_path):
    loveda.write(tmp_path)
    expected = r"split train of loveda/urban has 2 images, the benchmark's has 1156; complete the archives"
    with pytest.raises(UserError, match=expected):
        prepare("loveda/urban", tmp_path / "data", tmp_path, strict=True)
    assert not list((tmp_path / "data/loveda/urban").iterdir())


def test_unpacking_beside_the_archive_changes_nothing(tmp_path):
    loveda.write(tmp_path)
    before = prepared.examples("loveda/urban", tmp_path, tmp_path / "a")
    pictures.write_files(tmp_path, loveda.files("train"))
    after = prepared.examples("loveda/urban", tmp_path, tmp_path / "b")
    assert {split: sorted(records) for split, records in before.items()} == {
        split: sorted(records) for split, records in after.items()
    }


def potsdam_scene(folder, colours):
    pictures.write_files(
        folder,
        {
            "top_potsdam_2_10_RGB.tif": potsdam.truth("2_10", "RGB")[0],
            "top_potsdam_2_10_label_noBoundary.tif": colours,
        },
    )


def test_colours_outside_the_palette(tmp_path):
    """Like the cars of 6_7: read as the nearest colour (default), ignored as in the reference, or refused."""
    colours = pictures.lookup([(255, 255, 255)] * 6, potsdam.truth("2_10", "RGB")[1])
    colours[7, 5:9] = (252, 255, 0)
    potsdam_scene(tmp_path / "manual", colours)
    expected = r"2_10_label_noBoundary\.tif has the .* \(252, 255, 0\) \(4 pixels\); .*unknown_colours=nearest"
    with pytest.raises(UserError, match=expected):
        prepare("potsdam/rgb", tmp_path / "data", tmp_path / "manual", {"unknown_colours": "error"})
    for choice, label, note in (
        ("nearest", 4, ", at most 3 away; the nearest ones are taken"),
        ("ignored", 255, "; they are ignored"),
    ):
        data_dir = tmp_path / choice
        found = prepared.examples("potsdam/rgb", tmp_path / "manual", data_dir, unknown_colours=choice)
        stored = found["train"]["2_10_0_0_512_512"]["label"]
        np.testing.assert_array_equal(stored[7, 4:10], [0, *[label] * 4, 0])
        recorded = prepared.metadata("potsdam/rgb", data_dir)
        assert recorded["options"]["unknown_colours"] == choice
        remark = f"less than 0.1% of top_potsdam_2_10_label_noBoundary.tif has colours outside the palette{note}"
        assert remark in recorded["warnings"]


def test_a_photograph_is_no_label(tmp_path):
    potsdam_scene(tmp_path / "manual", potsdam.truth("2_10", "RGB")[0])
    expected = r"label_noBoundary\.tif has the unknown label colours .* \(their distance to each of these is above 80\)"
    with pytest.raises(UserError, match=expected):
        prepare("potsdam/rgb", tmp_path / "data", tmp_path / "manual")


def test_a_scene_without_labels_is_refused_unless_it_may_be_kept(tmp_path, capsys):
    manual, arguments = tmp_path / "manual", [f"--manual_dir={tmp_path / 'manual'}", f"--data_dir={tmp_path / 'data'}"]
    potsdam_scene(manual, potsdam.faded("2_10"))
    ignored = "--option=potsdam.unknown_colours=ignored"
    found = r"100\.0% of the pixels of scene 2_10 have no label \(they are ignored\)"
    expected = rf"{found}, at most 90% are accepted; if the labels are right: --option potsdam\.unlabelled=kept"
    with pytest.raises(UserError, match=expected):
        main(["potsdam/rgb", *arguments, ignored])
    with pytest.raises(UserError, match="not as expected: potsdam/rgb train; see above"):
        main(["potsdam/rgb", *arguments, ignored, "--check"])
    printed = capsys.readouterr().out
    assert re.search(rf"  fault: {expected}", printed)
    assert re.search(r"warning: 100\.0% of top_potsdam_2_10_label_noBoundary\.tif has colours outside", printed)
    kept = [ignored, "--option=potsdam.unlabelled=kept"]
    assert main(["potsdam/rgb", *arguments, *kept, "--check"]) == 0
    assert re.search(rf"  warning: {found}\n", capsys.readouterr().out)
    assert main(["potsdam/rgb", *arguments, *kept]) == 0
    warnings = "\n".join(prepared.metadata("potsdam/rgb", tmp_path / "data")["warnings"])
    assert re.search(found, warnings)
    assert re.search(r"100\.0% of the pixels of split train have no label", warnings)


def test_images_without_labels_are_counted(tmp_path, capsys):
    """One image without labels of two is a warning, since such images exist; if all have none, it is a fault."""
    nothing = {MASK: mask(0)}
    loveda_with(tmp_path / "manual", nothing)
    arguments = ["loveda/urban", f"--data_dir={tmp_path / 'data'}"]
    archives = f"--manual_dir={tmp_path / 'manual'}"
    assert main([*arguments, archives, "--check"]) == 0
    expected = "1 of 2 images of split train (50.0%) have no label at all"
    assert f"  warning: {expected}\n" in capsys.readouterr().out
    assert main([*arguments, archives]) == 0
    assert expected in prepared.metadata("loveda/urban", tmp_path / "data")["warnings"]
    assert main([*arguments, "--check"]) == 0
    assert "  warning: 1 of 2 images have no label at all\n" in capsys.readouterr().out
    loveda_with(tmp_path / "manual", {**nothing, MASK.replace("1366", "1367"): mask(0)})
    with pytest.raises(UserError, match=r"100\.0% of the pixels of split train have no label"):
        prepare("loveda/urban", tmp_path / "other", tmp_path / "manual")
    assert not list((tmp_path / "other/loveda/urban").iterdir())


def test_a_mask_that_is_neither_black_nor_white_is_refused(tmp_path):
    massachusetts_roads.write(tmp_path)
    pictures.write_files(tmp_path, {"mass_roads/test/map/10378780_15.tif": mask(77, (96, 96))})
    with pytest.raises(UserError, match=r"/10378780_15\.tif has the unknown label values 77 \(9216 pixels\)"):
        prepare("massachusetts_roads/roads", tmp_path / "data", tmp_path)


def test_archives_of_another_kind_are_mentioned(tmp_path, caplog):
    loveda.write(tmp_path / "loveda")
    pictures.write_files(tmp_path / "loveda", {"Val.7z": b""})
    prepare("loveda/urban", tmp_path / "data", tmp_path / "loveda")
    assert "loveda/urban: not read (only zip archives are): Val.7z; unpack them if" in caplog.text
    pictures.write_files(tmp_path / "manual", {"Potsdam.rar": b""})
    with pytest.raises(UserError, match=r"contains 1 files but none of potsdam/rgb; unpack Potsdam\.rar first"):
        prepare("potsdam/rgb", tmp_path / "data", tmp_path / "manual")
    with pytest.raises(UserError, match=r"nowhere is not a folder; pass the .* as --manual_dir"):
        prepare("potsdam/rgb", tmp_path / "data", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"run 'python -m crossearth_jax\.prepare potsdam/rgb --manual_dir=…'"):
        prepare("potsdam/rgb", tmp_path / "data")


def test_pictures_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 4095)
    loveda.write(tmp_path)
    with pytest.raises(UserError, match=r"1366\.png cannot be decoded \(it has 64 x 64 pixels, expected at most 4095"):
        prepare("loveda/urban", tmp_path / "data", tmp_path)


def test_several_processes_prepare_the_same(tmp_path, monkeypatch):
    rescuenet.write(tmp_path)
    alone = prepared.examples("rescuenet/rescuenet_5class", tmp_path, tmp_path / "a")
    monkeypatch.setattr(pool, "WORTH_PROCESSES", 0)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    together = prepared.examples("rescuenet/rescuenet_5class", tmp_path, tmp_path / "b")
    for split, records in alone.items():
        assert list(records) == list(together[split])
        for name, record in records.items():
            np.testing.assert_array_equal(record["image"], together[split][name]["image"])
            np.testing.assert_array_equal(record["label"], together[split][name]["label"])


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("whu_building.test_folder", "is not of the form DATASET.NAME=VALUE"),
        ("rescuenet.water=ignored", "is for rescuenet, but whu_building is to be prepared"),
        (
            "whu_building.test=val",
            r"unknown option 'whu_building\.test=val'; .*test_folder=detect\|val\|test",
        ),
    ],
)
def test_options_are_checked(tmp_path, option, expected):
    whu_building.write(tmp_path)
    with pytest.raises(UserError, match=expected):
        main(["whu_building", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path}", f"--option={option}"])


def test_blue_marble_has_no_options(tmp_path):
    with pytest.raises(UserError, match="blue_marble/temperate_brown has no options, given: water"):
        prepare("blue_marble/temperate_brown", tmp_path, options={"water": "ignored"})
    with pytest.raises(UserError, match="is not made from archives; leave out --manual_dir"):
        main(["blue_marble/temperate_brown", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path}", "--check"])


def test_check_of_a_prepared_dataset(tmp_path, capsys):
    """--check prints the options of the preparation and finds an image that two splits share.

    The check for such images during the preparation is turned off here.
    """
    twin = {"Val/Urban/images_png/3514.png": loveda.truth("1367")[0]}
    loveda_with(tmp_path / "manual", twin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building.SceneBuilder, "_judge_overlap", lambda *_: None)
        prepare("loveda/urban", tmp_path / "data", tmp_path / "manual")
    with pytest.raises(UserError, match=r"not as expected: loveda/urban val; delete the folder of the domain"):
        main(["loveda/urban", f"--data_dir={tmp_path / 'data'}", "--check"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "loveda/urban was prepared with overlap error, unlabelled error, layout official"
    assert lines[1:3] == ["loveda/urban train: 2 images (64x64: 2)", "  warning: 1156 images expected"]
    assert lines[6] == "  fault: 3514 is the same image as 1367 of split train; splits must not overlap"
