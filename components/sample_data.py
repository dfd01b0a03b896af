"""Write the sample data: raw NTU-format `.skeleton` files of a kinematic model."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from components.files import staged_dir
from components.params import Params
from model.errors import UserError
from model.ntu import format_skeleton
from model.synthetic import clip_names, make_clip
from model.synthetic_actions import ACTIONS


def sample(params: Params, out: Path) -> None:
    """Write the sample data of `sample_data` in the parameters.

    Args:
        params: the parameters.
        out: folder for the files; it is replaced whole.
    """
    options = params.sample_data
    sample_data(out, seed=options.seed, limit=options.clips)


def sample_data(
    out: Path,
    seed: int = 0,
    workers: int | None = None,
    limit: int | None = None,
    noise: float = 1.0,
    style: float = 1.0,
) -> int:
    """Fill the folder `out` with `S001C001P001R001A001.skeleton` … and return how many files there are.

    The folder appears whole, in place of a former one; equal arguments give equal bytes on every machine,
    whatever the number of `workers` (None: one per core). `limit` keeps that many clips, spread over actions,
    subjects and cameras; `noise` scales the sensor's errors and `style` how much people differ. Raises UserError
    for arguments that make no clips.
    """
    names = clip_names()
    if limit is not None:
        if not 1 <= limit <= len(names):
            raise UserError(f"limit: {limit} clips asked for, there are 1 to {len(names)}")
        names = sorted(_spread(names)[:limit])
    if seed < 0 or noise < 0 or style < 0:
        raise UserError(f"seed {seed}, noise {noise}, style {style}: none of them may be negative")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the sample data")
    workers = min(workers or os.cpu_count() or 1, len(names))
    with staged_dir(out) as folder:
        write = partial(_write, folder=folder, seed=seed, noise=noise, style=style)
        if workers == 1:
            for name in names:
                write(name)
        else:
            # "spawn" starts clean processes: forking one that has loaded torch or mlflow copies their threads' locks
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(write, names, chunksize=24))
    return len(names)


def _spread(names: list[str]) -> list[str]:
    """Order names so that any first few are spread evenly over actions, and over subjects and cameras."""
    per_action = len(names) // len(ACTIONS)
    order = []
    for number in range(len(names)):
        round_, action = divmod(number, len(ACTIONS))
        # 29 is prime to the 48 clips of an action and near their golden section; 5 shifts the actions apart
        order.append(names[action * per_action + (29 * round_ + 5 * action) % per_action])
    return order


def _write(name: str, folder: Path, seed: int, noise: float, style: float) -> None:
    clip = make_clip(name, seed, noise=noise, style=style)
    (folder / f"{name}.skeleton").write_bytes(format_skeleton(clip))
