"""Clips of a packed store as UmURL sees them: pre-normalised once, then cropped, resized and distorted per batch.

Exact for a store that was read with `conversion: umurl` and no preparation. Other stores hold what their own
conversion kept: PYSKL's drops frames without the main person, orders bodies by motion and stores float16, and what
centring a whole clip adds here is taken away again by centring every frame.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.errors import UserError
from model.nets.umurl import VIEWS
from model.store import Store
from model.umurl_views import (
    CORRUPTED,
    CROP,
    distort,
    draw_views,
    pre_normalise,
    random_crop,
    resampling,
    whole_clip,
)

CHUNK = 256  # clips that are pre-normalised together


class UmurlClips:
    """The clips at `positions` of a store, normalised and kept on `device` as rows (frame, M, V, C).

    Training gives four random views of a clip, otherwise all its frames resized to `frames`. `persons` are kept
    (default: the most that any clip of the store has), missing ones are zeros. Raises UserError for a store with
    detection scores, which UmURL has no use for.
    """

    num_clips = 1

    def __init__(
        self,
        store: Store,
        positions: np.ndarray,
        *,
        frames: int = 64,
        persons: int | None = None,
        crop: tuple[float, float] = CROP,
        corrupted: float = CORRUPTED,
        training: bool,
        device: str | torch.device = "cpu",
    ) -> None:
        if store.scored:
            raise UserError(f"{store.folder}: holds detection scores; UmURL takes coordinates, two or three")
        self.layout = store.layout
        self.num_channels = len(store.channels)
        self.persons = int(store.persons.max()) if persons is None else persons
        self.frames, self.crop, self.corrupted, self.training = frames, crop, corrupted, training
        self.ids = [store.ids[i] for i in positions]
        self.labels = torch.from_numpy(store.labels[positions])
        self.device = torch.device(device)
        self.lengths = torch.from_numpy(store.frames[positions]).to(self.device)
        self.offset = self.lengths.cumsum(0) - self.lengths
        chunks = np.split(np.asarray(positions), range(CHUNK, len(positions), CHUNK))
        self.rows = torch.cat([self._normalised(store, chunk) for chunk in chunks])

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self,
        rows: Tensor | np.ndarray | Sequence[int],
        generator: torch.Generator | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The clips numbered `rows` (B,): float32 (B, 4, C, T, V, M) in training, (B, C, T, V, M) otherwise.

        No distortion changes the class of a clip, so `labels` are left alone.
        """
        chosen = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        if not self.training:
            return self._resized(chosen, *whole_clip(self.lengths[chosen]))
        views = []
        for _ in range(VIEWS):
            draws = draw_views(len(chosen), self.layout, self.num_channels, generator)
            part = random_crop(self.lengths[chosen], draws, self.frames, self.crop)
            views.append(distort(self._resized(chosen, *part), draws, self.corrupted))
        return torch.stack(views, 1)

    def _resized(self, chosen: Tensor, start: Tensor, length: Tensor) -> Tensor:
        before, after, weight = resampling(start, length, self.frames)
        offset = self.offset[chosen, None]
        x = torch.lerp(self.rows[offset + before], self.rows[offset + after], weight[..., None, None, None])
        return x.permute(0, 4, 1, 3, 2)

    def _normalised(self, store: Store, positions: np.ndarray) -> Tensor:
        """The valid frames (rows, M, V, C) of some clips, one clip after another."""
        lengths = torch.from_numpy(store.frames[positions])
        present = torch.from_numpy(store.persons[positions])
        person, frame = torch.arange(self.persons), torch.arange(int(lengths.max()))
        start = torch.from_numpy(store.offset[positions])[:, None] + person * lengths[:, None]
        valid = (person < present[:, None])[..., None] & (frame < lengths[:, None])[:, None]
        index = torch.where(valid, start[..., None] + frame, 0)
        x = torch.from_numpy(store.joints[index.numpy()]).to(self.device).float()
        x = pre_normalise(x * valid[..., None, None].to(self.device), store.layout)
        return x.transpose(1, 2)[(frame < lengths[:, None]).to(self.device)]
