"""Light random changes of training pictures: one affine warp and one linear colour map a batch.

The changes of a sample follow from (seed, epoch, sample index) alone, through a counter-based
hash: never from a generator's state, the rank, or the place in the batch. So the same epoch on 1
or N workers sees the same pixels, and any step can be resumed exactly. This module does not know
files, captions, normalisation or devices other than the one that the batch lies on.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from clipray.config import Config

_WARPS = 6  # angle, scale, shift x, shift y, shear, flip
_COLOURS = 3  # brightness, contrast, saturation
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG
_MIDDLE_GREY = 127.5


class AugmentConfig(Config):
    """Strengths: every change is drawn uniformly from minus to plus its strength; 0 = never."""

    rotate: float = Field(0.0, ge=0, le=180, description="largest turn, in degrees")
    scale: float = Field(0.0, ge=0, lt=1, description="largest change of size, as a fraction")
    shift: float = Field(0.0, ge=0, le=1, description="largest shift, as a fraction of the side")
    shear: float = Field(0.0, ge=0, lt=90, description="largest slant, in degrees")
    brightness: float = Field(0.0, ge=0, le=1, description="largest change, as a fraction")
    contrast: float = Field(0.0, ge=0, le=1, description="largest change, as a fraction")
    saturation: float = Field(0.0, ge=0, le=1, description="largest change, as a fraction")
    flip: float = Field(0.0, ge=0, le=1, description="probability of a left-right mirror image")
    fill: int = Field(255, ge=0, le=255, description="grey level of what moves in from outside")

    @property
    def warps(self) -> bool:
        """Whether pixels can move."""
        return any((self.rotate, self.scale, self.shift, self.shear, self.flip))

    @property
    def recolours(self) -> bool:
        """Whether colours can change."""
        return any((self.brightness, self.contrast, self.saturation))


def augment(batch: Tensor, seeds: Tensor, config: AugmentConfig) -> Tensor:
    """Change every picture of a batch by what its own seed says.

    Args:
        batch: (batch, 3, height, width) uint8.
        seeds: (batch,) int64, from `sample_seeds`.
        config: how strong the changes are.

    Returns:
        (batch, 3, height, width) uint8 on the device of `batch`; `batch` itself where the
        configuration asks for no change.

    Raises:
        ValueError: a shape or type other than these.
    """
    _check(batch, seeds)
    if not len(batch) or not (config.warps or config.recolours):
        return batch
    draws = _uniforms(seeds, _WARPS + _COLOURS)
    # Grey level 0 then stands for the fill, which is what grid_sample puts outside.
    pixels = batch.float() - config.fill
    if config.warps:
        pixels = _warp(pixels, draws[:, :_WARPS], config)
    matrix, offset = _colour_maps(draws[:, _WARPS:], config)
    return _recolour(pixels, matrix.to(batch.device), offset.to(batch.device))


def sample_seeds(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Give every sample of an epoch its own seed.

    Args:
        seed: of the run, any int64.
        epoch: counted from 0.
        indices: (batch,) int64, each sample's place in the data set.

    Returns:
        (batch,) int64 on the CPU.
    """
    run = _mix(np.array([seed], np.int64).view(np.uint64))
    run_epoch = _mix(run + np.array([epoch], np.int64).view(np.uint64))
    seeds = _mix(run_epoch + indices.cpu().numpy().astype(np.int64).view(np.uint64))
    return torch.from_numpy(seeds.view(np.int64))


def _check(batch: Tensor, seeds: Tensor) -> None:
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
        found = f"{tuple(batch.shape)} {batch.dtype}"
        raise ValueError(f"expected a (batch, 3, height, width) uint8 batch, found {found}")
    if seeds.dtype != torch.int64 or seeds.shape != batch.shape[:1]:
        found = f"{tuple(seeds.shape)} {seeds.dtype}"
        raise ValueError(f"expected ({len(batch)},) int64 seeds, one a picture, found {found}")


def _uniforms(seeds: Tensor, count: int) -> NDArray[np.float32]:
    """Draw (batch, count) numbers in [-1, 1): number i of a seed is a hash of (seed, i)."""
    states = _mix(seeds.cpu().numpy().view(np.uint64))
    hashes = _mix(np.add.outer(states, np.arange(count, dtype=np.uint64)))
    fractions = (hashes >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return fractions * np.float32(2) - np.float32(1)


def _mix(states: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One splitmix64 step: neighbouring states become unrelated ones."""
    z = states + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _warp(pixels: Tensor, draws: NDArray[np.float32], config: AugmentConfig) -> Tensor:
    maps = _affine_maps(draws, config, pixels.shape[3] / pixels.shape[2]).to(pixels.device)
    grid = functional.affine_grid(maps, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="zeros", align_corners=False)


def _affine_maps(draws: NDArray[np.float32], config: AugmentConfig, aspect: float) -> Tensor:
    """Build (batch, 2, 3) float32 maps from places in the result to places in the source."""
    angle = draws[:, 0] * math.radians(config.rotate)
    size = 1 + draws[:, 1] * config.scale
    slant = np.tan(draws[:, 4] * math.radians(config.shear))
    mirror = np.where(draws[:, 5] < 2 * config.flip - 1, -1.0, 1.0)
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    # affine_grid counts width and height each from -1 to 1, so a turn must know their ratio.
    x_row = [mirror * cos, mirror * (cos * slant - sin) / aspect, 2 * draws[:, 2] * config.shift]
    y_row = [sin * aspect, sin * slant + cos, 2 * draws[:, 3] * config.shift]
    rows = np.stack([np.stack(x_row, 1), np.stack(y_row, 1)], 1)
    return torch.from_numpy(rows.astype(np.float32))


def _colour_maps(draws: NDArray[np.float32], config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Build (batch, 3, 3) and (batch, 3, 1) float32: colour = matrix @ (pixel - fill) + offset."""
    strengths = np.array([config.brightness, config.contrast, config.saturation], np.float32)
    brightness, contrast, saturation = (1 + draws * strengths).T[:, :, None, None]
    grey = np.tile(np.array(_LUMA, np.float32), (3, 1))
    mix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey
    matrix = (brightness * contrast * mix).astype(np.float32)
    # A grey stays grey, so its offset is the same in every channel.
    offset = brightness * (contrast * (config.fill - _MIDDLE_GREY) + _MIDDLE_GREY)
    offsets = np.broadcast_to(offset, (len(draws), 3, 1)).astype(np.float32)
    return torch.from_numpy(matrix), torch.from_numpy(offsets)


def _recolour(pixels: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    flat = torch.baddbmm(offset, matrix, pixels.flatten(2))  # (batch, 3, height * width)
    return flat.round_().clamp_(0, 255).to(torch.uint8).view_as(pixels)
