"""Released recipes against tables typed from the published settings, not from our files; and that each can run."""

from functools import cache
from typing import Any

import pytest

from components.params import Params, parse_params
from components.preparation import prepare_clips
from components.readers import READERS
from model.augment import check_augmentations
from model.layouts import load_layout
from model.nets import create_model
from model.nets.defaults import stream_options
from pipeline import listing
from pipeline.catalogue import params_of, recipe_names, released

SETS = {"ntu60-xsub": 60, "ntu60-xview": 60, "ntu120-xsub": 120, "ntu120-xset": 120}
GRAPH_STREAMS = ["joint", "bone", "joint_motion", "bone_motion"]
SIX = ["joint", "bone", "kbone", "joint_motion", "bone_motion", "kbone_motion"]

# model: data set -> streams of the released configurations.
MMACTION2 = {
    "stgcn": ["ntu60-xsub-2d", "ntu60-xsub-3d", "ntu120-xsub-2d", "ntu120-xsub-3d"],
    "stgcnpp": ["ntu60-xsub-2d", "ntu60-xsub-3d"],
    "agcn": ["ntu60-xsub-2d", "ntu60-xsub-3d"],
}
PROTOGCN = [*SETS, "kinetics400", "finegym"]

# repeats, epochs, global batch, rate, schedule, weight decay, Nesterov, largest gradient norm
TRAINING = {
    "protogcn/": (1, 150, 16, 0.025, "cosine", 5e-4, True, None),
    "protogcn/kinetics400": (1, 150, 64, 0.1, "cosine", 5e-4, True, None),
    "mmaction2/stgcn/": (5, 16, 16 * 8, 0.1, "cosine", 5e-4, True, None),
    "mmaction2/stgcnpp/": (5, 16, 16 * 8, 0.1, "cosine", 5e-4, True, None),
    "mmaction2/agcn/": (5, 16, 16 * 8, 0.1, "cosine", 5e-4, True, None),
    "pyskl/stgcnpp/": (5, 16, 16 * 8, 0.1, "cosine", 5e-4, True, None),
    "pyskl/ctrgcn/": (5, 16, 16 * 8, 0.1, "cosine", 5e-4, True, None),
    "pyskl/agcn/": (5, 16, 16 * 8, 0.1, "cosine", 5e-4, True, None),
    "pyskl/dgstgcn/": (1, 150, 16 * 4, 0.1, "cosine", 5e-4, True, None),
    "mmaction2/posec3d/ntu60-xsub": (10, 24, 16 * 8, 0.2, "cosine", 3e-4, False, 40),
    "mmaction2/posec3d/finegym": (10, 24, 16 * 8, 0.2, "cosine", 3e-4, False, 40),
    "pyskl/posec3d/ntu120-xsub": (10, 24, 16 * 8, 0.2, "cosine", 3e-4, False, 40),
    "pyskl/posec3d/finegym": (10, 24, 32 * 8, 0.4, "cosine", 3e-4, False, 40),
    "mmaction2/posec3d/kinetics400": (10, 24, 32 * 8, 0.4, "cosine", 1e-4, False, 40),
    "mmaction2/posec3d/ucf101": (10, 12, 16 * 8, 0.01, "step", 3e-4, False, 40),
    "mmaction2/posec3d/hmdb51": (10, 12, 16 * 8, 0.01, "step", 3e-4, False, 40),
}

# preparation (or variant of the pixels' normalisation), stored type, frames, sampler, motion, joints appended, angles
TURNED = ("normalise_3d", {"align_spine": True, "align_shoulder": True})
FEEDING: dict[str, tuple[Any, ...]] = {
    "protogcn/ntu": (("normalise_3d", {}), "float16", 100, "protogcn", "before", None, (0.2, None)),
    "protogcn/finegym": (None, "float16", 100, "pyskl", "after", "coco_new", None),
    "protogcn/kinetics400": (None, "float16", 100, "pyskl", "after", "coco_new", None),
    "mmaction2/*-3d": (TURNED, "float32", 100, "mmaction2", "before", None, None),
    "mmaction2/*-2d": ("mmaction2", "float16", 100, "mmaction2", "before", None, None),
    "pyskl/*-3d": (TURNED, "float32", 100, "pyskl", "before", None, None),
    "pyskl/*-2d": ("pyskl", "float16", 100, "pyskl", "before", None, None),
    "pyskl/dgstgcn/*-3d": (TURNED, "float32", 100, "pyskl", "before", None, (0.2, None)),
    # In the plane the original draws from [-theta, 1]: a defect that is kept.
    "pyskl/dgstgcn/*-2d": ("pyskl", "float16", 100, "pyskl", "before", None, (0.2, 1.0)),
    "mmaction2/posec3d/": (None, "float16", 48, "mmaction2", "before", None, None),
    "pyskl/posec3d/": (None, "float16", 48, "pyskl", "before", None, None),
}

# What ProtoGCN adds to a stream's rotation (Kinect) or does instead (pixels): j, b, k; each motion as its stream.
AUGMENTED = {
    "ntu60-xsub": (None, "spatial_flip", "spatial_flip"),
    "ntu60-xview": (None, None, "part_drop"),
    "ntu120-xsub": ("spatial_flip", "spatial_flip", "part_drop"),
    "ntu120-xset": (None, "spatial_flip", "spatial_flip"),
    "finegym": ("mirror_flip", "mirror_flip", "mirror_flip"),
    "kinetics400": ("mirror_flip", "mirror_flip", "mirror_flip"),
}
CHANCE = {"spatial_flip": 0.5, "mirror_flip": 0.5, "part_drop": 0.2}

# joint, bone, k-bone, two, four, six (joint, bone, k-bone, each twice)
PROTOGCN_FIGURES = {
    "ntu60-xsub": (91.54, 91.98, 91.59, 92.96, 93.53, 93.81),
    "ntu60-xview": (96.33, 96.15, 96.61, 97.23, 97.49, 97.76),
    "ntu120-xsub": (85.52, 88.96, 88.30, 89.75, 90.43, 90.92),
    "ntu120-xset": (88.35, 90.01, 89.65, 91.23, 91.86, 92.16),
    "kinetics400": (48.02, 47.06, 45.86, 49.85, 51.33, 51.85),
    "finegym": (93.28, 94.84, 94.44, 95.35, 95.62, 95.94),
}
# joint, bone, joint motion, bone motion, two, four
MMACTION2_FIGURES = {
    "stgcn/ntu60-xsub-2d": (88.95, 91.69, 86.90, 87.86, 92.12, 92.34),
    "stgcn/ntu60-xsub-3d": (88.11, 88.76, 86.06, 85.49, 90.14, 90.39),
    "stgcnpp/ntu60-xsub-2d": (89.29, 92.30, 87.30, 88.76, 92.61, 92.77),
    "stgcnpp/ntu60-xsub-3d": (89.14, 90.21, 86.67, 87.45, 91.39, 91.87),
    "agcn/ntu60-xsub-2d": (88.60, 91.59, 88.02, 88.82, 91.95, 92.34),
    "agcn/ntu60-xsub-3d": (88.26, 89.22, 86.73, 86.41, 90.27, 90.89),
}
POSEC3D_FIGURES = {
    "ntu60-xsub": {"keypoint": 93.6, "limb": 93.5, "two": 94.0},
    "finegym": {"keypoint": 93.5, "limb": 93.6},
    "kinetics400": {"keypoint": 47.4},
    "ucf101": {"keypoint": 86.8},
    "hmdb51": {"keypoint": 69.6},
}

# recognition by linear evaluation, retrieval
UMURL_FIGURES = {
    "ntu60-xsub": (84.2, 72.0),
    "ntu60-xview": (90.9, 88.9),
    "ntu120-xsub": (75.2, 59.5),
    "ntu120-xset": (76.3, 62.2),
}

# Published multiply-accumulates (G) and parameters of one network. Heat maps are smaller in training than in tests.
PARAMETERS = {
    "mmaction2/stgcn/ntu60-xsub-3d": (5.713, 3_098_832),
    "mmaction2/stgcn/ntu60-xsub-2d": (3.822, 3_088_704),
    "mmaction2/stgcn/ntu120-xsub-3d": (5.713, 3_114_252),
    "mmaction2/stgcnpp/ntu60-xsub-3d": (2.957, 1_403_144),
    "mmaction2/stgcnpp/ntu60-xsub-2d": (1.948, 1_393_016),
    "mmaction2/agcn/ntu60-xsub-3d": (6.488, 3_469_520),
    "mmaction2/agcn/ntu60-xsub-2d": (4.349, 3_459_344),
    "pyskl/ctrgcn/ntu60-xsub-3d": (2.996, 1_446_672),
    "pyskl/ctrgcn/ntu60-xsub-2d": (1.952, 1_436_496),
    "pyskl/dgstgcn/ntu60-xsub-3d": (2.538, 1_701_172),
    "pyskl/dgstgcn/ntu60-xsub-2d": (1.713, 1_674_244),
    "protogcn/ntu60-xsub": (7.481, 4_344_860),
    "protogcn/ntu120-xset": (7.481, 4_367_960),
    "protogcn/finegym": (5.974, 4_284_245),
    "protogcn/kinetics400": (5.974, 4_400_130),
    "mmaction2/posec3d/finegym": (None, 2_044_867),
    "mmaction2/posec3d/ntu60-xsub": (None, 2_024_860),
    "mmaction2/posec3d/kinetics400": (None, 3_208_560),
    "mmaction2/posec3d/ucf101": (None, 3_055_173),
    "mmaction2/posec3d/hmdb51": (None, 3_029_523),
}
# Prototypes and weight of the contrastive loss by stream.
PROTOTYPES = {"joint": (400, 0.2), "bone": (100, 0.3), "kbone": (100, 0.1)}


def row(table: dict[str, Any], name: str) -> Any:
    """The entry of the longest pattern that fits `name`: a prefix, or a prefix and an end around a star."""
    patterns = [p.partition("*") for p in table]
    fitting = [a + star + b for a, star, b in patterns if name.startswith(a) and name.endswith(b)]
    return table[max(fitting, key=len)]


SUPERVISED = [name for name in recipe_names() if released(name).recipe]


@cache
def params(name: str) -> Params:
    return parse_params(params_of(name), name)


def test_every_released_configuration_is_there() -> None:
    named = {f"protogcn/{where}" for where in PROTOGCN}
    named |= {f"mmaction2/{model}/{where}" for model, sets in MMACTION2.items() for where in sets}
    models = ("stgcnpp", "agcn", "ctrgcn", "dgstgcn")
    named |= {f"pyskl/{model}/{where}-{form}" for model in models for where in SETS for form in ("2d", "3d")}
    named |= {f"mmaction2/posec3d/{where}" for where in POSEC3D_FIGURES} | {
        "pyskl/posec3d/finegym",
        "pyskl/posec3d/ntu120-xsub",
    }
    named |= {f"umurl/{where}" for where in SETS}
    assert set(recipe_names()) == named


@pytest.mark.parametrize("name", SUPERVISED)
def test_training_is_the_published_one(name: str) -> None:
    found = params(name).entry.recipe
    repeats, epochs, batch, rate, schedule, decay, nesterov, norm = row(TRAINING, name)
    assert (found.repeats, found.epochs, found.batch_size, found.lr) == (repeats, epochs, batch, rate)
    assert (found.schedule, found.weight_decay, found.nesterov, found.clip_grad) == (schedule, decay, nesterov, norm)
    assert found.momentum == 0.9 and found.label_smoothing == 0 and not found.amp and found.accumulate == 1
    # On eight or four GPUs, ProtoGCN on one; PoseC3D's batches of 256 are eight times 32.
    assert found.bn_batch == (None if name.startswith("protogcn") else 32 if batch == 256 else 16)
    assert found.base_batch == batch  # another batch size changes the rate in proportion
    assert found.class_factors == ([1] * 60 + [2] * 60 if name == "pyskl/posec3d/ntu120-xsub" else [])
    if schedule == "step":
        assert (found.milestones, found.gamma) == ([9, 11], 0.1)


@pytest.mark.parametrize("name", SUPERVISED)
def test_feeding_is_the_published_one(name: str) -> None:
    entry = params(name).entry
    found = entry.recipe
    step, dtype, frames, sampler, difference, finish, rotation = row(FEEDING, name)
    normalised = isinstance(step, str)
    assert entry.data.prepare == ([{"name": step[0], **step[1]}] if step and not normalised else [])
    assert found.normalise_2d == (step if normalised else None)
    assert (entry.data.dtype, found.clip_length, found.test_clips) == (dtype, frames, 10)
    assert (found.sampler, found.difference, found.finish) == (sampler, difference, finish)
    assert found.persons == (None if "posec3d" in name else 2)
    for member, spec in params(name).members.items():
        steps = [dict(each) for each in params(name).augmentation(member)]
        if rotation:
            theta, upper = rotation
            assert steps.pop(0) == {"name": "rotate", "theta": theta, **({"upper": upper} if upper else {})}
        if name.startswith("protogcn"):
            column = ("joint", "bone", "kbone").index(spec.stream.removesuffix("_motion"))
            added = AUGMENTED[name.partition("/")[2]][column]
            assert steps == ([{"name": added, "p": CHANCE[added]}] if added else [])
        else:
            assert steps == []


def test_heat_maps_are_the_published_ones() -> None:
    for name in (name for name in SUPERVISED if "posec3d" in name):
        maps = released(name).recipe["heatmap"]
        assert (maps["sigma"], maps["area"], maps["flip"], maps["padding"]) == (0.6, [0.56, 1.0], 0.5, 0.25)
        assert maps["threshold"] == (1e-3 if name.startswith("pyskl") else 1e-4)
        small = name.endswith(("ucf101", "hmdb51"))
        assert (maps["train_size"], maps["test_size"]) == ((48, 56) if small else (56, 64))
        assert maps["test_crop"] == (not name.startswith("pyskl") and "kinetics" not in name)
        assert maps["double"] and maps["use_score"] and maps["resize"] == 64
    for name in ("mmaction2/posec3d/ucf101", "mmaction2/posec3d/hmdb51"):
        assert released(name).starts_from == "mmaction2/posec3d/kinetics400"
        start = {(m.train, m.weights) for m in params(name).members.values()}
        assert start == {("finetune", "weights/mmaction2-posec3d-kinetics400.pt")}


def test_pre_training_is_the_published_one() -> None:
    for where in SETS:
        content = params_of(f"umurl/{where}")
        network, pretrain, linear = (content["umurl"][part] for part in ("network", "pretrain", "linear"))
        assert (network["hidden"], network["frames"], network["projector_width"]) == (1024, 64, 4096)
        assert pretrain["batch_size"] == (512 if where == "ntu60-xsub" else 1024)
        found = [pretrain[key] for key in ("epochs", "lr", "milestones", "weight_decay")]
        assert found == [451, 5e-4, [351], 1e-5]
        found = [linear[key] for key in ("epochs", "batch_size", "lr", "milestones", "momentum", "look_every")]
        assert found == [150, 512, 0.03, [120, 140], 0.9, 5]
        assert linear["report"] == "best_on_test" and content["umurl"]["retrieval"] == {"neighbours": 1}
        data = content["datasets"][where]["data"]
        assert (data["reader"], data["prepare"], data["dtype"]) == ("ntu_raw", [], "float32")
        assert data["options"] == {"conversion": "umurl", "actions": 60 if "60" in where else 120}


def test_published_figures() -> None:
    published = {name: released(name).published for name in recipe_names()}
    for where, values in PROTOGCN_FIGURES.items():
        keys = ("joint", "bone", "kbone", "two", "four", "v1")
        assert published.pop(f"protogcn/{where}") == dict(zip(keys, values, strict=True))
    for where, values in MMACTION2_FIGURES.items():
        assert published.pop(f"mmaction2/{where}") == dict(zip([*GRAPH_STREAMS, "two", "four"], values, strict=True))
    for where, figures in POSEC3D_FIGURES.items():
        assert published.pop(f"mmaction2/posec3d/{where}") == figures
    for where, (linear, retrieval) in UMURL_FIGURES.items():
        assert published.pop(f"umurl/{where}") == {"linear": linear, "retrieval": retrieval}
    assert not any(published.values())
    assert released("protogcn/kinetics400").published_top5 == {"two": 74.0, "four": 75.1, "v1": 75.6}
    mean_class = {name for name in recipe_names() if released(name).metric == "mean_class"}
    assert mean_class == {name for name in recipe_names() if name.endswith("finegym")}


@pytest.mark.parametrize("name", SUPERVISED)
def test_members_and_weights_of_the_fusions(name: str) -> None:
    found = params(name)
    model = released(name).model
    weights = {title: dict(each.members) for title, each in found.ensembles.items()}

    def of(**streams: float) -> dict[str, float]:
        return {f"{model}-{stream}-s0": weight for stream, weight in streams.items()}

    assert all(m.model == model for m in found.members.values())
    if model == "posec3d":
        both = len(found.members) == 2
        assert weights == ({"two": of(keypoint=1, limb=1)} if both else {"all": of(keypoint=1)})
        return
    assert weights.pop("two") == of(joint=1, bone=1)
    assert weights.pop("four") == of(joint=2, bone=2, joint_motion=1, bone_motion=1)
    if model == "protogcn":
        assert weights.pop("six") == of(joint=2, bone=2, kbone=2, joint_motion=1, bone_motion=1, kbone_motion=1)
        twice = {f"protogcn-{stream}-s{seed}": 1 for stream in ("joint", "bone", "kbone") for seed in (0, 1)}
        assert weights.pop("v1") == twice
    assert not weights
    assert released(name).streams == (SIX if model == "protogcn" else GRAPH_STREAMS)


@pytest.mark.parametrize("name", SUPERVISED)
def test_every_named_step_exists(name: str) -> None:
    found = params(name)
    layout = load_layout(released(name).layout)
    assert list(prepare_clips([], found.entry.data.prepare, layout)) == []
    assert found.entry.data.reader in READERS
    for member in found.members:
        check_augmentations(found.augmentation(member), layout)
    assert len(set(found.entry.split.test) | {found.entry.split.train}) == 2


@pytest.mark.parametrize("name", [*PARAMETERS, "pyskl/stgcnpp/ntu60-xview-2d", "pyskl/agcn/ntu120-xset-3d"])
def test_network_of_a_recipe_is_the_published_one(name: str) -> None:
    recipe, (gmacs, count) = released(name), PARAMETERS.get(name, (None, None))
    options = params(name).network_options(next(iter(params(name).members)))
    layout = recipe.recipe.get("finish") or recipe.layout
    net = create_model(
        recipe.model, layout=layout, num_classes=recipe.classes, **stream_options(recipe.model, "joint"), **options
    )
    if count:
        assert sum(p.numel() for p in net.parameters()) == count
    if gmacs:
        assert listing.macs(recipe) / 1e9 == pytest.approx(gmacs, abs=6e-4)


def test_streams_of_protogcn_differ_in_prototypes() -> None:
    for name in (f"protogcn/{where}" for where in PROTOGCN):
        found = params(name)
        for member, spec in found.members.items():
            options = stream_options("protogcn", spec.stream, found.entry.recipe.setting)
            options |= found.network_options(member)
            wanted = PROTOTYPES[spec.stream.removesuffix("_motion")]
            assert (options["num_prototypes"], options["contrastive_weight"]) == wanted


def test_cost_follows_the_stated_rule() -> None:
    recipe = released("mmaction2/stgcnpp/ntu60-xsub-3d")
    assert listing.cost(recipe) == 3 * listing.macs(recipe) * 40091 * 5 * 16
