"""Where a text ends, as its tower sees it: known without loading what runs it."""

from typing import Any, Literal

from clipray.config import Config


class Ending(Config):
    """How a causal tower finds the token that it pools at; nothing behind that token counts.

    Attributes:
        pool: open_clip's name: the highest number of a text, or the first `token`.
        token: end-of-text.
    """

    pool: Literal["argmax", "eos"]
    token: int

    def find(self, tokens: Any) -> Any:
        """Tokens (n, length) int64, a tensor → places (n,) int64."""
        ends = (tokens == self.token).int() if self.pool == "eos" else tokens
        return ends.argmax(dim=-1)

    def cut(self, tokens: Any) -> Any:
        """The tokens up to the end of the longest text."""
        return tokens[:, : int(self.find(tokens).max()) + 1]
