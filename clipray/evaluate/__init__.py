"""What a model and an index are worth, measured: `clipray evaluate`."""

from clipray.evaluate.asked import EvaluateConfig
from clipray.evaluate.captions import caption_recall
from clipray.evaluate.run import evaluate
from clipray.evaluate.verdict import EvaluateReport

__all__ = ["EvaluateConfig", "EvaluateReport", "caption_recall", "evaluate"]
