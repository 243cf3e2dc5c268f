"""Learning merges: the loop that byte-level BPE and WordPiece training share, and applying them.

The loop starts from words cut into single symbols and joins, again and again, the pair of neighbours that occurs most
often. `learn_merges_naive` recounts all pairs in each round, as in Sennrich et al. 2016, algorithm 1
(arXiv:1508.07909). `learn_merges` counts once and then changes only the counts that a merge touches.
Both break ties as the `tokenizers` library does: among pairs of one count the pair of smallest ids goes first.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import inf

Pair = tuple[int, int]
Ranks = Mapping[Pair, tuple[int, int]]
GONE = -1  # the place of a symbol that was merged into its left neighbour


def count_pairs(words: Sequence[Sequence[int]], counts: Sequence[int]) -> Counter[Pair]:
    """How often each two symbols are neighbours, over all words.

    Args:
        words: each different word once, as the ids of its symbols.
        counts: how often each word occurs.
    """
    pairs: Counter[Pair] = Counter()
    for word, count in zip(words, counts, strict=True):
        for pair in pairwise(word):
            pairs[pair] += count
    return pairs


def most_frequent(pairs: Mapping[Pair, int]) -> Pair | None:
    """The pair of the largest count, of equals the one of the smallest ids; None where there is none."""
    return min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)


def merge_pair(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    """The word with each occurrence of `pair`, from left to right, replaced by the symbol `new`."""
    merged, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append(new)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def joined(tokens: list[str], ids: dict[str, int], pair: Pair, prefix: str = "") -> int:
    """The id of the two tokens of `pair` joined, `prefix` dropped from the second; a new token goes to the end."""
    token = tokens[pair[0]] + tokens[pair[1]].removeprefix(prefix)
    if token not in ids:
        ids[token] = len(tokens)
        tokens.append(token)
    return ids[token]


def learn_merges_naive(
    words: list[list[int]],
    counts: list[int],
    tokens: list[str],
    vocab_size: int,
    min_frequency: int = 0,
    prefix: str = "",
) -> list[Pair]:
    """Merges in the order learned, all pairs counted anew in each round: clear, slow, and the oracle of the tests.

    Args:
        words: each different word once, as the ids of its symbols.
        counts: how often each word occurs.
        tokens: the text of each id; grows in place.
        vocab_size: stop when `tokens` has this many entries.
        min_frequency: stop when no pair occurs this often.
        prefix: marks a token that continues a word ("##" for WordPiece).
    """
    words, ids, merges = list(words), {token: i for i, token in enumerate(tokens)}, []
    while len(tokens) < vocab_size:
        pairs = count_pairs(words, counts)
        best = most_frequent(pairs)
        if best is None or pairs[best] < min_frequency:
            break
        new = joined(tokens, ids, best, prefix)
        words = [merge_pair(word, best, new) for word in words]
        merges.append(best)
    return merges


def learn_merges(
    words: list[list[int]],
    counts: list[int],
    tokens: list[str],
    vocab_size: int,
    min_frequency: int = 0,
    prefix: str = "",
) -> list[Pair]:
    """The merges of `learn_merges_naive`, with counts kept up to date and the most frequent pair taken from a heap.

    An entry of the heap is a pair with the words it occurs in. Its count may be out of date: then it goes back with
    the right one. `words` and `tokens` change in place. Arguments as for `learn_merges_naive`.
    """
    ids, merges = {token: i for i, token in enumerate(tokens)}, []
    pairs: dict[Pair, int] = defaultdict(int)
    where: dict[Pair, set[int]] = defaultdict(set)
    for number, (word, count) in enumerate(zip(words, counts, strict=True)):
        for pair in pairwise(word):
            pairs[pair] += count
            where[pair].add(number)
    serial = 0  # two entries of one pair and count are compared by it, and never by their sets
    heap: list[tuple[int, Pair, int, set[int]]] = []
    for pair, places in where.items():
        heap.append((-pairs[pair], pair, serial := serial + 1, places))
    heapq.heapify(heap)
    while len(tokens) < vocab_size and heap:
        count, pair, _, places = heapq.heappop(heap)
        if -count != pairs[pair]:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair, serial := serial + 1, places))
            continue
        if -count < min_frequency:
            break
        new = joined(tokens, ids, pair, prefix)
        merges.append(pair)
        where = defaultdict(set)
        for number in places:
            words[number], changes = _merge_counting(words[number], pair, new)
            for changed, change in changes:
                pairs[changed] += change * counts[number]
                if change > 0:
                    where[changed].add(number)
        for changed, places in where.items():
            if pairs[changed] > 0:
                heapq.heappush(heap, (-pairs[changed], changed, serial := serial + 1, places))
    return merges


def _merge_counting(word: list[int], pair: Pair, new: int) -> tuple[list[int], list[tuple[Pair, int]]]:
    """`merge_pair`, and which pairs it made (+1) or took away (-1), the merged pair itself left out."""
    first, second = pair
    merged: list[int] = []
    changes: list[tuple[Pair, int]] = []
    i, length = 0, len(word)
    while i < length:
        if word[i] == first and i + 1 < length and word[i + 1] == second:
            if merged:
                changes.append(((merged[-1], first), -1))
                changes.append(((merged[-1], new), 1))
            merged.append(new)
            i += 2
            if i < length:
                changes.append(((second, word[i]), -1))
                changes.append(((new, word[i]), 1))
        else:
            merged.append(word[i])
            i += 1
    return merged, changes


def merge_by_rank(word: Sequence[int], ranks: Ranks) -> list[int]:
    """Apply learned merges to a word: the pair learned first, of equals the leftmost, until no pair is left.

    Args:
        word: ids of single symbols.
        ranks: for each pair its place in the list of merges, and the id of the two joined.
    """
    word = list(word)
    while len(word) > 1:
        rank, i = min((ranks.get(pair, (inf,))[0], i) for i, pair in enumerate(pairwise(word)))
        if rank == inf:
            break
        word[i : i + 2] = [ranks[word[i], word[i + 1]][1]]
    return word


def merge_by_rank_heap(word: Sequence[int], ranks: Ranks) -> list[int]:
    """The same as `merge_by_rank` in n log n steps: for words of thousands of symbols, such as a long row of spaces."""
    symbols = list(word)
    before = list(range(-1, len(word) - 1))
    after = list(range(1, len(word) + 1))
    heap = [(ranks[pair][0], i, pair) for i, pair in enumerate(pairwise(word)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        _, i, pair = heapq.heappop(heap)
        j = after[i]
        if j >= len(word) or (symbols[i], symbols[j]) != pair:
            continue  # one of the two was merged with another neighbour meanwhile
        symbols[i], symbols[j] = ranks[pair][1], GONE
        after[i] = after[j]
        if after[i] < len(word):
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < len(word):
                new_pair = (symbols[left], symbols[right])
                if new_pair in ranks:
                    heapq.heappush(heap, (ranks[new_pair][0], left, new_pair))
    return [symbol for symbol in symbols if symbol != GONE]
