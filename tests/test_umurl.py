"""UmURL's data against a spelled-out form, and what its views, clips and loss promise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_kit import card, short, small_store

from components.readers import read_ntu
from model import create_model, ntu
from model.complexity import complexity, usual_input
from model.errors import UserError
from model.layouts import LAYOUTS, load_layout
from model.prepare import rotation_between
from model.store import Clip, Store, open_store, write_store
from model.train import fit
from model.umurl_clips import UmurlClips
from model.umurl_loss import variance_covariance
from model.umurl_probe import linear_classifier, linear_evaluation, retrieve
from model.umurl_views import distort, draw_views, pre_normalise, random_crop, resampling, turns_to_x

NTU = load_layout("nturgb+d")
SMALL = {"hidden": 8, "frames": 8, "projector_width": 12}


def spelled_out(x: np.ndarray) -> np.ndarray:
    """UmURL's pre-normalisation of one clip (M, T, V, 3), body by body and frame by frame."""
    x = x.astype(np.float64)
    for body in x:
        if not body.any():
            continue
        if not body[0].any():
            kept = [frame.copy() for frame in body if frame.any()]
            body[:] = 0
            body[: len(kept)] = kept
        for t in range(len(body)):
            if not body[t:].any():
                for later in range(t, len(body)):
                    body[later] = body[(later - t) % t]
                break
    centre = x[0, :, 1].copy()
    for body in x:
        for t in range(len(body)):
            for v in range(body.shape[1]):
                if body[t, v].any():
                    body[t, v] -= centre[t]
    turn = rotation_between(x[0, 0, 8] - x[0, 0, 4], np.array([1.0, 0.0, 0.0]))
    return x @ turn.T


def gappy_clips() -> list[np.ndarray]:
    """Clips (2, T, 25, 3): late bodies, gaps, missing joints, an empty second body, shoulders along x."""
    generator = np.random.default_rng(4)
    clips = [generator.normal(0, 1, (2, 9, 25, 3)) for _ in range(5)]
    clips[0][0, :3] = 0
    clips[0][1, 7:] = 0
    clips[1][1] = 0
    clips[1][0, 4] = 0
    clips[2][0, 5:] = 0
    clips[2][1, [0, 4, 8]] = 0
    clips[3][0, 0, 8] = clips[3][0, 0, 4] + [2, 0, 0]
    clips[3][:, :, 7] = 0
    clips[4][0, 0, 8] = clips[4][0, 0, 4] - [2, 0, 0]
    return clips


def test_pre_normalisation_equals_its_definition() -> None:
    clips = gappy_clips()
    found = pre_normalise(torch.from_numpy(np.stack(clips)), NTU)
    for one, clip in zip(found, clips, strict=True):
        np.testing.assert_allclose(one.numpy(), spelled_out(clip), atol=1e-12)
    # Longer padding changes nothing in the frames that were there.
    padded = np.concatenate([np.stack(clips), np.zeros((5, 2, 6, 25, 3))], axis=2)
    torch.testing.assert_close(pre_normalise(torch.from_numpy(padded), NTU)[:, :, :9], found)


def test_turns_are_rotations_that_reach_the_axis() -> None:
    vectors = torch.randn(20, 3, dtype=torch.float64)
    matrix = turns_to_x(vectors)
    unit = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.transpose(1, 2), unit.expand(20, 3, 3))
    torch.testing.assert_close((matrix @ vectors[..., None])[:, :, 0], vectors.norm(dim=1)[:, None] * unit[:1])
    assert torch.equal(turns_to_x(torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 0, 0]])), unit.expand(3, 3, 3))


@pytest.mark.parametrize("frames", [5, 64, 100])
def test_resampling_equals_torchs_interpolation(frames: int) -> None:
    x = torch.randn(frames, 4, dtype=torch.float64)
    before, after, weight = resampling(torch.tensor([0]), torch.tensor([frames]), 64)
    expected = torch.nn.functional.interpolate(x.T[None], size=64, mode="linear")[0].T
    torch.testing.assert_close(torch.lerp(x[before[0]], x[after[0]], weight[0, :, None].double()), expected)


def test_random_parts_lie_inside_their_clips() -> None:
    frames = torch.randint(2, 200, (2000,))
    start, length = random_crop(frames, draw_views(2000, NTU, 3, torch.Generator().manual_seed(0)), 64)
    assert (start >= 0).all() and (start + length <= frames).all()
    assert (length >= frames.clamp(max=64)).all() and (length[frames > 64] > 64).any()
    free = frames > 80
    assert (start[free] == 0).any() and ((start + length)[free] == frames[free]).any()


def test_distortions_touch_what_they_say() -> None:
    x = torch.randn(400, 3, 6, 25, 2)
    draws = draw_views(400, NTU, 3, torch.Generator().manual_seed(1))
    y = distort(x, draws)
    zeroed = (y == 0).all(1).all(1).all(-1)
    same = (y == x).all(1).all(1).all(-1)
    corrupted = draws.corrupts < 0.5
    blanked = corrupted & (draws.zeroes < 0.5)
    assert (zeroed[blanked].sum(1) == 15).all() and (same[corrupted].sum(1) == 10).all()
    assert not zeroed[~blanked].any() and not same[~corrupted].any()
    assert 0.4 < corrupted.double().mean() < 0.6 and 0.15 < blanked.double().mean() < 0.35
    # The diagonal of a shear is one: a coordinate alone keeps its length.
    alone = torch.zeros(400, 3, 1, 25, 1)
    alone[:, 1] = 2
    torch.testing.assert_close(distort(alone, draws)[~corrupted][:, 1], alone[~corrupted][:, 1])


def test_clips_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    store = small_store(tmp_path / "store")
    clips = UmurlClips(store, store.splits["dev"], frames=8, training=False)
    everything = clips.batch(torch.arange(len(clips)))
    assert everything.shape == (12, 3, 8, 25, 2) and len(clips.rows) == int(store.frames[store.splits["dev"]].sum())
    for row in (0, 7, 11):
        assert torch.equal(clips.batch([row])[0], everything[row])
        whole = pre_normalise(torch.from_numpy(store.clip(store.splits["dev"][row]).copy())[None], NTU)
        expected = torch.nn.functional.interpolate(
            whole[0].permute(3, 0, 2, 1).flatten(0, 2)[None], size=8, mode="linear"
        )
        found = everything[row].permute(0, 3, 2, 1)[:, : len(whole[0])]
        torch.testing.assert_close(found.flatten(0, 2), expected[0], rtol=1e-4, atol=1e-5)
    assert not everything[[i for i, p in enumerate(store.splits["dev"]) if store.persons[p] == 1], ..., 1].any()
    training = UmurlClips(store, store.splits["train"], frames=8, training=True)
    views = training.batch([3, 5], torch.Generator().manual_seed(2))
    assert views.shape == (2, 4, 3, 8, 25, 2)
    assert torch.equal(views, training.batch([3, 5], torch.Generator().manual_seed(2)))
    assert not torch.equal(views[:, 0], views[:, 1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [["x", "y", "z"], ["x", "y"]])
def test_every_layout_is_pre_trained_and_evaluated(tmp_path: Path, layout: str, channels: list[str]) -> None:
    skeleton, generator = load_layout(layout), np.random.default_rng(0)
    shapes = [(1 + i % 2, 9 + i, skeleton.num_joints, len(channels)) for i in range(4)]
    made = [Clip(f"c{i}", 0, generator.normal(size=shape).astype(np.float32)) for i, shape in enumerate(shapes)]
    write_store(
        tmp_path / "store", made, layout=skeleton, classes=["one"], splits={"all": ["c1", "c2"]},
        channels=channels, data_hash="0" * 32, source="made for tests",
    )  # fmt: skip
    store = open_store(tmp_path / "store")
    net = create_model("umurl", layout=skeleton, num_classes=1, in_channels=len(channels), **SMALL)
    clips = [UmurlClips(store, np.arange(4), frames=8, training=training) for training in (True, False)]
    total, _ = net.loss(clips[0].batch(torch.arange(4), torch.Generator().manual_seed(0)), torch.zeros(4))
    assert total.isfinite() and net.eval()(clips[1].batch([3, 0])).shape == (2, 16)


def test_scores_are_refused(tmp_path: Path) -> None:
    joints = np.ones((1, 4, 17, 3), np.float32)
    write_store(
        tmp_path / "flat", [Clip("a", 0, joints)], layout=load_layout("coco"), classes=["one"], splits={"all": ["a"]},
        channels=["x", "y", "score"], data_hash="0" * 32, source="made for tests",
    )  # fmt: skip
    store = open_store(tmp_path / "flat")
    with pytest.raises(UserError, match="detection scores"):
        UmurlClips(store, store.splits["all"], training=False)


def test_own_conversion_of_raw_clips_is_exact(tmp_path: Path, small_golden: Path) -> None:
    """A store read with `conversion: umurl` gives what gendata's steps give of the raw file."""
    raw = tmp_path / "raw" / "S001C001P001R001A001.skeleton"
    raw.parent.mkdir()
    raw.write_bytes((small_golden / "ntu_two_frames.skeleton").read_bytes())
    source = read_ntu(raw.parent, conversion="umurl")
    write_store(
        tmp_path / "store", source.clips, layout=source.layout, classes=source.classes, splits=source.splits,
        channels=source.channels, data_hash="0" * 32, source="ntu_raw",
    )  # fmt: skip
    clips = UmurlClips(open_store(tmp_path / "store"), np.array([0]), frames=2, training=False)
    joints = ntu.convert_umurl(ntu.read_skeleton(raw)).transpose(3, 1, 2, 0)
    expected = spelled_out(joints).transpose(3, 1, 2, 0)
    np.testing.assert_allclose(clips.batch([0])[0].numpy(), expected[..., : clips.persons], atol=1e-5)


def test_covariance_by_either_product(tmp_path: Path) -> None:
    for rows, columns in ((5, 9), (9, 5)):
        z = torch.randn(rows, columns, dtype=torch.float64)
        covariance = torch.cov(z.T)
        off = covariance - torch.diag(covariance.diag())
        spread, together = variance_covariance(z)
        torch.testing.assert_close(together, off.square().sum() / columns)
        torch.testing.assert_close(spread, (1 - (z.var(0) + 1e-4).sqrt()).relu().mean())


@pytest.mark.parametrize(("heads", "layers"), [(1, 1), (2, 3)])
def test_transformer_is_torchs_with_the_same_tensors(heads: int, layers: int) -> None:
    net: Any = create_model("umurl", layout=NTU, num_classes=3, **SMALL, attention_heads=heads, layers=layers)
    layer = torch.nn.TransformerEncoderLayer(8, heads, 8, dropout=0.0, batch_first=True)
    theirs = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    ours = net.backbone.ma_encoder.t_tr
    for tensor in ours.state_dict().values():
        tensor.normal_(0, 0.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 7, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def pretrained(store: Store, folder: Path, **changes: object) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    torch.manual_seed(6)
    head = changes.pop("head", "projectors")
    net = create_model("umurl", layout=NTU, num_classes=3, head=head, **SMALL)
    clips = UmurlClips(store, store.splits["train"], frames=8, training=True)
    options = {
        "optimiser": "adam",
        "lr": 2e-3,
        "weight_decay": 1e-5,
        "schedule": "step",
        "milestones": (4,),
        "epochs": 6,
    }
    result = fit(net, clips, None, short(**(options | changes)), folder=folder, card=card("umurl"), fingerprint={})
    return net, result.history


@pytest.mark.parametrize("head", ["projectors", "fused_projector"])
def test_pretraining_learns_and_goes_on_after_a_stop(tmp_path: Path, head: str) -> None:
    store = small_store(tmp_path / "store")
    whole, history = pretrained(store, tmp_path / "whole", head=head)
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert [line["lr"] for line in history] == pytest.approx([2e-3] * 4 + [2e-4] * 2)
    assert {"train/variance", "train/covariance"} <= set(history[0])
    # Saving every second epoch, the stopped training goes on from the second.
    from model import train as loop

    def stop(epoch: int, record: dict[str, float]) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    clips = UmurlClips(store, store.splits["train"], frames=8, training=True)
    torch.manual_seed(6)
    net = create_model("umurl", layout=NTU, num_classes=3, head=head, **SMALL)
    settings = short(
        optimiser="adam", lr=2e-3, weight_decay=1e-5, schedule="step", milestones=(4,), epochs=6, save_every=2
    )
    with pytest.raises(KeyboardInterrupt):
        loop.fit(net, clips, None, settings, folder=tmp_path / "cut", card=card("umurl"), fingerprint={}, log=stop)
    resumed, _ = pretrained(store, tmp_path / "cut", head=head, save_every=2)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("head", ["projectors", "fused_projector"])
def test_the_loss_is_wide_under_autocast(head: str) -> None:
    torch.manual_seed(3)
    net = create_model("umurl", layout=NTU, num_classes=3, head=head, **SMALL)
    views = torch.randn(16, 4, *net.shape)
    exact, _ = net.loss(views, torch.zeros(16))
    with torch.autocast("cpu", torch.bfloat16):
        total, parts = net.loss(views, torch.zeros(16))
    total.backward()
    assert total.dtype == torch.float32 and not any(part.requires_grad for part in parts.values())
    assert total.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def features(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (90,), generator=generator)
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))
    return centres[labels] + 0.3 * torch.randn(90, 6, generator=generator), labels


def test_linear_evaluation_reports_the_last_and_marks_the_best() -> None:
    settings = short(epochs=7, batch_size=16, nesterov=False, weight_decay=0, lr=0.03, validate_every=3)
    probe = linear_evaluation(linear_classifier(6, 4, seed=0), features(0), features(1), settings)
    assert [look["epoch"] for look in probe.history] == [3, 6, 7]
    best = max(look["top1"] for look in probe.history)
    assert best > 0.8 and probe.best_epoch == next(look["epoch"] for look in probe.history if look["top1"] == best)
    x, y = features(1)
    assert ((probe.best(x).argmax(1) == y).double().mean() == best).all()
    with pytest.raises(UserError, match="at least 2"):
        linear_evaluation(linear_classifier(6, 4, seed=0), (x[:1], y[:1]), (x, y), settings)


def test_retrieval_by_hand() -> None:
    gallery = torch.tensor([[1.0, 0], [0, 2], [0.9, 0.1]])
    queries = torch.tensor([[5.0, 0], [0.1, 0.2]])
    found, near = retrieve(gallery, torch.tensor([2, 0, 1]), queries)
    assert found.tolist() == [2, 0] and near.tolist() == [[0], [1]]
    # Two neighbours that name different classes: the smaller counts.
    assert retrieve(gallery, torch.tensor([2, 0, 1]), queries, k=2)[0].tolist() == [1, 0]
    with pytest.raises(UserError, match="holds 3 clips"):
        retrieve(gallery, torch.tensor([2, 0, 1]), queries, k=4)


def test_multiply_accumulates_of_the_full_size() -> None:
    net = create_model("umurl", layout=NTU, num_classes=60, head="classifier")
    found = complexity(net, usual_input(net))
    width, tokens = 1024, 64 + 50
    embedding = 3 * (64 * 150 + 50 * 192 + tokens * width) * width
    layers = (1 + 6) * tokens * width**2 + 2 * (64**2 + 50**2) * width
    assert found.executed == embedding + layers
