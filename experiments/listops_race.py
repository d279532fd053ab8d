"""HRR attention against softmax attention and no mixing, on ListOps at 2,000 tokens.

Question. What does holographic attention cost in accuracy against quadratic attention, and what does it
save, at the arena's full length?

    make compare                                        the configuration "quick", on two CPU cores
    python -m experiments.listops_race quick --record   the same, kept in experiments/results
    python -m experiments.listops_race small --record   on one GPU

Hardware and time. Two CPU cores: "quick" takes four minutes where the data are prepared, nearly all of it
softmax attention; "mean" half a minute; "seeds" three times "quick". "small", "lra" and "paper" want a GPU
and have not been run.

Results, in experiments/results with their environment:
- quick: hrr, softmax and none all learn what the root operator tells, and no more; hrr trains an order of
  magnitude more examples a second than softmax, and its memory grows linearly with T, softmax's as T².
- mean: with mean pooling, the same number of examples leaves hrr and none at the majority class. One token
  among a thousand decides, its share of the mean is a thousandth, and neither mixer can raise it by more than
  a factor of e². That is why "quick" reads the state of the first token, which is the root operator.
"""

import dataclasses

from experiments.race import Race, main
from lra_tasks import preset

QUICK = preset("listops", "quick")
LENGTHS = (1024, 2048, 4096, 8192)
RACES = {
    "quick": Race(QUICK, lengths=LENGTHS),
    "seeds": Race(QUICK, seeds=(0, 1, 2)),
    "mean": Race(
        dataclasses.replace(QUICK, model=dataclasses.replace(QUICK.model, pooling="mean")),
        mixers=("hrr", "none"),
    ),
    "small": Race(preset("listops", "small"), seeds=(0, 1, 2)),
    "lra": Race(preset("listops", "lra"), seeds=(0, 1, 2)),
    "paper": Race(preset("listops", "paper"), seeds=(0, 1, 2)),
}

if __name__ == "__main__":
    main("listops", RACES)
