"""What prefills between decode iterations cost by their number, which γ changes, beyond their tokens, which it doesn't.

Where prefills go first and by themselves (SGLang's default; Sarathi-Serve, arXiv 2403.02310, calls it generation
stalls), the requests that arrived during a decode iteration are prefilled together after it. That reads the weights
once, however many they are. So the more an iteration commits, the fewer prefills come with the same requests: drafts
still pay a little above the batch size at which they stop to shorten decoding itself.
"""

import math

import numpy as np

#: Weight of the newest iteration.
_NEWEST = 0.01
#: Above it a share says little about how many requests arrive.
_MOST = 0.98


class PrefillStalls:
    """Attributes:
    share: of the decode iterations, those with a prefill before them.
    wall_ns: mean time from one decode iteration's end to the next one's.
    """

    def __init__(self) -> None:
        self.share = self.wall_ns = 0.0

    def add(self, prefilled: bool, ns: float) -> None:
        """A decode iteration that took ``ns``, with what came before it."""
        self.share += _NEWEST * (prefilled - self.share)
        self.wall_ns += (_NEWEST if self.wall_ns else 1.0) * (ns - self.wall_ns)

    def added_ns(self, ns: np.ndarray, fixed_ns: float) -> np.ndarray:
        """float64, as ``ns``: expected time of prefills after iterations of ``ns``, of which each costs ``fixed_ns``.

        Arrivals are taken to be Poisson's, at the rate that the share says; they come during prefills, too.
        """
        per_ns = -math.log1p(-min(_MOST, self.share)) / max(1.0, self.wall_ns)
        return np.asarray(fixed_ns * -np.expm1(-per_ns * (ns + self.share * fixed_ns)))
