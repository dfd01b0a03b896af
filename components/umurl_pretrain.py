"""Pre-training an encoder of UmURL without labels: the packed store → encoder.pt and the learning curve."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from components.files import staged_dir, write_json
from components.params import Params
from components.processes import joined, spread_over
from components.splits import parts_of
from components.tracked import CODE
from components.tracked_run import logged_aside
from components.train import WORK
from components.umurl import encoder_run, head_of, pretraining_key
from model.store import Store, open_store


def umurl_pretrain(params: Params, encoder: str, data: Path, out: Path, processes: int = 1) -> None:
    """Pre-train one encoder on the training clips, whose labels are not used.

    Writes `encoder.pt`, `history.json` (a line an epoch) and `train.json`. Working checkpoints lie in
    `.work/checkpoints/<key>`, as those of members.

    Args:
        params: the parameters; `umurl` says size, views and training.
        encoder: umurl, early_fusion (the baseline: two views' fused features agree) or untrained.
        data: folder of the packed store.
        out: folder for the encoder and its curve.
        processes: processes that share the batch, one per GPU (or CPU part) of this machine.

    Raises:
        UserError: an unknown encoder, or data and options with which training would be meaningless.
    """
    head_of(encoder)
    if spread_over(processes):
        return
    from components.backup import backed_up
    from model.checkpoint import plain_state, publish
    from model.train import fit

    with contextlib.ExitStack() as stack:
        device, rank = stack.enter_context(joined())
        store = open_store(data)
        key = pretraining_key(params, encoder, store.data_hash)
        net, card = build_encoder(params, encoder, store)
        facts: dict[str, Any] = {"encoder": encoder, "parameters": sum(p.numel() for p in net.parameters())}
        run = stack.enter_context(encoder_run(params, encoder, store)) if rank == 0 else None
        if run is not None:
            run.log_params({"umurl": params.umurl.model_dump(), "encoder": encoder})
            run.log_environment(CODE)
        if encoder == "untrained":
            if rank == 0:
                with staged_dir(out) as aside:
                    publish(aside / "encoder.pt", card, plain_state(net), 0)
                    write_json(aside / "history.json", [])
                    write_json(aside / "train.json", {**facts, "epochs": 0})
            return
        stack.enter_context(backed_up(WORK / key, rank))
        with logged_aside(run) as log:
            result = fit(
                net.to(device),
                training_views(params, store, device),
                None,
                settings_of(params),
                folder=WORK / key,
                card=card,
                fingerprint={"code, parameters and data": key},
                device=device,
                log=log,
            )
        if run is not None:
            run.log_history(result.history)
            with staged_dir(out) as aside:
                shutil.copyfile(result.last_path, aside / "encoder.pt")
                write_json(aside / "history.json", result.history)
                write_json(aside / "train.json", {**facts, "epochs": len(result.history)})


def build_encoder(params: Params, encoder: str, store: Store) -> tuple[Any, dict[str, Any]]:
    """A fresh network for pre-training, and the card with which its checkpoint is published."""
    import torch

    from model.checkpoint import network_card
    from model.nets import create_model

    options = params.umurl.network.model_dump()
    options["persons"] = options["persons"] or int(store.persons.max())
    options["head"] = head_of(encoder)
    torch.manual_seed(params.umurl.seed)
    channels = len(store.channels)
    net = create_model("umurl", layout=store.layout, num_classes=len(store.classes), in_channels=channels, **options)
    card = network_card(
        "umurl",
        layout=store.layout,
        in_channels=channels,
        options=options,
        recipe={"frames": options["frames"], "persons": options["persons"]},
        classes=list(store.classes),
        data_hash=store.data_hash,
    )
    return net, card


def training_views(params: Params, store: Store, device: str) -> Any:
    """The random views of the training clips."""
    from model.umurl_clips import UmurlClips

    network, views = params.umurl.network, params.umurl.views
    return UmurlClips(
        store,
        parts_of(store, params).train,
        frames=network.frames,
        persons=network.persons,
        crop=views.crop,
        corrupted=views.corrupted,
        training=True,
        device=device,
    )


def settings_of(params: Params) -> Any:
    """The settings of pre-training for the training loop."""
    from model.settings import TrainSettings

    spec = params.umurl.pretrain
    return TrainSettings(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        lr=spec.lr,
        seed=params.umurl.seed,
        optimiser="adam",
        weight_decay=spec.weight_decay,
        schedule="step",
        milestones=tuple(spec.milestones),
        amp=spec.amp,
        deterministic=spec.deterministic,
        save_every=spec.save_every,
    )
