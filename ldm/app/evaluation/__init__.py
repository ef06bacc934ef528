"""What does `evaluate` do with models: draw, measure, compare, report?"""

from ldm.app.evaluation.run import evaluate

__all__ = ["evaluate"]
