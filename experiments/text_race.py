"""HRR attention against softmax attention and no mixing, on the bytes of film reviews.

Question. How much does each mixer add, and cost, where a bag of bytes is informative already?

    python -m experiments.text_race quick --record   two CPU cores, minutes, 1,000 bytes of each review
    python -m experiments.text_race small --record   on one GPU, 4,000 bytes, three seeds
"""

from experiments.race import Race, main
from lra_tasks import preset

RACES = {
    "quick": Race(preset("text", "quick")),
    "seeds": Race(preset("text", "quick"), seeds=(0, 1, 2)),
    "small": Race(preset("text", "small"), seeds=(0, 1, 2)),
}

if __name__ == "__main__":
    main("text", RACES)
