"""Keys of PaddleClas that decide nothing here: each is told once, with the reason."""

import logging

log = logging.getLogger(__name__)


class Notes:
    """What was told in one run of a command."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def ignored(self, key: str, why: str) -> None:
        """Warn that a key is passed over, the first time that it is named.

        Args:
            key: with its sections, such as `DataLoader.Train.sampler.shuffle`.
            why: completes "has no meaning here, …".
        """
        if key not in self._told:
            self._told.add(key)
            log.warning("%s: has no meaning here, %s", key, why)
