"""Contrastive training of one rank, without Ray: data, objective, evaluation, checkpoints."""
