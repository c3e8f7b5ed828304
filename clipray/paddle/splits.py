"""A split of an img2dataset folder, as an input of ours."""

from fnmatch import fnmatch

from clipray import uri
from clipray.errors import InputError
from clipray.paddle.clip_file import DatasetSection
from clipray.sources import absolute


def find_split(dataset: DatasetSection, key: str) -> str:
    """The folder `root_path/split`, or else a pattern of the shards `root_path/split*.tar`.

    Args:
        dataset: root and split; without a split, the root itself.
        key: opens the error message.

    Raises:
        InputError: there is neither.
    """
    given = dataset.root_path.rstrip("/") or "/"
    root = uri.at(given)
    with uri.reachable(root):
        if not root.exists():
            raise InputError(f"{key}.root_path: {given}: no such folder")
        if dataset.split is None:
            return absolute(given)
        if (root / dataset.split).is_dir():
            return absolute(f"{given}/{dataset.split}")
        pattern = f"{dataset.split}*.tar"
        if any(fnmatch(path.name, pattern) for path in root.iterdir()):
            return absolute(f"{given}/{pattern}")
    raise InputError(
        f"{key}.split: found '{dataset.split}', expected a folder {given}/{dataset.split} or "
        f"shards {given}/{pattern}"
    )
