"""Published accuracies from the literature, in percent; none is measured by this project.

Sources: Tay et al. 2021 for the first eleven models, and the papers of the other models. None marks an
unpublished result and, on Path-X, a model that did not learn the task. In the arena's code Local Attention
joins tokens at equal distances over the whole sequence, Linear Transformer, Linformer and Performer read
padding, and Performer has random features on ListOps only.
"""

TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
PUBLISHED: dict[str, tuple[float | None, ...]] = {
    # listops  text  retrieval  image  pathfinder  pathx
    "Transformer": (36.37, 64.27, 57.46, 42.44, 71.40, None),
    "Local Attention": (15.82, 52.98, 53.39, 41.46, 66.63, None),
    "Linear Transformer": (16.13, 65.90, 53.09, 42.34, 75.30, None),
    "Reformer": (37.27, 56.10, 53.40, 38.07, 68.50, None),
    "Sparse Transformer": (17.07, 63.58, 59.59, 44.24, 71.71, None),
    "Sinkhorn Transformer": (33.67, 61.20, 53.83, 41.23, 67.45, None),
    "Linformer": (35.70, 53.94, 52.27, 38.56, 76.34, None),
    "Performer": (18.01, 65.40, 53.82, 42.77, 77.05, None),
    "Synthesizer": (36.99, 61.68, 54.67, 41.61, 69.45, None),
    "Longformer": (35.63, 62.85, 56.89, 42.22, 69.71, None),
    "BigBird": (36.05, 64.02, 59.29, 40.83, 74.87, None),
    "FNet": (35.33, 65.11, 59.61, 38.67, 77.78, None),
    "Nyströmformer": (37.15, 65.52, 79.56, 41.58, 70.94, None),
    "Luna-256": (37.98, 65.78, 79.56, 47.86, 78.55, None),
    "H-Transformer-1D": (49.53, 78.69, 63.99, 46.05, 68.78, None),
    "Hrrformer, 1 layer": (38.79, 66.50, 75.40, 48.47, 70.71, None),
    "Hrrformer, multi-layer": (39.98, 65.38, 76.15, 50.45, 72.17, None),
    "S4 (updated)": (59.60, 86.82, 90.90, 88.65, 94.20, 96.35),
    "S5": (62.15, 89.31, 91.40, 88.00, 95.33, 98.58),
    "Mega": (63.14, 90.43, 91.25, 90.44, 96.01, 97.98),
}


def of(task: str) -> dict[str, float]:
    """Returns model → accuracy in percent for one of `TASKS`.

    >>> of("pathx")
    {'S4 (updated)': 96.35, 'S5': 98.58, 'Mega': 97.98}
    """
    column = TASKS.index(task)
    scores = ((model, row[column]) for model, row in PUBLISHED.items())
    return {model: score for model, score in scores if score is not None}
