"""Features in two dimensions."""

import numpy as np


def embedded(features: np.ndarray, perplexity: float = 30, seed: int = 0) -> np.ndarray:
    """t-SNE of features (N, F) in two dimensions, starting from their principal components; (N, 2)."""
    from sklearn.manifold import TSNE

    # Every clip needs more others than the perplexity asks for.
    method = TSNE(2, perplexity=min(perplexity, (len(features) - 1) / 3), init="pca", random_state=seed)
    found: np.ndarray = method.fit_transform(np.ascontiguousarray(features))
    return found
