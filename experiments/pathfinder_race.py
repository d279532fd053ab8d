"""HRR attention against softmax attention and no mixing, on Pathfinder's 32 × 32 pixels.

Question. Does any mixer learn to follow a line within minutes, and how much does a step cost?

    python -m experiments.pathfinder_race quick --record   two CPU cores, minutes
    python -m experiments.pathfinder_race small --record   on one GPU, three seeds
"""

from experiments.race import Race, main
from lra_tasks import preset

RACES = {
    "quick": Race(preset("pathfinder", "quick")),
    "seeds": Race(preset("pathfinder", "quick"), seeds=(0, 1, 2)),
    "small": Race(preset("pathfinder", "small"), seeds=(0, 1, 2)),
}

if __name__ == "__main__":
    main("pathfinder", RACES)
