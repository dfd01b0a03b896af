"""`sixstream info` gives the published table of parameters and multiply-accumulates, row by row."""

import pytest

from components import info as component
from components.info import info
from pipeline.cli import main

K400 = ["stage_blocks=[3, 4, 6]"]
SMALL = ["base_channels=8"]
# arguments, parameters, G multiply-accumulates: what the papers and model zoos print, and for ProtoGCN's prototype
# branch (training) what its complexity tool would.
TABLE = [
    (["stgcn", "--layout", "nturgb+d"], 3_098_832, 5.713),
    (["stgcn", "--layout", "coco"], 3_088_704, 3.822),
    (["stgcn", "--layout", "nturgb+d", "--classes", "120"], 3_114_252, 5.713),
    (["stgcnpp", "--layout", "nturgb+d"], 1_403_144, 2.957),
    (["stgcnpp", "--layout", "coco"], 1_393_016, 1.948),
    (["agcn", "--layout", "nturgb+d"], 3_469_520, 6.488),
    (["agcn", "--layout", "coco"], 3_459_344, 4.349),
    (["posec3d", "--layout", "coco", "--classes", "99"], 2_044_867, 20.605),
    (["posec3d", "--layout", "coco"], 2_024_860, 20.605),
    (["posec3d", "--layout", "coco", "--classes", "400", "--options", *K400], 3_208_560, 19.090),
    (["posec3d", "--layout", "coco", "--classes", "101", "--size", "56", "--options", *K400], 3_055_173, 14.615),
    (["posec3d", "--layout", "coco", "--classes", "51", "--size", "56", "--options", *K400], 3_029_523, 14.615),
    (["ctrgcn", "--layout", "nturgb+d"], 1_446_672, 2.996),
    (["ctrgcn", "--layout", "coco"], 1_436_496, 1.952),
    (["dgstgcn", "--layout", "nturgb+d"], 1_701_172, 2.538),
    (["dgstgcn", "--layout", "coco"], 1_674_244, 1.713),
    (["protogcn", "--layout", "nturgb+d"], 4_344_860, 7.481),
    (["protogcn", "--layout", "nturgb+d", "--training"], 4_344_860, 7.766),
    (["protogcn", "--layout", "nturgb+d", "--stream", "bone"], 4_114_460, 7.481),
    (["protogcn", "--layout", "nturgb+d", "--stream", "kbone", "--training"], 4_114_460, 7.622),
    (["protogcn", "--layout", "nturgb+d", "--classes", "120"], 4_367_960, 7.481),
    (["protogcn", "--layout", "nturgb+d", "--classes", "120", "--stream", "bone_motion"], 4_137_560, 7.481),
    (["protogcn", "--layout", "coco_new", "--classes", "99"], 4_284_245, 5.974),
    (["protogcn", "--layout", "coco_new", "--classes", "99", "--stream", "bone"], 4_053_845, 5.974),
    (["protogcn", "--layout", "coco_new", "--classes", "400"], 4_400_130, 5.974),
    (["protogcn", "--layout", "coco_new", "--classes", "400", "--stream", "bone"], 4_169_730, 5.974),
]


@pytest.mark.parametrize(("arguments", "parameters", "macs"), TABLE)
def test_the_published_table(arguments, parameters, macs, monkeypatch, capsys):
    # The row needs no time, and a forward pass of the large networks costs a second.
    monkeypatch.setattr(component, "_forward_seconds", lambda net, x: 0.0)
    assert main(["info", *arguments]) == 0
    shown = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name.strip(): value.strip() for name, value in shown.items()}
    assert shown["parameters"] == f"{parameters:,}"
    assert shown["multiply-accumulates, published"] == f"{macs:.3f} G"
    assert float(shown["multiply-accumulates, executed"].removesuffix(" G")) < macs


def test_time_is_measured_on_the_clip_that_is_asked_for(capsys):
    found = info("stgcnpp", layout="coco", classes=5, in_channels=2, clip_length=20, persons=1, options=SMALL)
    assert found["input"] == [1, 1, 20, 17, 2] and found["seconds"] > 0
    longer = info("stgcnpp", layout="coco", classes=5, in_channels=2, clip_length=40, persons=1, options=SMALL)
    assert longer["parameters"] == found["parameters"]
    assert longer["published"] == pytest.approx(2 * found["published"], rel=0.01)
    assert " ms (" in capsys.readouterr().out


def test_networks_whose_norm_knows_the_persons_get_their_number():
    one, two = (info("agcn", layout="coco", clip_length=8, persons=m, options=SMALL) for m in (1, 2))
    assert two["parameters"] - one["parameters"] == 2 * 17 * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["msg3d", "--layout", "coco"], "'msg3d' is unknown"),
        (["stgcn", "--layout", "cocoo"], "'cocoo'"),
        (["stgcn", "--layout", "coco", "--stream", "joints"], "'joints'"),
        (["stgcn", "--layout", "coco", "--options", "prototypes=3"], "no option 'prototypes'"),
        (["stgcn", "--layout", "coco", "--options", "prototypes"], "--options prototypes: write a key"),
    ],
)
def test_mistakes_are_named(arguments, words, capsys):
    assert main(["info", *arguments]) == 2
    assert words in capsys.readouterr().err
