"""Pairs of citing and non-citing papers, from texts and citations of the ACL Anthology.

The source is a file of papers, `papers.jsonl`, and a file of citations, `edges.tsv`. The pairs are a pure
function of the two, the same on every machine and Python version. This module imports the standard library
only.

Random non-citing pairs would reveal the label in two ways: a frequently cited paper in second place suggests
a citation, and so does an older paper in second place. Non-citing pairs therefore result from permuting the
cited papers of citing pairs among citing papers of the same year. Every paper then occurs equally often under
both labels, on either side, and so does almost every distance in years. The remaining signals are the
subjects of the papers, and names: the citing text contains the name of the cited paper's first author in 77 %
of the citing pairs, and in 9 % of random pairs.
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
from lra_tasks.sources import tables
from lra_tasks.sources.archives import LeaveOut, ignore
from lra_tasks.task import SPLITS

SHARES = {"train": 70, "validation": 10, "test": 20}  # of the papers, in percent
MIN_CHARACTERS = 1_000  # a shorter text is near-empty
SEQUENCE = 8  # words per sequence by which texts are compared
ANCHORS = 8  # one word in this many begins a sequence
COMMON = 20  # a sequence in more papers than this identifies no text
TRIES = 200  # attempts at a swap within a year before any year is allowed

Citation = tuple[str, str]  # the ids of the citing paper and the cited paper


class Paper(NamedTuple):
    """A paper: its id in the Anthology, its year of publication, and the beginning of its text."""

    id: str
    year: int
    text: str


class Pairs(NamedTuple):
    """Pairs of every split, and counts of the papers left out.

    Attributes:
      splits: Split → (first paper, second paper, label); the first cites the second if the label is 1.
      papers: Split → number of papers assigned to it.
      left_out: Reason → ids of the papers left out.
      other_years: Split → number of non-citing pairs beyond those of citing pairs with an equal distance in
        years.
    """

    splits: dict[str, list[tuple[Paper, Paper, int]]]
    papers: dict[str, int]
    left_out: dict[str, list[str]]
    other_years: dict[str, int]


def read_papers(name: str, lines: Iterable[bytes], leave_out: LeaveOut = ignore) -> dict[str, Paper]:
    """Reads `papers.jsonl`: a line is {"id": string, "year": string of digits, "text": string, …}.

    Args:
      name: Name of the file, for messages.
      lines: Lines of the file.
      leave_out: Function that is told blank lines.

    Returns:
      Mapping from id to paper.

    Raises:
      UsageError: If a line is not such an object, or an id occurs twice. The message names file and line.
    """
    papers: dict[str, Paper] = {}
    for number, line in tables.lines(lines, name, leave_out):
        try:
            row = json.loads(line)
            if not isinstance(row["text"], str):
                raise TypeError("text is not a string")
            paper = Paper(str(row["id"]), int(row["year"]), row["text"])
            paper.text.encode()  # JSON can contain surrogates, which UTF-8 cannot encode
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{name}, line {number}: expected a JSON object with id, year and text ({error!r})."
            ) from None
        if paper.id in papers:
            raise UsageError(f"{name}, line {number}: the paper {paper.id} is a repetition; ids are unique.")
        papers[paper.id] = paper
    return papers


def read_citations(
    name: str, lines: Iterable[bytes], papers: Mapping[str, Paper], leave_out: LeaveOut = ignore
) -> list[Citation]:
    """Reads `edges.tsv`: a line is citing id, tab, cited id. Blank lines are left out.

    Raises:
      UsageError: If a line has another form, or names a paper that is not in `papers`. The message names file
        and line.
    """
    citations = []
    for number, line in tables.lines(lines, name, leave_out):
        ids = tables.fields(line, f"{name}, line {number}")
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
    """Makes equally many citing and non-citing pairs of papers in every split.

    Near-empty papers are left out. Of papers with nearly the same text, only the first by id is kept: texts
    are the same if they share at least half of the sequences of eight words that occur in either (one
    sequence in eight is compared). The hash of the id assigns each remaining paper to one split: 70, 10 and
    20 percent of them.

    A citing pair is (citing, cited), a citation within a split. Two papers that cite each other form one
    pair. A non-citing pair combines papers of citing pairs. Neither paper cites the other, nor do papers with
    the same texts. No two papers form more than one pair.

    Args:
      papers: Papers by id.
      citations: Citations between these papers.
      limits: Split → number of pairs of each label, the first by hash; None takes all.

    Raises:
      UsageError: If a split has too few citations, or its papers cannot form non-citing pairs.
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
                f"Retrieval needs {max(wanted, 1):,} citations between papers of its {split} split; got "
                f"{len(positive):,} from {len(papers):,} papers. Add papers."
            )
        positive = positive[:wanted]
        negative = _not_citing(split, positive, linked, {id: paper.year for id, paper in papers.items()})
        before, after = (
            Counter(papers[a].year - papers[b].year for a, b in pairs) for pairs in (positive, negative)
        )
        other_years[split] = (after - before).total()
        labeled = [(*pair, 1) for pair in positive] + [(*pair, 0) for pair in negative]
        labeled.sort(key=lambda pair: _rank("order", pair[0], pair[1]))
        splits[split] = [(papers[a], papers[b], label) for a, b, label in labeled]
    left_out = {
        f"papers of fewer than {MIN_CHARACTERS:,} characters": sorted(papers.keys() - same.keys()),
        "papers with the text of another": sorted(same.keys() - split_of.keys()),
    }
    return Pairs(splits, dict(Counter(split_of.values())), left_out, other_years)


def _rank(*words: str) -> bytes:
    """Returns a sort key that depends on the words by a hash alone."""
    return hashlib.sha256("\t".join(("acl pairs", *words)).encode()).digest()


def _unordered(first: str, second: str) -> Citation:
    return (first, second) if first < second else (second, first)


def _same_texts(papers: Mapping[str, Paper]) -> dict[str, str]:
    """Returns id → id of the first paper with the same text, for papers that are not near-empty."""
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
    """Returns about one in eight of a text's sequences of eight words, chosen by their first word."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {" ".join(words[i : i + SEQUENCE]) for i, word in enumerate(words) if _is_anchor(word)}


@functools.cache
def _is_anchor(word: str) -> bool:
    return not zlib.crc32(word.encode()) % ANCHORS


def _not_citing(
    split: str, positive: Sequence[Citation], linked: set[Citation], years: Mapping[str, int]
) -> list[Citation]:
    """Permutes the cited papers among the citing ones; see `make_pairs`."""
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
            continue  # an earlier swap has already fixed it
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
                "form a non-citing pair with. Add papers."
            )
    return list(zip(citing, cited, strict=True))


def _below(uniform: Callable[[], float], bound: int) -> int:
    return int(uniform() * bound)
