"""Batches: one stream of selected clips of a store, sampled, augmented and formatted without a loop over samples.

A batch gathers rows of the store by index arithmetic (row = offset + person * frames + frame), so only the sampled
frames are ever read. Augmentations and the stream are maps over the joints of a frame; they commute with choosing
frames and are therefore applied after it. A motion needs the frame that follows each sampled frame: it is gathered
too and augmented by the same draws.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from model.augment import Persons, augment, by_person, check_augmentations
from model.errors import UserError
from model.geometry2d import normalise_pixels
from model.layouts import Layout, load_layout
from model.prepare import coco_to_coco_new
from model.sampling import VARIANTS, batch_frames, batch_test_frames
from model.store import Store
from model.streams import apply_stream, is_motion, motion_of, score_channel, spatial_part

DIFFERENCES = ("before", "after")
# Joints derived from a clip's own after augmentation: name -> (joints needed, layout reached, function).
FINISHES: dict[str, tuple[int, str, Callable[[Tensor], Tensor]]] = {"coco_new": (17, "coco_new", coco_to_coco_new)}
# Joints with at most this score are blanked by the variants of `normalise_2d`.
NORMALISE_THRESHOLDS = {"mmaction2": None, "pyskl": 0.01}
RESIDENT_SHARE = 0.5  # of the free memory of an accelerator that a store's joints may take

_resident: "WeakKeyDictionary[Store, dict[torch.device, Tensor]]" = WeakKeyDictionary()


class Clips:
    """One stream of the clips at `positions` of a store.

    Training takes one random clip of `clip_length` frames per sample; otherwise `num_clips` fixed ones are taken
    by the rule of `sampler`. `difference` says what a motion subtracts: raw neighbouring frames ("before" sampling,
    the 3D recipes) or sampled frames ("after", ProtoGCN's 2D recipes: there the last frame of a test clip holds the
    jump to the next clip, and only the last of all is zero). `persons` is the number of slots M (default: the most
    that any clip of the store has): further persons are dropped, missing ones are zeros. `augment` lists the steps of
    a training recipe (`model.augment`). `finish` "coco_new" appends ProtoGCN's three joints to COCO's after them.

    `normalise_2d` "mmaction2" or "pyskl" maps pixels to [-1, 1] before all this (`model.prepare.normalise_2d`); so the
    store keeps the pixels that heat maps are drawn from.

    A float16 store is subtracted in float16 as long as nothing is augmented, as the released systems do.

    Attributes: `labels` (N,) int64, `ids`, `layout`, `num_joints`, `num_channels`, `persons`, `num_clips`.
    Raises UserError for positions, streams, samplers or augmentations that do not exist or do not fit the store.
    """

    def __init__(
        self,
        store: Store,
        positions: np.ndarray | Sequence[int],
        *,
        stream: str,
        clip_length: int,
        persons: int | None = None,
        num_clips: int = 1,
        sampler: str = "protogcn",
        difference: str = "before",
        augment: Sequence[dict[str, Any]] = (),
        training: bool,
        device: str | torch.device = "cpu",
        finish: str | None = None,
        normalise_2d: str | None = None,
    ) -> None:
        positions = _checked_positions(store, positions)
        _check_choice("sampler", sampler, VARIANTS)
        _check_choice("difference", difference, DIFFERENCES)
        check_augmentations(augment, store.layout)
        score_channel(store.channels)
        persons = int(store.persons.max()) if persons is None else persons
        for name, value in (("clip_length", clip_length), ("num_clips", num_clips), ("persons", persons)):
            if value < 1:
                raise UserError(f"{name}: {value} is not a positive number")
        self.folder = store.folder
        self.stream, self.difference, self.sampler = stream, difference, sampler
        self.motion = is_motion(stream)
        self.clip_length = clip_length
        self.num_clips = 1 if training else num_clips
        self.training = training
        self.augment = list(augment) if training else []
        self.channels = store.channels
        self.store_layout = store.layout
        self.layout, self.finish = _finished(store.layout, finish)
        self.persons = persons
        self.num_joints, self.num_channels = self.layout.num_joints, len(store.channels)
        self.ids = [store.ids[i] for i in positions]
        self.labels = torch.from_numpy(store.labels[positions])
        self.device = torch.device(device)
        self.joints = _rows_on(store, self.device)
        self.lengths = store.frames[positions]
        home = self.joints.device
        self.offset = torch.from_numpy(store.offset[positions]).to(home)
        self.present = torch.from_numpy(store.persons[positions]).to(home)
        self.frames = torch.from_numpy(self.lengths).to(home)
        sizes = store.image_size
        self.sizes = None if sizes is None else torch.from_numpy(sizes[positions]).to(self.device)
        if normalise_2d is not None:
            _check_choice("normalise_2d", normalise_2d, tuple(NORMALISE_THRESHOLDS))
            if sizes is None or "z" in store.channels:
                raise UserError(f"normalise_2d: {store.folder} holds no 2D key points with the sizes of their images")
        self.normalise_2d = normalise_2d

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self,
        rows: Tensor | np.ndarray | Sequence[int],
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Assemble the clips numbered `rows` (B,), which count within this selection.

        Returns float32 on `device`: (B, M, T, V, C) in training, (B * num_clips, M, T, V, C) otherwise, the clips
        of a sample side by side. All randomness comes from `generator`; tests use none. `labels` (B,), if given, are
        changed in place where an augmentation turns a clip into one of another class.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64).cpu()
        sampled = self._sample(rows, generator)
        home = rows.to(self.joints.device)
        there = torch.arange(self.persons, device=home.device) < self.present[home, None]
        # Absent persons stay zero and are not worked on.
        x = torch.zeros(there.numel(), sampled.shape[1], self.num_joints, self.num_channels, device=self.device)
        state = generator.get_state() if generator is not None else None
        for persons, wrapped in self._groups(home, there, generator):
            if state is not None and generator is not None:
                generator.set_state(state)  # every group sees the draws of the whole batch
            made = self._stream(rows, home, sampled, persons, wrapped, generator, labels)
            x.index_copy_(0, (persons[:, 0] * self.persons + persons[:, 1]).to(self.device), made[:, 0])
            labels = None  # changed once
        x = x.unflatten(0, there.shape).unflatten(2, (self.num_clips, self.clip_length))
        return x.transpose(1, 2).flatten(0, 1).contiguous()

    def _sample(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """Frame numbers (B, num_clips * clip_length), where the joints are."""
        if self.training:
            return batch_frames(self.frames[rows.to(self.frames.device)], self.clip_length, generator)
        frames = batch_test_frames(self.lengths[rows.numpy()], self.clip_length, self.num_clips, self.sampler)
        return torch.from_numpy(frames).flatten(1).to(self.joints.device)

    def _groups(self, home: Tensor, there: Tensor, generator: torch.Generator | None) -> Iterator[tuple[Tensor, bool]]:
        """Persons (P, 2), clip and slot, of those who are `there` (B, M), and whether their clips wrap round: a motion
        of consecutive frames needs one frame more, of others twice as many.
        """
        persons = there.nonzero()
        repeatable = generator is not None and by_person(self.augment)
        if not (self.training and self.motion and self.difference == "before" and repeatable):
            yield persons, False
            return
        wraps = (self.frames[home] < self.clip_length)[persons[:, 0]]
        for part, wrapped in ((persons[wraps], True), (persons[~wraps], False)):
            if len(part):
                yield part, wrapped

    def _stream(
        self,
        rows: Tensor,
        home: Tensor,
        sampled: Tensor,
        persons: Tensor,
        wrapped: bool,
        generator: torch.Generator | None,
        labels: Tensor | None,
    ) -> Tensor:
        """The stream (P, 1, F, V, C) float32 of the frames `sampled` (B, F) of the `persons` (P, 2)."""
        if not (self.motion and self.difference == "before"):
            x = self._joints(rows, home, sampled, persons, generator, labels)
            return apply_stream(x, self.layout, self.stream, self.channels).float()
        ends = self.frames[home, None] - 1
        following = torch.minimum(sampled + 1, ends)
        frames = torch.cat([sampled, following[:, -1:] if wrapped else following], dim=1)
        x = self._joints(rows, home, frames, persons, generator, labels)
        x = spatial_part(x, self.layout, self.stream, self.channels)
        count = sampled.shape[1]
        now, then = x[:, :, :count], x[:, :, 1:] if wrapped else x[:, :, count:]
        last = (sampled == ends)[persons[:, 0], None].to(self.device)
        return motion_of(now, then, self.layout, self.channels, last).float()

    def _joints(
        self,
        rows: Tensor,
        home: Tensor,
        frames: Tensor,
        persons: Tensor,
        generator: torch.Generator | None,
        labels: Tensor | None,
    ) -> Tensor:
        """The augmented joints (P, 1, F, V, C) of `frames` (B, F) of the `persons` (P, 2)."""
        clip, slot = persons.unbind(1)
        start = self.offset[home[clip]] + slot * self.frames[home[clip]]
        index = start[:, None] + frames[clip]
        x = self.joints.index_select(0, index.flatten())
        x = x.view(len(clip), 1, -1, self.store_layout.num_joints, self.num_channels)
        clip, slot, x, width = clip.to(self.device), slot.to(self.device), x.to(self.device), None
        if self.sizes is not None:
            sizes = self.sizes[rows.to(self.device)]
            width = sizes[:, 1]
            if self.normalise_2d is not None:
                x = normalise_pixels(x, sizes[clip], NORMALISE_THRESHOLDS[self.normalise_2d])
                width = torch.zeros_like(width)  # mirroring then changes the sign
        if self.augment:
            around: dict[str, Any] = {"layout": self.store_layout, "channels": self.channels}
            around |= {"generator": generator, "width": width, "labels": labels}
            if by_person(self.augment):
                x = augment(x.float(), self.augment, persons=Persons(clip, len(rows)), **around)
            else:
                everyone = torch.zeros(len(rows), self.persons, *x.shape[2:], device=self.device)
                everyone[clip, slot] = x[:, 0].float()
                x = augment(everyone, self.augment, **around)[clip, slot][:, None]
        return self.finish(x) if self.finish else x


def _rows_on(store: Store, device: torch.device) -> Tensor:
    """The store's joints as (rows, V * C): the map itself on the CPU, else one copy on the device if it fits."""
    copies = _resident.setdefault(store, {})
    if device not in copies:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to it
            rows = torch.from_numpy(store.joints).flatten(1)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if rows.nbytes <= RESIDENT_SHARE * free:
                rows = rows.to(device)
        copies[device] = rows
    return copies[device]


def _finished(layout: Layout, finish: str | None) -> tuple[Layout, Callable[[Tensor], Tensor] | None]:
    if finish is None:
        return layout, None
    _check_choice("finish", finish, tuple(FINISHES))
    joints, reached, function = FINISHES[finish]
    if layout.num_joints != joints:
        raise UserError(f"finish '{finish}' needs {joints} joints; layout '{layout.name}' has {layout.num_joints}")
    return load_layout(reached), function


def _checked_positions(store: Store, positions: np.ndarray | Sequence[int]) -> np.ndarray:
    positions = np.asarray(positions, np.int64)
    if positions.ndim != 1 or not len(positions):
        raise UserError(f"no clips of {store.folder} are selected; choose a split that holds some")
    if positions.min() < 0 or positions.max() >= len(store):
        raise UserError(f"position {positions.max()} is not in {store.folder}, which holds {len(store)} clips")
    return positions


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}: unknown value '{value}'; choose one of {', '.join(choices)}")
