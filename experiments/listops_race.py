"""HRR attention against softmax attention and no mixing, on ListOps at 2,000 tokens.

Question. How much accuracy does HRR attention lose against quadratic attention, and how much time and memory
does it save, at the arena's full length?

    make compare                                        the preset "quick", on two CPU cores
    python -m experiments.listops_race quick --record   the same, recorded in experiments/results
    python -m experiments.listops_race small --record   on one GPU

Hardware and time. Two CPU cores: with prepared data, "quick" takes four minutes, mostly for softmax
attention, "mean" half a minute, and "seeds" three times as long as "quick". "small", "arena" and "paper" need
a GPU and have not been run.

Results, in experiments/results with their environment:
- quick: hrr, softmax and none reach the accuracy of the rule "majority by root operator", and no more.
  hrr trains 16 times as many examples per second as softmax. Its memory grows linearly with T, that of
  softmax as T².
- mean: with mean pooling, the same number of examples leaves hrr and none at the majority class. The root
  operator is one token in a thousand, so its share of the mean is a thousandth. Neither mixer can raise it by
  more than a factor of e². Therefore "quick" reads the state of the first token, which is the root operator.
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
    "arena": Race(preset("listops", "arena"), seeds=(0, 1, 2)),
    "paper": Race(preset("listops", "paper"), seeds=(0, 1, 2)),
}

if __name__ == "__main__":
    main("listops", RACES)
