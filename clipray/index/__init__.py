"""The index: sharded, durable and changeable; `Index` opens and searches one version of it."""

from clipray.index.reader import Index

__all__ = ["Index"]
