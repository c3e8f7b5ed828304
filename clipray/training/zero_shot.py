"""Classes by their names: what they are called, and the vectors that stand for them.

A class is the mean of the vectors of its name in several prompts (Radford et al. 2021,
arXiv:2103.00020, section 3.1.4). Images are not known here.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

import open_clip
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from clipray.clip import Tokenizer
from clipray.config import Config
from clipray.errors import InputError
from clipray.samples import Entry
from clipray.sources import absolute
from clipray.training.peers import Peers
from clipray.training.shares import share_out

MAX_BYTES = 16 << 20  # of a file of classes or of templates
CLASSES_AT_ONCE = 10

Classes = dict[str, str]


class ZeroShotConfig(Config):
    """Classify held-out images by the names of their classes."""

    input: tuple[str, ...] = Field(
        min_length=1, description="images with classes: folder of img2dataset shards or of images"
    )
    classes: Path | None = Field(
        None,
        description="text file, one class a line: its name, or its label, a tab and its name; "
        "the labels of the images where not given",
    )
    templates: Path | None = Field(
        None,
        description="text file, one prompt a line with {} for the name; a short list of "
        "open_clip's for ImageNet where not given",
    )
    label: str | None = Field(
        None,
        description="metadata column with an image's class; the folder it lies in where not given",
    )

    def absolute(self) -> Self:
        """The same for a process with another working directory."""
        changes = {
            "input": tuple(map(absolute, self.input)),
            "classes": self.classes and self.classes.resolve(),
            "templates": self.templates and self.templates.resolve(),
        }
        return self.model_copy(update=changes)


def read_classes(path: Path) -> Classes:
    """Folded label → name, in the order of the file.

    Raises:
        InputError: a file that cannot be read or has no line, or a class that comes twice.
    """
    classes: Classes = {}
    for number, line in _lines(path, "one class a line"):
        label, _, name = line.partition("\t")
        if fold(label) in classes:
            raise InputError(
                f"{path}, line {number}: '{label.strip()}' comes a second time; expected every "
                "class once"
            )
        classes[fold(label)] = _spoken(name or label)
    return classes


def find_classes(config: ZeroShotConfig, labels: Sequence[str]) -> Classes:
    """The classes of the file, or those of the labels in alphabetical order.

    Raises:
        InputError: no label is one of them, or as for `read_classes`.
    """
    named = {fold(label): _spoken(label) for label in sorted(set(labels)) if label}
    classes = read_classes(config.classes) if config.classes else named
    if not named.keys() & classes:
        source = f"column '{config.label}'" if config.label else "their folder"
        raise InputError(
            f"{', '.join(config.input)}: no image has one of the classes; {source} says "
            f"'{labels[0]}', expected such as '{next(iter(classes), 'cat')}'"
        )
    return classes


def class_numbers(labels: Sequence[str], classes: Classes) -> Tensor:
    """(n,) int64: the place of every label among the classes, -1 where it is none of them."""
    places = {label: place for place, label in enumerate(classes)}
    return torch.tensor([places.get(fold(label), -1) for label in labels])


def tell_unknown(labels: Sequence[str], classes: Classes) -> str:
    """A line about the labels that are none of the classes."""
    unknown = [label for label in labels if fold(label) not in classes]
    names = ", ".join(f"'{label}'" for label in sorted(set(unknown))[:3])
    return f"{len(unknown)} of {len(labels)} images have a label that is no class, such as {names}"


def read_templates(path: Path | None) -> tuple[str, ...]:
    """Prompts with `{}` for the name of a class.

    Without a file, the seven that OpenAI chose from its 80 for ImageNet: with all 80, the texts
    of an evaluation would be eleven times as many, and it is repeated every epoch.

    Raises:
        InputError: a file that cannot be read or has no line, or a line without one `{}`.
    """
    if path is None:
        return tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES)
    return tuple(_template(path, *line) for line in _lines(path, "one prompt a line"))


def fold(label: str) -> str:
    """What two ways to write one label have in common: `Golden_Retriever`, `golden retriever`."""
    return _spoken(label).casefold()


def label_of(entry: Entry, columns: Mapping[str, Any], column: str | None) -> str:
    """The class of a sample, as its column or its folder says; empty where the column does not."""
    if column is None:
        return PurePosixPath(entry.key).parent.name
    found = columns.get(column)
    return "" if found is None else str(found)


def build_classifier(
    module: Any,
    tokenize: Tokenizer,
    names: Sequence[str],
    templates: Sequence[str],
    peers: Peers,
) -> Tensor:
    """The vectors of classes; called by all ranks of a run, which share the work.

    Args:
        module: open_clip's, on the device of `peers`.
        tokenize: that of the model.
        names: of the classes.
        templates: prompts with `{}` for the name.
        peers: the ranks.

    Returns:
        (classes, dim) float32 unit vectors on the CPU.
    """

    def work(groups: Sequence[Sequence[str]]) -> Iterator[Tensor]:
        for group in groups:
            columns = open_clip.build_zero_shot_classifier(
                module, tokenize, group, templates, device=peers.device
            )
            yield normalize(columns.T.float(), dim=-1).cpu()

    starts = range(0, len(names), CLASSES_AT_ONCE)
    groups = [names[start : start + CLASSES_AT_ONCE] for start in starts]
    return torch.cat(share_out(groups, work, peers))


def zero_shot_metrics(places: Tensor, classes: int) -> dict[str, float]:
    """Accuracy of the first guess and, among more than five classes, of the first five.

    Args:
        places: (n,) int64, the rank of every image's own class.
        classes: how many there are.
    """
    shown = (1, 5) if classes > 5 else (1,)
    return {f"zero_shot_top{k}": (places < k).double().mean().item() for k in shown}


def _spoken(label: str) -> str:
    return " ".join(label.replace("_", " ").split())


def _template(path: Path, number: int, line: str) -> str:
    if line.count("{}") != 1 or {"{", "}"} & set(line.replace("{}", "")):
        raise InputError(
            f"{path}, line {number}: found '{line[:80]}'; expected a prompt with one {{}}, where "
            "the name of the class goes, and no other brace"
        )
    return line


def _lines(path: Path, wanted: str) -> list[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected {wanted}") from None
    if len(text) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB; expected {wanted}")
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: empty; expected {wanted}")
    return lines
