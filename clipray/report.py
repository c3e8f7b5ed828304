"""What a command gives back: a small frozen value that can be shown to a person or as JSON."""

from clipray.config import Config

DONE = 0
FAILED = 1
DONE_WITH_REJECTS = 3


class Report(Config):
    """Base of all reports."""

    @property
    def exit_code(self) -> int:
        """What the command line returns."""
        return DONE

    def summary(self) -> str:
        """A few lines for people."""
        raise NotImplementedError
