"""A pre-trained encoder → the features of every clip that trains or tests, computed once."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from components.files import staged_dir
from components.params import Params
from components.umurl import Features, head_of, save_features, splits_of
from model.errors import UserError
from model.store import open_store

BATCH = 256


def umurl_features(params: Params, encoder: str, data: Path, trained: Path, out: Path) -> None:
    """Compute the fused features of all frames of every clip, resized; nothing is random.

    Writes `features.npz` with the positions of the clips in the store and their features.

    Args:
        params: the parameters; the dataset's splits say which clips.
        encoder: umurl, early_fusion or untrained.
        data: folder of the packed store.
        trained: folder with the encoder.pt, or a checkpoint of UmURL, for instance an imported one.
        out: folder for the features, named after the encoder.

    Raises:
        UserError: an unknown encoder, or a checkpoint that is missing, corrupt or of other data.
    """
    import torch

    from model.checkpoint import build_network, load_checkpoint
    from model.score import clip_logits
    from model.umurl_clips import UmurlClips

    head_of(encoder)
    store = open_store(data)
    path = trained / "encoder.pt" if trained.is_dir() else trained
    checkpoint = load_checkpoint(path)
    if checkpoint["model"] != "umurl":
        raise UserError(f"{path}: holds {checkpoint['model']!r}, not an encoder of UmURL")
    if checkpoint["data_hash"] not in ("", store.data_hash):  # an imported encoder is of no data of ours
        raise UserError(f"{path}: trained on other data than {data} holds; pre-train {encoder!r} again")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net: Any = build_network(checkpoint, str(path)).to(device)
    _, frames, _, persons = net.shape
    positions = np.unique(np.concatenate(list(splits_of(params, store).values())))
    clips = UmurlClips(store, positions, frames=frames, persons=persons, training=False, device=device)
    values = clip_logits(net, clips, BATCH, device)[:, 0].numpy()
    with staged_dir(out) as aside:
        save_features(aside, Features(positions, values), store)
    print(f"{out}: features of {len(values)} clips, {values.shape[1]} numbers each", file=sys.stderr)
