"""Run by the peers' Python: what clip-retrieval's client gets for each question, as JSON."""

import json
import sys

from clip_retrieval.clip_client import ClipClient, Modality


def main() -> None:
    url, questions = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps([answer(url, **question) for question in questions]))  # noqa: T201


def answer(url, query, modality="image", **options):
    client = ClipClient(url, "drawings", modality=Modality(modality), **options)
    return client.query(**query)


if __name__ == "__main__":
    main()
