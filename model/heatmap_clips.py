"""Batches of heat maps: sampled joints of selected clips, cut to their box, scaled and drawn on the device.

Train (PoseC3D, arXiv 2104.13586; MMAction2): compact, short side `resize`, random crop, `train_size`, flip. Test:
compact, short side `test_size`, central square, and the same mirrored. Maps are made for a batch and never stored.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model import geometry2d
from model.augment import mirror_flip
from model.clips import Clips
from model.errors import UserError
from model.heatmaps import keypoint_maps, limb_maps, mirrored
from model.streams import HEATMAP_STREAMS, score_channel


class HeatmapClips:
    """Heat maps of `joints`, clips of the stream joint in 2D pixels: a map per joint ("keypoint") or limb ("limb").

    The box of `compact` is that of all sampled frames of a sample, grown by `padding`. `resize`, `train_size` and
    `test_size` are sides in pixels, `area` the random crop's share of the image, `flip` the probability to mirror a
    training clip. `test_crop` false scales the box to the square instead of cropping (PYSKL, Kinetics). `double`
    adds the mirrored maps of every test clip, after the originals. `threshold` (PYSKL: 1e-3) and `sigma` are
    `model.heatmaps`'s. Without scores, or with `use_score` false, a joint counts fully where a coordinate is not zero
    (the released code then draws absent joints too, at the corner of the image).

    Attributes: as `Clips`; `num_channels` counts joints or limbs, `num_clips` mirrored test clips too.
    Raises UserError for joints that are not in pixels of images of known size.
    """

    def __init__(
        self,
        joints: Clips,
        stream: str,
        *,
        sigma: float = 0.6,
        threshold: float = 1e-4,
        use_score: bool = True,
        padding: float = 0.25,
        resize: int = 64,
        area: tuple[float, float] = (0.56, 1.0),
        train_size: int = 56,
        flip: float = 0.5,
        test_size: int = 64,
        test_crop: bool = True,
        double: bool = True,
    ) -> None:
        if stream not in HEATMAP_STREAMS:
            raise UserError(f"unknown heat maps '{stream}'; there are {', '.join(HEATMAP_STREAMS)}")
        if "z" in joints.channels or joints.stream != "joint" or joints.normalise_2d is not None:
            raise UserError(f"{joints.folder}: heat maps ('{stream}') are drawn from 2D key points in pixels only")
        if joints.sizes is None:
            raise UserError(
                f"{joints.folder}: has no image sizes, which heat maps need; give every clip its own (`img_shape` of "
                "an annotation, `image_size` of a clip to predict)"
            )
        self.joints, self.stream = joints, stream
        self.labels, self.ids, self.layout, self.device = joints.labels, joints.ids, joints.layout, joints.device
        self.persons, self.num_joints, self.training = joints.persons, joints.num_joints, joints.training
        limbs = stream == "limb"
        self.num_channels = len(self.layout.limbs) if limbs else self.num_joints
        self.mirror = self.layout.mirror_limbs if limbs else self.layout.mirror
        self.double = double and not joints.training
        self.num_clips = joints.num_clips * (2 if self.double else 1)
        self.scored = score_channel(joints.channels) is not None and use_score
        self.sigma, self.threshold, self.padding = sigma, threshold, padding
        self.resize, self.area, self.train_size, self.flip = resize, area, train_size, flip
        self.test_size, self.test_crop = test_size, test_crop
        self.sizes = joints.sizes.long()

    def __len__(self) -> int:
        return len(self.joints)

    def batch(
        self,
        rows: Tensor | np.ndarray | Sequence[int],
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The maps of the clips numbered `rows` (B,): (B * num_clips, num_channels, T, H, W) float32 on `device`.

        All randomness comes from `generator`: frames, augmentation, crop, flip. Tests use none. `labels`: as `Clips`.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        count = self.joints.num_clips
        x = self.joints.batch(rows, generator, labels)
        # The clips of a sample share one box, so their frames stand side by side for the geometry.
        x = x.unflatten(0, (len(rows), count)).transpose(1, 2).flatten(2, 3)
        present = (x[..., :2] != 0).any(-1)
        score = x[..., 2] if self.scored else present.to(x.dtype)
        x, size = self._square(x[..., :2], score, self.sizes[rows.to(self.device)], generator)
        x = x.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)
        side = (size, size)
        joints, score = x[..., :2], x[..., 2]
        options = {"sigma": self.sigma, "threshold": self.threshold}
        if self.stream == "limb":
            maps = limb_maps(joints, score, self.layout.limbs, side, **options)
        else:
            maps = keypoint_maps(joints, score, side, **options)
        if not self.double:
            return maps
        both = torch.stack([maps, mirrored(maps, self.mirror)])
        return both.unflatten(1, (len(rows), count)).transpose(0, 1).flatten(0, 2)

    def _square(
        self, points: Tensor, score: Tensor, size: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, int]:
        """Joints (B, M, F, V, 3) in the pixels of the square, and its side."""
        x = torch.cat([points, score[..., None]], dim=-1)
        x, size = geometry2d.compact(x, size, padding=self.padding)
        if self.training:
            x, size = geometry2d.resize(x, size, geometry2d.fitted(size, short=self.resize))
            x, size = geometry2d.random_crop(x, size, area=self.area, generator=generator)
            x, size = geometry2d.resize(x, size, (self.train_size, self.train_size))
            x = mirror_flip(x, layout=self.layout, width=size[:, 1], generator=generator, p=self.flip)
            return x, self.train_size
        if self.test_crop:
            x, size = geometry2d.resize(x, size, geometry2d.fitted(size, short=self.test_size))
            return geometry2d.centre_crop(x, size, self.test_size)[0], self.test_size
        return geometry2d.resize(x, size, (self.test_size, self.test_size))[0], self.test_size
