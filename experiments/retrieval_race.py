"""HRR attention against softmax attention and no mixing, on pairs of ACL papers.

Question. Which mixer predicts citations, with one encoder that reads 1,000 bytes of each paper?

    python -m experiments.retrieval_race quick --record   two CPU cores, minutes
    python -m experiments.retrieval_race small --record   on one GPU, 4,000 bytes, three seeds

These are this project's own pairs (retrieval/acl), not the arena's Retrieval.
"""

import dataclasses

from experiments.race import Race, main
from lra_tasks import preset

RACES = {
    "quick": Race(preset("retrieval", "quick")),
    "seeds": Race(preset("retrieval", "quick"), seeds=(0, 1, 2)),
    "small": Race(dataclasses.replace(preset("retrieval", "small"), variant="acl"), seeds=(0, 1, 2)),
}

if __name__ == "__main__":
    main("retrieval", RACES)
