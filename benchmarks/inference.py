"""Scores of one sample and of a batch, by one stream and by six, from one test clip and from ten: seconds, samples/s.

    python -m benchmarks.inference [--networks protogcn] [--batch 4] [--alone 0.8]

A stream is a network of its own, so six cost six times one; a sample with ten test clips is ten inputs.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import DEVICE, alternating, autocast, clips, options_parser, prepare, write
from benchmarks.train_step import PLAIN, forms_of


def scoring(name: str, form: str, samples: int, streams: int, test_clips: int, options: Any) -> Callable[[], None]:
    """Scores `samples` samples: softmax of every test clip, mean over clips and streams."""
    nets: list[Any] = [forms_of(name)[form].to(DEVICE).eval() for _ in range(streams)]
    x, _ = clips(forms_of(name)["ours"], samples * test_clips, options.frames, options.alone)
    if options.mode:
        nets = [torch.compile(net, mode=options.mode, dynamic=False) for net in nets]

    def score() -> None:
        with torch.inference_mode(), autocast(options.bfloat16 and form == "ours"):
            scores = [net(x).softmax(1).view(samples, test_clips, -1).mean(1) for net in nets]
            torch.stack(scores).mean(0).cpu()

    return score


def main() -> None:
    parser = options_parser(__doc__.splitlines()[0], list(PLAIN), list(PLAIN))
    parser.set_defaults(batch=8)
    options = parser.parse_args()
    where = prepare(options)
    figures: dict[str, Any] = {}
    print(f"{'':9}{'samples':>8}{'streams':>8}{'clips':>6}{'plain, s':>10}{'ours, s':>9}{'ratio':>7}{'ours/s':>9}")
    for name in options.networks:
        for samples, streams, test_clips in ((1, 1, 1), (1, 1, 10), (1, 6, 1), (1, 6, 10), (options.batch, 1, 1)):
            actions = {form: scoring(name, form, samples, streams, test_clips, options) for form in ("plain", "ours")}
            found = alternating(actions, options.rounds, options.clock)
            figures[f"{name} {samples} {streams} {test_clips}"] = found
            ratio, rate = found["plain"] / found["ours"], samples / found["ours"]
            head = f"{name:9}{samples:8}{streams:8}{test_clips:6}"
            print(f"{head}{found['plain']:10.3f}{found['ours']:9.3f}{ratio:7.2f}{rate:9.2f}", flush=True)
    write(options, where, figures)


if __name__ == "__main__":
    main()
