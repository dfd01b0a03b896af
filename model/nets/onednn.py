"""Matrix products by oneDNN: torch takes it for convolutions, while its own products reach a third to half the rate."""

import torch
import torch.nn.functional as F
from torch import Tensor

_THERE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (m, k) @ b (n, k).T + bias (n,): (m, n). Either may be transposed in memory; autograd does not see it."""
    if _THERE and a.dtype == torch.float32 and a.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)
