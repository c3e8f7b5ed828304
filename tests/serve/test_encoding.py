"""The encoder deployment, on a node that lacks the model."""

import pytest

from clipray import nodes
from clipray.encoder_options import EncoderOptions
from clipray.errors import ModelError
from clipray.manifest import ModelSource
from clipray.serve.encoding import _opened


@pytest.mark.parametrize(("count", "told"), [(1, False), (2, True)])
def test_of_several_nodes_the_one_that_lacks_the_model_is_named(monkeypatch, count, told):
    monkeypatch.setattr(nodes, "present", lambda: iter([None] * count))
    monkeypatch.setattr(nodes, "here", lambda: "rack-2")
    with pytest.raises(ModelError) as raised:
        _opened(ModelSource(name="/nowhere/model"), EncoderOptions())
    assert "/nowhere/model" in str(raised.value)
    assert ("node 'rack-2'" in str(raised.value)) == told
