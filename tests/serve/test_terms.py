"""Terms become vectors: together, once for each text, and each with its own error."""

import asyncio

import numpy as np
import pytest

from clipray.errors import ImageError, NotFoundError, QueryError, UnavailableError
from clipray.query import Term
from clipray.serve.line import Line, LineOptions
from clipray.serve.meter import Meter
from clipray.serve.terms import Terms

DIM = 4


def vector_of(thing):
    return np.eye(DIM, dtype=np.float32)[len(thing) % DIM]


class Encoder:
    def __init__(self) -> None:
        self.calls = []
        self.away = False

    async def __call__(self, method, items):
        self.calls.append((method, list(items)))
        await asyncio.sleep(0)
        if self.away:
            raise ConnectionError("away")
        return [ImageError("no picture") if item == b"bad" else vector_of(item) for item in items]


async def fetch(url):
    return url.encode()


async def find_key(key):
    raise NotFoundError(f"key '{key}': no row has it")


class Service:
    def __init__(self, cached=100) -> None:
        self.encoder, self.meter = Encoder(), Meter()
        line = Line("Encoder", self.encoder, LineOptions(deadline_s=0.2, patience_s=0.1))
        self.terms = Terms(line, DIM, fetch, cached, self.meter)

    def ask(self, *things, **term):
        given = [Term(text=thing) for thing in things] + ([Term(**term)] if term else [])
        return self.terms.vector(given, find_key)


def run(main):
    return asyncio.run(main())


def test_texts_of_one_moment_are_encoded_together_and_equal_ones_once():
    async def main():
        service = Service()
        found = await asyncio.gather(*[service.ask(text) for text in ("a", "bb", "a", "ccc")])
        assert [vector.tolist() for vector in found] == [
            vector_of(text).tolist() for text in ("a", "bb", "a", "ccc")
        ]
        return service.encoder.calls

    assert run(main) == [("encode_texts", ["a", "bb", "ccc"])]


def test_a_text_that_is_known_costs_no_call_until_others_have_pushed_it_out():
    async def main():
        service = Service(cached=2)
        for text in ("a", "a", "bb", "a", "ccc", "a", "bb"):
            await service.ask(text)
        assert b'clipray_text_cache_total{result="hit"} 3.0' in service.meter.exposition()
        return [texts for _, texts in service.encoder.calls]

    assert run(main) == [["a"], ["bb"], ["ccc"], ["bb"]]


def test_without_a_cache_every_text_is_encoded():
    async def main():
        service = Service(cached=0)
        await service.ask("a")
        await service.ask("a")
        return len(service.encoder.calls)

    assert run(main) == 2


def test_a_failure_is_not_kept():
    async def main():
        service = Service()
        service.encoder.away = True
        with pytest.raises(UnavailableError):
            await service.ask("a")
        service.encoder.away = False
        assert (await service.ask("a")).tolist() == vector_of("a").tolist()

    run(main)


def test_one_bad_image_does_not_touch_the_others():
    async def main():
        service = Service()
        asked = [service.ask(image=data) for data in (b"good", b"bad", b"fine")]
        return await asyncio.gather(*asked, return_exceptions=True), service.encoder.calls

    (good, bad, fine), calls = run(main)
    assert good.tolist() == vector_of(b"good").tolist()
    assert isinstance(bad, ImageError)
    assert fine.tolist() == vector_of(b"fine").tolist()
    assert calls == [("encode_images", [b"good", b"bad", b"fine"])]


def test_an_address_is_fetched_and_encoded_as_an_image():
    async def main():
        service = Service()
        await service.ask(image_url="http://x/abc")
        return service.encoder.calls

    assert run(main) == [("encode_images", [b"http://x/abc"])]


def test_keys_and_wrong_lengths_are_refused_by_name():
    async def main():
        service = Service()
        with pytest.raises(NotFoundError, match="'nobody'"):
            await service.ask(key="nobody")
        with pytest.raises(QueryError, match="holds 4 dimensions"):
            await service.ask(embedding=(1.0, 2.0))
        with pytest.raises(QueryError, match=r"\[2, 4\] dimensions"):
            await service.ask("a", embedding=(1.0, 2.0))

    run(main)
