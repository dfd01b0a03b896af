"""One member's training: the packed store and the parameters → best.pt, last.pt and the learning curve."""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from components.environment import device_name
from components.files import staged_dir, write_json, writing
from components.params import Params
from components.processes import joined, spread_over
from components.splits import parts_of
from components.tracked import log_member_facts, member_key, member_run
from components.tracked_run import logged_aside
from components.versions import content_key
from components.weights import Given, network_from
from model.errors import UserError
from model.store import Store, open_store
from model.streams import HEATMAP_STREAMS, STREAMS

WORK = Path(".work") / "checkpoints"


def train(params: Params, member: str, data: Path, out: Path, processes: int = 1) -> None:
    """Train one member by the recipe of its dataset.

    Writes `best.pt` and `last.pt`, `history.json` (a line an epoch) and `train.json` (facts of the training). Working
    checkpoints lie in `.work/checkpoints/<key>`, the key hashing code, parameters and data: a killed training goes
    on from there, and anything else starts anew. With SIXSTREAM_BACKUP=s3://bucket/prefix the newest lies there, too,
    and is fetched where the folder has none (components/backup.py). SIGTERM saves one after the step under way and
    ends with exit code 75. A member with `train: none` is published as its weights are.

    Args:
        params: the parameters.
        member: name of the member in params.yaml.
        data: folder of the packed store.
        out: folder for the checkpoints and the curve.
        processes: processes that share the batch, one per GPU (or CPU part) of this machine.

    Raises:
        UserError: data, labels or options with which training would be meaningless.
    """
    if params.member(member).train == "none":
        store = open_store(data)
        with member_run(params, member, store) as tracked:
            log_member_facts(tracked, params, member, store)
            publish_given(params, member, store, out)
        return
    if spread_over(processes):
        return
    from components.backup import backed_up
    from model.distributed import world
    from model.train import fit

    with contextlib.ExitStack() as stack:
        device, rank = stack.enter_context(joined())
        store = open_store(data)
        job, given = prepare_job(params, member, store, device)
        key = member_key(params, member, store.data_hash)
        if given is not None:
            key = content_key(key, given.md5)
        run = stack.enter_context(member_run(params, member, store)) if rank == 0 else None
        if run is not None:
            log_member_facts(run, params, member, store)
        stack.enter_context(backed_up(WORK / key, rank))
        with logged_aside(run) as log:
            result = fit(**job, folder=WORK / key, log=log, fingerprint={"code, parameters and data": key})
        if rank == 0:
            if run is not None:
                run.log_history(result.history)  # a kill between checkpoint and log loses a line of it
            facts: dict[str, Any] = {"best_epoch": result.best_epoch, "epochs": len(result.history)}
            facts |= {"device": device_name(device), "processes": world()[1]}
            _publish(result.best_path, result.last_path, result.history, facts | _facts(job, given), out)


def publish_given(params: Params, member: str, store: Store, out: Path) -> None:
    """Publish the weights that a member names as its best and last checkpoint, described as of these data."""
    from model.checkpoint import plain_state, publish

    job, given = prepare_job(params, member, store, "cpu")
    assert given is not None
    with tempfile.TemporaryDirectory(prefix="sixstream-") as scratch:
        path = publish(Path(scratch) / "given.pt", job["card"], plain_state(given.net), given.epoch)
        _publish(path, path, [], {"best_epoch": given.epoch, "epochs": 0} | _facts(job, given), out)


def prepare_job(params: Params, member: str, store: Store, device: str) -> tuple[dict[str, Any], Given | None]:
    """Network, clips and settings of a member, as the arguments of `model.train.fit`; and its weights, if given."""
    import torch

    from model.checkpoint import network_card
    from model.feeding import training_clips, validation_clips
    from model.nets import create_model, network_options, takes_heatmaps
    from model.nets.defaults import stream_options
    from model.settings import TrainSettings

    spec, recipe = params.member(member), params.recipe(member)
    if takes_heatmaps(spec.model) != (spec.stream in HEATMAP_STREAMS):
        fitting = HEATMAP_STREAMS if takes_heatmaps(spec.model) else STREAMS
        raise UserError(
            f"members.{member}: {spec.model} takes no stream {spec.stream!r}; choose one of {', '.join(fitting)}"
        )
    parts = parts_of(store, params)
    if os.environ.get("RANK", "0") == "0":
        print(f"{member}: {parts.description}", file=sys.stderr)
    feeding: dict[str, Any] = {
        "stream": spec.stream,
        "clip_length": recipe.clip_length,
        "test_clips": recipe.test_clips,
        "sampler": recipe.sampler,
        "persons": recipe.persons or int(store.persons.max()),
        "augment": params.augmentation(member),
    }
    if spec.stream in HEATMAP_STREAMS:
        if any(step.get("name") == "normalise_2d" for step in params.entry.data.prepare):
            raise UserError(
                f"datasets.{params.dataset}.data.prepare: normalise_2d takes away the pixels that heat maps need; set "
                "recipe.normalise_2d instead, which is for graph networks only"
            )
        feeding["heatmap"] = recipe.heatmap.model_dump()
    else:
        feeding |= {"difference": recipe.difference, "finish": recipe.finish, "normalise_2d": recipe.normalise_2d}
    clips = training_clips(store, parts.train, feeding, device)
    options = {**stream_options(spec.model, spec.stream, recipe.setting), **params.network_options(member)}
    if "persons" in network_options(spec.model):
        options.setdefault("persons", clips.persons)
    torch.manual_seed(spec.seed)
    given = None
    if spec.weights is not None:
        where = f"members.{member}"
        given = network_from(spec, where, clips.layout, list(store.classes), clips.num_channels, feeding["persons"])
        net, options = given.net, given.options
        if os.environ.get("RANK", "0") == "0":
            print(f"{member}: {given.said}", file=sys.stderr)
    else:
        net = create_model(
            spec.model,
            layout=clips.layout,
            num_classes=len(store.classes),
            in_channels=clips.num_channels,
            **options,
        )
    card = network_card(
        spec.model,
        layout=clips.layout,
        in_channels=clips.num_channels,
        options=options,
        recipe=feeding,
        classes=list(store.classes),
        data_hash=store.data_hash,
    )
    settings = TrainSettings(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        bn_batch=recipe.bn_batch,
        lr=recipe.lr,
        base_batch=recipe.base_batch,
        schedule=recipe.schedule,
        milestones=tuple(recipe.milestones),
        gamma=recipe.gamma,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        accumulate=recipe.accumulate,
        clip_grad=recipe.clip_grad,
        label_smoothing=recipe.label_smoothing,
        amp=recipe.amp,
        seed=spec.seed,
        deterministic=recipe.deterministic,
        validate_every=recipe.validate_every,
        save_steps=recipe.checkpoint_steps,
        repeats=recipe.repeats,
        class_factors=tuple(recipe.class_factors),
    )
    job = {
        "net": net.to(device),
        "train": clips,
        "dev": None if parts.select is None else validation_clips(store, parts.select, feeding, device),
        "settings": settings,
        "card": card,
        "device": device,
    }
    return job, given


def _facts(job: dict[str, Any], given: Given | None) -> dict[str, Any]:
    """Size of the network: parameters, and multiply-accumulates of one test clip as published figures count them."""
    from model.complexity import clip_complexity

    found = clip_complexity(job["net"], job["card"]["recipe"])
    facts = {"parameters": found.parameters, "macs": found.published}
    return facts if given is None else {**facts, "weights": given.said}


def _publish(best: Path, last: Path, history: list[dict[str, float]], facts: dict[str, Any], out: Path) -> None:
    with staged_dir(out) as aside, writing(out):
        shutil.copyfile(best, aside / "best.pt")
        shutil.copyfile(last, aside / "last.pt")
        write_json(aside / "history.json", history)
        write_json(aside / "train.json", facts)
