"""Pre-training UmURL with two processes equals one with the whole batch: gathered loss, batch norm, optimiser.

In double precision the difference is rounding.
"""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from training_kit import DoubleClips, card, short, small_store

from model import create_model
from model.distributed import init_from_env
from model.layouts import load_layout
from model.store import open_store
from model.train import fit
from model.umurl_clips import UmurlClips

HEADS = ("projectors", "fused_projector")


def trained(folder: Path, out: Path) -> dict[str, Any]:
    store = open_store(folder)
    found = {}
    for head in HEADS:
        torch.manual_seed(2)
        options: dict[str, Any] = {"hidden": 8, "frames": 6, "projector_width": 12, "head": head}
        net = create_model("umurl", layout=load_layout("nturgb+d"), num_classes=3, **options).double()
        clips: Any = DoubleClips(UmurlClips(store, store.splits["train"], frames=6, training=True))
        # 31 clips in batches of 16: the last one holds 15, so the shares differ.
        settings = short(optimiser="adam", lr=1e-3, weight_decay=1e-5, schedule="constant", batch_size=16, epochs=2)
        result = fit(net, clips, None, settings, folder=out / head, card=card("umurl"), fingerprint={})
        found[head] = {"state": net.state_dict(), "history": result.history}
    return found


def _work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    init_from_env()
    root = Path(folder)
    torch.save(trained(root / "store", root / "two"), root / f"found{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process found, then each of two."""
    root = tmp_path_factory.mktemp("ranks")
    small_store(root / "store", clips=43)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_work, (port, str(root)), 2)
    ranks = [torch.load(root / f"found{rank}.pt", weights_only=False) for rank in range(2)]
    return [trained(root / "store", root / "one"), *ranks]


@pytest.mark.parametrize("head", HEADS)
def test_two_processes_equal_one(found: list[dict[str, Any]], head: str) -> None:
    alone, *ranks = (result[head] for result in found)
    for rank in ranks:
        for name, value in alone["state"].items():
            torch.testing.assert_close(rank["state"][name], value, rtol=1e-7, atol=1e-8, msg=lambda m, n=name: n + m)
        for one, two in zip(alone["history"], rank["history"], strict=True):
            figures = {key: value for key, value in one.items() if key.startswith("train/")}
            assert {key: two[key] for key in figures} == pytest.approx(figures, rel=1e-9)
