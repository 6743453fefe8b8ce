"""What was proposed since SGLang last logged its acceptance rate."""


class ProposedInLogInterval:
    """Draft tokens per verified request of one log interval, whatever γ each iteration had.

    Attributes:
        requests: requests verified, each iteration's counted anew.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._proposed = 0

    @property
    def mean_gamma(self) -> float:
        """Raises ZeroDivisionError if nothing was added."""
        return self._proposed / self.requests

    def add(self, gamma: int, batch_size: int) -> None:
        """An iteration verified ``gamma`` draft tokens of each of ``batch_size`` requests."""
        self.requests += batch_size
        self._proposed += gamma * batch_size

    def clear(self) -> None:
        self.requests = self._proposed = 0
