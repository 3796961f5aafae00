"""Linear classifiers, the baselines of a recurrent network on the same features."""

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def predict_linear(
    inputs: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> list[tuple[int, int]]:
    """Fits logistic regression (L2, C = 1, not tuned) on standardised inputs, and predicts.

    Args:
      inputs: (N,D) float.
      labels: (N,) int.
      train: indices of the training examples.
      test: indices of the test examples.

    Returns:
      (label, prediction) of each test example.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    classifier.fit(inputs[train], labels[train])
    predictions = classifier.predict(inputs[test])
    return [(int(a), int(b)) for a, b in zip(labels[test], predictions, strict=True)]


def over_time(features: np.ndarray, prefix: str) -> Mapping[str, np.ndarray]:
    """Returns summaries of (N,T,D) features as (N,D') inputs, by names that begin with ``prefix``.

    Average and maximum over time do not depend on the order of the steps; the concatenated averages
    of three thirds do.
    """
    thirds = np.array_split(features, 3, axis=1)
    return {
        f"{prefix}, averaged over time (blind to order)": features.mean(1),
        f"{prefix}, maximum over time (blind to order)": features.max(1),
        f"{prefix}, averages of thirds, concatenated": np.concatenate(
            [third.mean(1) for third in thirds], -1
        ),
    }
