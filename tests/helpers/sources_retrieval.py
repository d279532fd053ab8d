"""Small source files of Retrieval: synthetic papers that cite one another, and a release of such papers."""

import json
import random

TOPICS, WORDS = 12, 40  # words that only one topic uses
SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]


def acl(papers=600, citations=6_000, seed=0):
    """Returns files in the layout of acl-pairs-raw.tar.xz, name → content.

    A paper cites earlier ones, mostly of its own topic, and names the authors of half of them. Texts have
    about 2,000 characters. The variant "smoke" needs about this number of papers and citations.
    """
    draw = random.Random(f"acl:{seed}")

    def words(count):
        return ["".join(draw.choices(SYLLABLES, k=3)) for _ in range(count)]

    common, topics, authors = words(200), [words(WORDS) for _ in range(TOPICS)], words(papers)
    topic_of = [draw.randrange(TOPICS) for _ in range(papers)]
    years = [2000 + 12 * number // papers for number in range(papers)]
    edges = set()
    while len(edges) < citations:
        citing = draw.randrange(1, papers)
        cited = int(citing * draw.random() ** 2)  # early papers are cited most
        if topic_of[citing] == topic_of[cited] or draw.random() < 0.1:
            edges.add((citing, cited))
    named = [[] for _ in range(papers)]
    for citing, cited in sorted(edges):
        if draw.random() < 0.5:
            named[citing].append(authors[cited])
    lines = []
    for number in range(papers):
        topic = topics[topic_of[number]]
        body = draw.choices(common + 2 * topic, k=280)
        title = " ".join(draw.choices(topic, k=6))
        text = f"{title}\n{authors[number]}\nAbstract {' '.join(body)} {' '.join(named[number])}"
        row = {"id": name_of(number), "title": title, "year": str(years[number]), "text": text}
        lines.append(json.dumps(row) + "\n")
    return {
        "acl-pairs-raw/papers.jsonl": "".join(lines).encode(),
        "acl-pairs-raw/edges.tsv": "".join(
            f"{name_of(citing)}\t{name_of(cited)}\n" for citing, cited in sorted(edges)
        ).encode(),
    }


def name_of(number):
    return f"P{number // 100:02d}-{number % 100 + 1000}"


def release(train=12, validation=4, test=4, label="{}.0"):
    """Returns files in the layout of lra_release.gz, name → content, in the order test, train, eval.

    Texts are written as Python prints bytes. All pairs differ.
    """
    files = {"lra_release/listops-1000/basic_test.tsv": b"Source\tTarget\n"}
    for split, count in {"test": test, "train": train, "eval": validation}.items():
        rows = (row(f"{split} {number}", number % 2, label) for number in range(count))
        files[f"lra_release/lra_release/tsv_data/new_aan_pairs.{split}.tsv"] = b"".join(rows)
    return files


def row(text, number, label="{}.0"):
    """Returns a line of the release."""
    texts = [repr(f'{text} of {side}: "caf\xe9"\n{"it" * 60}'.encode()) for side in ("one", "other")]
    return "\t".join([label.format(number), "P02-1040", "E06-1032", *texts]).encode() + b"\n"
