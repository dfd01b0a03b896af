"""The model that MLflow serves: raw clips in, classes and scores out.

MLflow runs this file when it loads the model ("models from code"), so no pickle of a class is stored.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from components.bundle import Predictor, load_bundle


class Answering:
    """Loads the bundle of a model and answers requests.

    Apart from PythonModel and without type hints, because MLflow takes a hint (like a signature) for the
    schema of a table, into which ragged clips do not fit.
    """

    predictor: Predictor

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = load_bundle(Path(context.artifacts["bundle"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return self.predictor.answer(as_clips(model_input))


class SixstreamModel(Answering, PythonModel):
    """A bundle as an MLflow model.

    Input: a list of clips, each {"id", "joints" (persons, frames, joints, channels)} or an array; or one array
    (N, persons, frames, joints, channels). Output: a list of {"id", "class", "label", "scores"}.
    """


def as_clips(model_input: Any) -> list[Any]:
    """The clips in any form in which MLflow hands over a request."""
    if hasattr(model_input, "to_dict"):  # a data frame, made of JSON records
        return list(model_input.to_dict("records"))
    if isinstance(model_input, dict):
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.ndim in (3, 4):
        return [model_input]
    return list(model_input)


set_model(SixstreamModel())
