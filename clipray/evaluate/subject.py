"""What is evaluated: an index, the service over it, and a model, loaded when it is needed."""

from functools import cached_property

from clipray.client import Client
from clipray.embeddings import Parts
from clipray.encoder import Encoder, open_encoder
from clipray.errors import ConfigError
from clipray.evaluate.asked import EvaluateConfig
from clipray.evaluate.service import served_version
from clipray.index import Index
from clipray.index.store import read
from clipray.manifest import ModelIdentity, ModelSource


class Subject:
    """Opens what an evaluation needs, once.

    Attributes:
        client: of the service, if there is one.
        served: name of the index there.
        index: in the version that is served, else in the newest.
    """

    def __init__(self, config: EvaluateConfig, client: Client | None) -> None:
        self.config, self.client = config, client
        self.index: Index | None = None
        self.served, version = "", None
        if config.index is None:
            return
        if client:
            self.served, version = served_version(client, read(config.index), config.served)
        self.index = Index.open(config.index, version, verify=config.verify)

    @cached_property
    def encoder(self) -> Encoder:
        """The model, which fits the index and the embeddings.

        Raises:
            ConfigError: no model is named.
            ModelError: it cannot be used.
            MismatchError: the index or the embeddings were made by another one.
        """
        config, parents = self.config, self._parents()
        source = next((source for source, _ in parents), None)
        if config.model:
            source = ModelSource(name=config.model, pretrained=config.pretrained)
        if source is None:
            raise ConfigError("--data and --labelled need --model, or an --index that names one")
        encoder = open_encoder(source, config)
        for _, identity in parents:
            identity.require(encoder.identity, f"{source.name}: the model")
        return encoder

    def _parents(self) -> list[tuple[ModelSource, ModelIdentity]]:
        found: list[tuple[ModelSource, ModelIdentity]] = []
        if self.index:
            found.append((self.index.manifest.source, self.index.manifest.model))
        if self.config.embeddings:
            manifest = Parts.open(self.config.embeddings).manifest
            found.append((manifest.source, manifest.model))
        return found
