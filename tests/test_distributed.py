"""Several gloo processes give what one process gives: losses, weights, batch norm statistics, bank, scores.

Every group of processes is started once and runs all scenarios; the tests then compare what the ranks wrote. Two
processes of 8 clips and four of 4 stand against one of 16. In double precision the difference is rounding (found:
2e-15; granted: 1e-10). Single precision is held against one process in double precision: a rectifier that rounds to
the other side moves a weight, so weights are granted 3e-3 (found: 1e-4; one process alone: 1e-3) and losses 1e-4
(found: 2e-6).
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training_kit import PROTOGCN, DoubleClips, TinyNet, card, development, short, small_store, training

from model import create_model
from model.distributed import (
    SyncBatchNorm,
    convert_sync_batchnorm,
    gather_features,
    init_from_env,
    mean_over_ranks,
    share,
    world,
)
from model.errors import UserError
from model.score import score_clips
from model.store import Store, open_store
from model.train import fit

TOLERANCE = {"double": 1e-10, "single": 3e-3}
LOSS_TOLERANCE = {"double": 1e-6, "single": 1e-4}  # dev/loss is always computed from single precision scores


def protogcn() -> nn.Module:
    net = create_model("protogcn", layout="nturgb+d", num_classes=3, **PROTOGCN, dropout=0.0)
    with torch.no_grad():  # at the initial zeros the prototype branch sees the same input for every clip
        for name, tensor in net.named_parameters():
            if name.endswith(("alpha", "beta")):
                tensor.fill_(0.3)
    return net


def fitted(build: Callable[[], nn.Module], store: Store, out: Path, *, double: bool, **changes: Any) -> dict[str, Any]:
    rank, _ = world()
    torch.manual_seed(5 + rank)  # rank 0's weights count
    net = build()
    train: Any = training(store)
    dev: Any = development(store)
    if double:
        net, train, dev = net.double(), DoubleClips(train), DoubleClips(dev)
    # 40 clips in batches of 16: the last one holds 8, so four processes have two clips each.
    made = short(**({"epochs": 2, "batch_size": 16} | changes))
    result = fit(net, train, dev, made, folder=out, card=card(), fingerprint={})
    return {"state": net.state_dict(), "history": result.history}


def scenarios(store: Store, out: Path) -> dict[str, Any]:
    """Everything a rank finds, by name."""
    found: dict[str, Any] = {"world": world()}
    for name, build in (("tiny", TinyNet), ("protogcn", protogcn)):
        for precision in TOLERANCE:
            where = out / f"{name}-{precision}"
            epochs = 2 if name == "tiny" else 1
            found[f"{name}-{precision}"] = fitted(build, store, where, double=precision == "double", epochs=epochs)
    # 31 clips: the last batch holds 15, so the ranks' shares differ.
    found["uneven"] = fitted(TinyNet, open_store(out.parent / "odd"), out / "uneven", double=True)
    found["accumulated"] = fitted(TinyNet, store, out / "accumulated", double=True, accumulate=2)
    # Two groups of 8: one process takes both, of two each takes one, of four two share one. The last batch holds 15.
    odd = open_store(out.parent / "odd")
    found["grouped"] = fitted(TinyNet, odd, out / "grouped", double=True, bn_batch=8)
    found["grouped-protogcn"] = fitted(protogcn, store, out / "grouped-protogcn", double=True, epochs=1, bn_batch=8)
    passes = {"double": True, "bn_batch": 4, "accumulate": 2}
    found["protogcn-passes"] = fitted(protogcn, store, out / "protogcn-passes", epochs=1, **passes)
    found["grouped-passes"] = fitted(TinyNet, odd, out / "grouped-passes", **passes)
    torch.manual_seed(1)
    found["scores"] = score_clips(TinyNet(), development(store, num_clips=3), 5)
    found["few"] = score_clips(TinyNet(), development_of_one(store), 5).shape
    found["gathered"] = gathered_gradients()
    found["flags"] = gather_features(torch.arange(world()[0] + 1) == 0)
    return found


def development_of_one(store: Store) -> Any:
    from model.clips import Clips

    return Clips(store, store.splits["dev"][:1], stream="joint", clip_length=8, training=False)


def gathered_gradients() -> Tensor:
    """Gradient of the objective through gather_features for rows 0..6, whichever rank holds them."""
    rank, size = world()
    rows = torch.linspace(-1, 1, 21, dtype=torch.float64).view(7, 3)
    mine = rows[share(7, rank, size)].clone().requires_grad_()
    everyone = gather_features(mine)
    (everyone @ everyone.T).logsumexp(1).mean().backward()
    assert mine.grad is not None
    return gather_features(mine.grad) / size


def _work(rank: int, size: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert init_from_env() == (rank, size) == init_from_env()
    root = Path(folder)
    out = root / f"ranks{size}"
    found = scenarios(open_store(root / "store"), out)
    x, net = norm_case()
    found["norm"] = norm_figures(DistributedDataParallel(convert_sync_batchnorm(net)), x[share(len(x), rank, size)])
    torch.save(found, root / f"found{size}-{rank}.pt")
    dist.destroy_process_group()


def norm_case() -> tuple[Tensor, nn.Module]:
    torch.manual_seed(2)
    # The common part of 100 would cost single-pass variances six digits.
    x = torch.randn(8, 3, 4, 5) + 100
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3, affine=False)]
    return x, nn.Sequential(*norms, nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(inplace=True))


def norm_figures(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    for _ in range(2):
        y = net(x)
        F.mse_loss(y, torch.sin(x.detach())).backward()
    assert x.grad is not None
    rank, size = world()
    figures = {"y": gather_features(y.detach()), "x grad": gather_features(x.grad) / size}
    figures |= {name.removeprefix("module."): tensor for name, tensor in net.state_dict().items()}
    gradients = {f"{name} grad": tensor.grad for name, tensor in net.named_parameters() if tensor.grad is not None}
    return figures | {name.removeprefix("module."): tensor for name, tensor in gradients.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of processes -> what each rank found."""
    root = tmp_path_factory.mktemp("ranks")
    store = small_store(root / "store", clips=52)
    small_store(root / "odd", clips=43)
    alone = scenarios(store, root / "ranks1")
    alone["norm"] = norm_figures(*reversed(norm_case()))
    results = {1: [alone]}
    for size in (2, 4):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        torch.multiprocessing.spawn(_work, (size, port, str(root)), size)
        results[size] = [torch.load(root / f"found{size}-{rank}.pt", weights_only=False) for rank in range(size)]
    return results


def assert_near(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        limit = tolerance * max(1.0, float(tensor.abs().max()))
        assert float((tensor - two[name]).abs().max()) <= limit, name


def figures(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k.startswith(("train", "dev", "lr"))} for record in history]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", ["tiny", "protogcn"])
def test_training_equals_one_process(found: Any, name: str, precision: str, size: int) -> None:
    alone, ranks = found[1][0][f"{name}-double"], found[size]
    assert [rank["world"] for rank in ranks] == [(number, size) for number in range(size)]
    for rank in ranks:
        result = rank[f"{name}-{precision}"]
        assert any(key.endswith("bank") for key in result["state"])
        assert_near(alone["state"], result["state"], TOLERANCE[precision])
        for one, two in zip(figures(alone["history"]), figures(result["history"]), strict=True):
            assert two == pytest.approx(one, rel=LOSS_TOLERANCE[precision])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["tiny-single", "protogcn-single", "grouped"])
def test_ranks_hold_the_same_bits(found: Any, name: str, size: int) -> None:
    first = found[size][0][name]["state"]
    for rank in found[size][1:]:
        assert all(torch.equal(tensor, rank[name]["state"][key]) for key, tensor in first.items())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "name", ["uneven", "accumulated", "grouped", "grouped-protogcn", "grouped-passes", "protogcn-passes"]
)
def test_uneven_shares_passes_and_groups_equal_one_process(found: Any, name: str, size: int) -> None:
    for rank in found[size]:
        assert_near(found[1][0][name]["state"], rank[name]["state"], TOLERANCE["double"])


def test_batch_norm_by_groups_is_another_training(found: Any) -> None:
    alone = found[1][0]
    assert not torch.allclose(alone["uneven"]["state"]["fc.weight"], alone["grouped"]["state"]["fc.weight"], rtol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_synchronised_norm_equals_batch_norm_of_the_whole(found: Any, size: int) -> None:
    for rank in found[size]:
        assert_near(found[1][0]["norm"], rank["norm"], 1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_scores_and_gradients_are_gathered(found: Any, size: int) -> None:
    alone = found[1][0]
    for rank in found[size]:
        torch.testing.assert_close(rank["scores"], alone["scores"], rtol=1e-5, atol=1e-6)
        assert rank["few"] == (1, 3)
        torch.testing.assert_close(rank["gathered"], alone["gathered"], rtol=1e-12, atol=1e-15)
        expected = [number == 0 for count in range(1, size + 1) for number in range(count)]
        assert rank["flags"].tolist() == expected


def test_one_process_alone_changes_nothing() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert world() == (0, 1) and gather_features(x) is x and mean_over_ranks(x) is x
    assert init_from_env() == (0, 1)
    plain = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4))
    converted = convert_sync_batchnorm(nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4)))
    assert isinstance(converted[1], SyncBatchNorm) and convert_sync_batchnorm(converted)[1] is converted[1]
    converted.load_state_dict(plain.state_dict())
    y = torch.randn(5, 2, 7)
    assert torch.equal(plain(y), converted(y))
    assert torch.equal(plain.eval()(y), converted.eval()(y))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_cover_everything_once(size: int) -> None:
    for count in (0, 1, 7, 16):
        rows = [row for rank in range(size) for row in range(count)[share(count, rank, size)]]
        assert rows == list(range(count))


def test_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR.*torchrun"):
        init_from_env()
