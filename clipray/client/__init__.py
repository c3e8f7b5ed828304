"""Clients of the HTTP API: `AsyncClient`, and `Client` for code without an event loop.

They need neither torch nor faiss nor ray.
"""

from clipray.client.asynchronous import AsyncClient
from clipray.client.blocking import Client
from clipray.client.found import Found

__all__ = ["AsyncClient", "Client", "Found"]
