"""How close embeddings are."""

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]


def cosines(left: Embeddings, right: Embeddings) -> npt.NDArray[np.float64]:
    """The cosine of each row of one with the same row of the other, `[N, D]` twice -> `[N]`."""
    assert left.shape == right.shape
    left, right = (side / np.linalg.norm(side.astype(np.float64), axis=1, keepdims=True) for side in (left, right))
    result: npt.NDArray[np.float64] = (left * right).sum(axis=1)
    return result
