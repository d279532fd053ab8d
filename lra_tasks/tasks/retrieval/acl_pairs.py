"""Pairs of papers, of which one cites the other or does not, from texts and citations of the ACL Anthology.

The source is a file of papers and one of citations, `papers.jsonl` and `edges.tsv`. The pairs are a pure
function of the two, the same on every machine and every Python. This module needs the standard library only.

Two things would give the label away if pairs that do not cite were drawn at random: papers cited often would
be likely to be cited, and the second paper of a pair that cites would be the older one. So such pairs are
made from those that cite, by dealing out their cited papers anew among the citing papers of the same year:
every paper stands as often in a pair of one label as of the other, on either side, and so does every
distance in years. What is left is what the two are about, and names: in 77 % of the pairs that cite, the
name of the cited paper's first author stands in the citing text, in 9 % of random pairs.
"""

import functools
import hashlib
import itertools
import json
import random
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lra_tasks.errors import UsageError
from lra_tasks.task import SPLITS

SHARES = {"train": 70, "validation": 10, "test": 20}  # of the papers, in percent
MIN_CHARACTERS = 1_000  # a text below this is near-empty
SEQUENCE = 8  # words of the sequences by which texts are compared
ANCHORS = 8  # one word in so many begins one
COMMON = 20  # a sequence in more papers than this is nobody's own
TRIES = 200  # swaps with a paper of the same year before one of any year is taken

Citation = tuple[str, str]  # the ids of the citing and the cited paper


class Paper(NamedTuple):
    """A paper: its id in the Anthology, the year it appeared in, the beginning of its text."""

    id: str
    year: int
    text: str


class Pairs(NamedTuple):
    """Pairs of every split, and what was left out on the way to them.

    Attributes:
      splits: split → (citing or not citing paper, cited or not cited paper, label).
      papers: split → number of papers it was given.
      left_out: reason → number of papers.
      other_years: split → pairs that do not cite whose distance in years is not that of a pair that cites.
    """

    splits: dict[str, list[tuple[Paper, Paper, int]]]
    papers: dict[str, int]
    left_out: dict[str, int]
    other_years: dict[str, int]


def read_papers(name: str, lines: Iterable[bytes]) -> dict[str, Paper]:
    """Reads `papers.jsonl`: a line is {"id": string, "year": string of digits, "text": string, …}.

    Args:
      name: File name, for messages.
      lines: The file.

    Returns:
      id → paper.

    Raises:
      UsageError: A line is no such object, or an id comes twice; the message names file and line.
    """
    papers: dict[str, Paper] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["text"], str):
                raise TypeError("text is no string")
            paper = Paper(str(row["id"]), int(row["year"]), row["text"])
            paper.text.encode()  # JSON can hold what UTF-8 cannot
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{name}, line {number}: expected a JSON object with id, year and text ({error!r})."
            ) from None
        if paper.id in papers:
            raise UsageError(f"{name}, line {number}: the paper {paper.id} has come before.")
        papers[paper.id] = paper
    return papers


def read_citations(name: str, lines: Iterable[bytes], papers: Mapping[str, Paper]) -> list[Citation]:
    """Reads `edges.tsv`: a line is citing id, tab, cited id.

    Raises:
      UsageError: A line has another form, or names a paper that is not among `papers`; the message names
        file and line.
    """
    citations = []
    for number, line in enumerate(lines, 1):
        ids = line.decode(errors="replace").rstrip("\r\n").split("\t")
        if len(ids) != 2:
            raise UsageError(f"{name}, line {number}: expected citing id, tab, cited id.")
        unknown = [id for id in ids if id not in papers]
        if unknown:
            raise UsageError(f"{name}, line {number}: there is no paper {unknown[0]}.")
        citations.append((ids[0], ids[1]))
    return citations


def make_pairs(
    papers: Mapping[str, Paper], citations: Iterable[Citation], limits: Mapping[str, int] | None = None
) -> Pairs:
    """Makes pairs of papers, as many that cite as that do not in every split.

    Near-empty papers are left out, and of papers with the same or nearly the same text all but the first by
    id: such that share at least half of the sequences of eight words that either has (one sequence in eight
    is looked at). The others are dealt out by the hash of their ids, 70 to 10 to 20 in a hundred, so no paper
    stands in two splits. A pair that cites is (citing, cited), a citation within a split; of two papers that
    cite each other, one. A pair that does not cite has both sides from such pairs, and no citation in either
    direction between the two or papers of the same text. No two papers are paired twice.

    Args:
      papers: id → paper.
      citations: Citations between these.
      limits: split → pairs of each label, taken first by hash; None takes all.

    Raises:
      UsageError: There are too few citations within a split, or no way to pair its papers without them.
    """
    same = _same_texts(papers)
    kept = sorted((id for id in papers if same.get(id) == id), key=lambda id: _rank("paper", id))
    split_of, stop, start = {}, 0, 0
    for split in SPLITS:
        stop += SHARES[split] * len(kept)
        split_of |= dict.fromkeys(kept[start : stop // 100], split)
        start = stop // 100
    linked = {_unordered(same[a], same[b]) for a, b in citations if a in same and b in same}
    splits, other_years = {}, {}
    for split in SPLITS:
        found: dict[Citation, Citation] = {}
        for citing, cited in sorted(citations):
            if citing != cited and split_of.get(citing) == split_of.get(cited) == split:
                found.setdefault(_unordered(citing, cited), (citing, cited))
        positive = sorted(found.values(), key=lambda pair: _rank("citation", *pair))
        wanted = len(positive) if limits is None else limits[split]
        if not 0 < wanted <= len(positive):
            raise UsageError(
                f"Retrieval needs {max(wanted, 1):,} citations between papers of its {split} split; of "
                f"{len(papers):,} papers, {len(positive):,} citations fell into it. Give it more papers."
            )
        positive = positive[:wanted]
        negative = _not_citing(split, positive, linked, {id: paper.year for id, paper in papers.items()})
        before, after = (
            Counter(papers[a].year - papers[b].year for a, b in pairs) for pairs in (positive, negative)
        )
        other_years[split] = (after - before).total()
        labelled = [(*pair, 1) for pair in positive] + [(*pair, 0) for pair in negative]
        labelled.sort(key=lambda pair: _rank("order", pair[0], pair[1]))
        splits[split] = [(papers[a], papers[b], label) for a, b, label in labelled]
    left_out = {
        f"fewer than {MIN_CHARACTERS:,} characters": len(papers) - len(same),
        "the text of another": len(same) - len(kept),
    }
    return Pairs(splits, dict(Counter(split_of.values())), left_out, other_years)


def _rank(*words: str) -> bytes:
    """Where something stands in an order that has nothing to do with what it is."""
    return hashlib.sha256("\t".join(("acl pairs", *words)).encode()).digest()


def _unordered(first: str, second: str) -> Citation:
    return (first, second) if first < second else (second, first)


def _same_texts(papers: Mapping[str, Paper]) -> dict[str, str]:
    """The papers that are not near-empty: id → id of the first with the same text."""
    sequences = {
        id: _sequences(papers[id].text) for id in sorted(papers) if len(papers[id].text) >= MIN_CHARACTERS
    }
    holders: dict[str, list[str]] = defaultdict(list)
    for id, own in sequences.items():
        for sequence in own:
            holders[sequence].append(id)
    shared: dict[str, Counter[str]] = defaultdict(Counter)  # of each paper with those before it
    for ids in holders.values():
        if len(ids) <= COMMON:
            for first, second in itertools.combinations(ids, 2):
                shared[second][first] += 1
    same: dict[str, str] = {}
    for id, own in sequences.items():
        alike = (
            other
            for other, count in sorted(shared[id].items())
            if same[other] == other and 2 * count >= len(own | sequences[other])
        )
        same[id] = next(alike, id)
    return same


def _sequences(text: str) -> set[str]:
    """Every eighth or so of the text's sequences of eight words: the word it begins with says whether."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {" ".join(words[i : i + SEQUENCE]) for i, word in enumerate(words) if _is_anchor(word)}


@functools.cache
def _is_anchor(word: str) -> bool:
    return not zlib.crc32(word.encode()) % ANCHORS


def _not_citing(
    split: str, positive: Sequence[Citation], linked: set[Citation], years: Mapping[str, int]
) -> list[Citation]:
    """Deals out the cited papers anew; see `make_pairs`."""
    uniform = random.Random(f"acl pairs:{split}").random
    citing, cited = [a for a, _ in positive], [b for _, b in positive]
    by_year: dict[int, list[int]] = defaultdict(list)
    for i, a in enumerate(citing):
        by_year[years[a]].append(i)
    everywhere = range(len(citing))
    for group in by_year.values():
        for place in range(len(group) - 1, 0, -1):
            i, j = group[place], group[_below(uniform, place + 1)]
            cited[i], cited[j] = cited[j], cited[i]
    taken: dict[Citation, int] = {}

    def fits(i: int, b: str, *others: int) -> bool:
        key = _unordered(citing[i], b)
        return citing[i] != b and key not in linked and taken.get(key, i) in (i, *others)

    wrong = []
    for i in everywhere:
        if fits(i, cited[i]):
            taken[_unordered(citing[i], cited[i])] = i
        else:
            wrong.append(i)
    for i in wrong:
        if taken.get(_unordered(citing[i], cited[i])) == i:
            continue  # it was put right together with another
        for attempt in range(TRIES * 10):
            group = by_year[years[citing[i]]] if attempt < TRIES else everywhere
            j = group[_below(uniform, len(group))]
            pair = _unordered(citing[i], cited[j]), _unordered(citing[j], cited[i])
            if i != j and pair[0] != pair[1] and fits(i, cited[j], j) and fits(j, cited[i]):
                if taken.get(_unordered(citing[j], cited[j])) == j:
                    del taken[_unordered(citing[j], cited[j])]
                cited[i], cited[j] = cited[j], cited[i]
                taken[pair[0]], taken[pair[1]] = i, j
                break
        else:
            raise UsageError(
                f"The citations within the {split} split of retrieval leave no paper that {citing[i]} could "
                "be paired with and does not cite. Give it more papers."
            )
    return list(zip(citing, cited, strict=True))


def _below(uniform: Callable[[], float], bound: int) -> int:
    return int(uniform() * bound)
