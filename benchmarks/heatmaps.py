"""Heat maps of a batch beside drawing them window by window: clips/s and ratio.

    python -m benchmarks.heatmaps [--batch 16] [--frames 48] [--side 64] [--rounds 3]

One COCO body a clip, its limbs about a fifth of the map long, as after `compact`. The forms take turns and the best of
the rounds counts. Both are first shown to give the same maps.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain.heatmaps import plain_keypoint_maps, plain_limb_maps
from model.heatmaps import keypoint_maps, limb_maps
from model.layouts import load_layout

LIMBS = load_layout("coco").limbs
SIGMA, THRESHOLD = 0.6, 1e-4


def bodies(batch: int, frames: int, side: int) -> tuple[Tensor, Tensor]:
    """Joints (N, 1, T, 17, 2) in pixels and scores (N, 1, T, 17) from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    pose = torch.randn(batch, 1, 1, 17, 2, generator=generator) * side / 8 + side / 2
    drift = torch.randn(batch, 1, frames, 17, 2, generator=generator).cumsum(2) * 0.3
    return pose + drift, torch.rand(batch, 1, frames, 17, generator=generator) * 0.7 + 0.3


def forms(x: Tensor, score: Tensor, side: int, device: str) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """{"keypoint", "limb"} → {"plain", "ours"} → drawing of the whole batch."""
    size, joints, weights = (side, side), x.numpy(), score.numpy()
    points, seen = x.to(device), score.to(device)

    def plain(draw: Callable[..., np.ndarray], *limbs: object) -> Tensor:
        maps = [draw(one, w, *limbs, size, SIGMA, THRESHOLD) for one, w in zip(joints, weights, strict=True)]
        return torch.from_numpy(np.stack(maps))

    return {
        "keypoint": {
            "plain": lambda: plain(plain_keypoint_maps),
            "ours": lambda: keypoint_maps(points, seen, size, sigma=SIGMA, threshold=THRESHOLD),
        },
        "limb": {
            "plain": lambda: plain(plain_limb_maps, LIMBS),
            "ours": lambda: limb_maps(points, seen, LIMBS, size, sigma=SIGMA, threshold=THRESHOLD),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Heat maps of a batch beside drawing them window by window.")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} threads"
    print(f"{where}; torch {torch.__version__}; {options.batch} clips, {options.frames} frames, side {options.side}")
    print(f"{'':10}{'plain/s':>9}{'ours/s':>9}{'ratio':>7}")
    x, score = bodies(options.batch, options.frames, options.side)
    for name, drawn in forms(x, score, options.side, device).items():
        difference = float((drawn["plain"]() - drawn["ours"]().cpu()).abs().max())
        assert difference < 1e-5, f"{name}: the maps differ by {difference:.1e}; nothing is timed"
        best = dict.fromkeys(drawn, float("inf"))
        for _ in range(options.rounds):
            for form, draw in drawn.items():
                began = time.perf_counter()
                draw()
                if device == "cuda":
                    torch.cuda.synchronize()
                best[form] = min(best[form], time.perf_counter() - began)
        rates = {form: options.batch / seconds for form, seconds in best.items()}
        print(f"{name:10}{rates['plain']:9.1f}{rates['ours']:9.1f}{rates['ours'] / rates['plain']:7.2f}")


if __name__ == "__main__":
    main()
