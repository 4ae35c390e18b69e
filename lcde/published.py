"""Published F-scores on the public benchmarks, to stand beside measured ones."""

from typing import NamedTuple

import numpy as np

NAN = float("nan")  # not published


class PublishedScore(NamedTuple):
    """F-scores of one method as fractions, NaN where they were not published."""

    pairwise: float
    bcubed: float


# Faces of each benchmark part, to tell it from other data whose part has the same name.
FACES = {
    "part1_test": 584_013,
    "part3_test": 1_740_000,
    "part5_test": 2_890_000,
    "part7_test": 4_050_000,
    "part9_test": 5_206_761,
    "512": 18_171,
    "1024": 36_575,
    "1845": 68_195,
    "deepfashion_test": 26_960,
}

# Percent by method: pairwise F of each part, then BCubed F of each part.
MS1M = {
    "CDP": ((75.02, 70.75, 69.51, 68.62, 68.06), (78.70, 75.82, 74.58, 73.62, 72.92)),
    "L-GCN": ((78.68, 75.83, 74.29, 73.71, 72.99), (84.37, 81.61, 80.11, 79.33, 78.60)),
    "LTC": ((85.66, 82.41, 80.32, 78.98, 77.87), (85.52, 83.01, 81.10, 79.84, 78.86)),
    "GCN(V+E)": ((87.93, 84.04, 82.10, 80.45, 79.30), (86.09, 82.84, 81.24, 80.09, 79.25)),
    "Clusformer": ((88.20, 84.60, 82.79, 81.03, 79.91), (87.17, 84.05, 82.30, 80.51, 79.95)),
    "STAR-FC": ((91.97, 88.28, 86.17, 84.70, 83.46), (NAN, 86.26, 84.13, 82.63, 81.47)),
    "Pair-Cls": ((90.67, 86.91, 85.06, 83.51, 82.41), (89.54, 86.25, 84.55, 83.49, 82.40)),
    "Ada-NETS": ((92.79, 89.33, 87.50, 85.40, 83.99), (91.40, 87.98, 86.03, 84.48, 83.28)),
    "Chen et al.": ((93.22, 90.51, 89.09, 87.93, 86.94), (92.18, 89.43, 88.00, 86.92, 86.06)),
    "LCDE (paper)": ((94.64, 91.90, 90.27, 88.69, 87.35), (93.36, 90.78, 89.28, 88.15, 87.28)),
    "FC-ESER": ((95.28, 92.94, 91.61, 90.44, 89.40), (NAN, NAN, NAN, NAN, 88.80)),
}
IJBB = {
    "L-GCN": ((NAN, NAN, NAN), (83.3, 83.3, 81.4)),
    "DANet": ((NAN, NAN, NAN), (83.4, 83.4, 82.8)),
    "Pair-Cls": ((84.4, 83.3, 82.7), (NAN, NAN, NAN)),
    "Chen et al.": ((80.8, 73.2, 59.1), (79.6, 78.1, 76.7)),
    "LCDE (paper)": ((93.0, 92.7, 90.8), (85.4, 85.2, 84.8)),
}
DEEPFASHION = {
    "CDP": ((28.28,), (57.83,)),
    "L-GCN": ((28.85,), (58.91,)),
    "LTC": ((29.14,), (59.11,)),
    "GCN(V+E)": ((38.47,), (60.06,)),
    "Pair-Cls": ((37.67,), (62.17,)),
    "Ada-NETS": ((39.30,), (61.05,)),
    "Chen et al.": ((40.91,), (63.61,)),
    "LCDE (paper)": ((41.76,), (64.56,)),
}
BENCHMARKS = (
    (("part1_test", "part3_test", "part5_test", "part7_test", "part9_test"), MS1M),
    (("512", "1024", "1845"), IJBB),
    (("deepfashion_test",), DEEPFASHION),
)


def published_scores(part: str, num_faces: int) -> dict[str, PublishedScore]:
    """Scores by method of the benchmark part of that name and (within 1 %) that many faces, empty for other data."""
    if part not in FACES or abs(num_faces / FACES[part] - 1) > 0.01:
        return {}
    [(column, methods)] = [(parts.index(part), methods) for parts, methods in BENCHMARKS if part in parts]
    return {
        method: PublishedScore(pairwise[column] / 100, bcubed[column] / 100)
        for method, (pairwise, bcubed) in methods.items()
    }


def ranks(f_scores: list[float]) -> list[int | None]:
    """Rank from 1 of each F-score, the highest first, equal ones alike; None where it is NaN."""
    values = np.array(f_scores)
    return [None if np.isnan(value) else 1 + int((values > value).sum()) for value in values]
