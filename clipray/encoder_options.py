"""How a model is run: known without loading what runs it."""

from typing import Annotated, Literal

from pydantic import Field

from clipray.config import Config

Decode = Literal["exact", "fast"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Backend = Literal["auto", "torch", "onnx"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]


class EncoderOptions(Config):
    """How a model is run; the vectors are the same up to rounding."""

    device: Device = Field("auto", description="auto, cpu, cuda")
    precision: Precision = Field(
        "auto", description="auto is bf16 on a GPU, fp32 elsewhere; int8 is for exported models"
    )
    backend: Backend = Field("auto", description="auto is onnx for an exported folder, else torch")
    decode: Decode = Field(
        "exact", description="fast reads image files in a fraction of the time, nearly the same"
    )
