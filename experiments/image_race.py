"""HRR attention against softmax attention and no mixing, on gray CIFAR-10 pixels.

Question. Do the weights of HRR attention help to classify pictures pixel by pixel, and at which cost?

    python -m experiments.image_race quick --record   two CPU cores, minutes; needs the prepared task
    python -m experiments.image_race small --record   on one GPU, three seeds
"""

from experiments.race import Race, main
from lra_tasks import preset

RACES = {
    "quick": Race(preset("image", "quick")),
    "seeds": Race(preset("image", "quick"), seeds=(0, 1, 2)),
    "small": Race(preset("image", "small"), seeds=(0, 1, 2)),
}

if __name__ == "__main__":
    main("image", RACES)
