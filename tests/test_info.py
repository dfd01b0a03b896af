"""`sixstream info` gives the published table of parameters and multiply-accumulates, row by row."""

import pytest
from test_nets import PUBLISHED

from components import info as component
from components.info import info
from pipeline.cli import main

SMALL = ["base_channels=8"]


def arguments(name, layout, classes, options):
    given = [f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in options.items()]
    return [name, "--layout", layout, "--classes", str(classes), *(["--options", *given] if given else [])]


K400 = ["--options", "stage_blocks=[3, 4, 6]", "--size", "56"]
# Beside the table of test_nets: small heat maps, ProtoGCN with its prototype branch, options that follow from streams.
TABLE = [(arguments(*row[:4]), *row[4:]) for row in PUBLISHED] + [
    (["posec3d", "--layout", "coco", "--classes", "101", *K400], 3_055_173, 14.615),
    (["posec3d", "--layout", "coco", "--classes", "51", *K400], 3_029_523, 14.615),
    (["protogcn", "--layout", "nturgb+d", "--training"], 4_344_860, 7.766),
    (["protogcn", "--layout", "nturgb+d", "--stream", "kbone", "--training"], 4_114_460, 7.622),
    (["protogcn", "--layout", "coco_new", "--classes", "99", "--stream", "bone"], 4_053_845, 5.974),
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
