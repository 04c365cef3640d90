"""Health measures of an answer: repetition, loops, emptiness, refusals. They need no reference and no control.

256,000 answers of 64 tokens take 10 to 15 s on one core.
"""

from __future__ import annotations

import math
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import Any

from sweep.core.values import Scores
from sweep.engines.base import Completion
from sweep.scoring.registry import Interval, MeasureSpec, Shown
from sweep.scoring.text import CACHE_SIZE

DISTINCT = "Li et al. 2016, arXiv:1510.03055"
LOOP_REPETITIONS = 3
LOOP_SHARE = 0.25
LOOP_TOKENS = 8
LOOP_LONG = 64

# Openings of refusals by English-speaking chat models. They are whole phrases, since "sorry" alone also begins an
# answer. Based on the list of Zou et al. 2023, arXiv:2307.15043.
REFUSALS = (
    "as a language model",
    "as a large language model",
    "as an ai",
    "can't assist with",
    "cannot assist with",
    "i am not able to",
    "i am sorry, but",
    "i am unable to",
    "i apologise, but",
    "i apologize, but",
    "i can not",
    "i can't answer",
    "i can't assist",
    "i can't fulfill",
    "i can't help",
    "i can't provide",
    "i cannot",
    "i must decline",
    "i will not",
    "i won't",
    "i'm not able to",
    "i'm sorry, but",
    "i'm unable to",
    "my apologies, but",
    "not able to assist",
    "unable to assist",
)
REFUSAL_CHARACTERS = 200

# White space that counts as printable.
_LAYOUT = str.maketrans("", "", "\t\n\r\v\f")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def health(text: str, token_ids: Sequence[int]) -> dict[str, float]:
    """Return all measures of this module for one answer; NaN where a measure does not apply.

    Args:
        text: the decoded answer.
        token_ids: its token ids, each below 0x110000.

    Returns:
        Scores by metric name, `health/…`, with the lengths `health/characters` and `health/tokens`.
    """
    packed = _pack(token_ids)
    last = _last_positions(token_ids, 3)
    distinct_3 = len(last) / (len(token_ids) - 2) if last else math.nan
    distinct_shares = [distinct(token_ids, 1), distinct(token_ids, 2), distinct_3]
    # If no n-gram occurs twice, no longer one does. Most texts need no search.
    shorter = next((n for n, share in enumerate(distinct_shares) if not share < 1), None)
    longest = _longest_repeat(packed, last, 3) if shorter is None else float(shorter)
    # In a loop of three or more units, a stretch of two thirds of its length occurs twice.
    may_loop = 3 * longest >= 2 * LOOP_TOKENS
    return {
        "health/distinct_1": distinct_shares[0],
        "health/distinct_2": distinct_shares[1],
        "health/distinct_3": distinct_shares[2],
        "health/longest_repeat": longest,
        "health/loop": _loop(packed) if may_loop else 0.0,
        "health/compression_ratio": compression_ratio(text),
        "health/empty": empty(text),
        "health/non_printable": non_printable(text),
        "health/refusal": refusal(text),
        "health/characters": float(len(text)),
        "health/tokens": float(len(token_ids)),
    }


def distinct(token_ids: Sequence[int], n: int) -> float:
    """Return distinct-n: unique n-grams over all n-grams (Li et al. 2016, arXiv:1510.03055); NaN without n-grams."""
    grams = len(token_ids) - n + 1
    if grams < 1:
        return math.nan
    unique = set(token_ids) if n == 1 else set(zip(*(token_ids[i:] for i in range(n)), strict=False))
    return len(unique) / grams


def longest_repeat(token_ids: Sequence[int]) -> float:
    """Return the length in tokens of the longest n-gram that occurs at least twice; occurrences may overlap."""
    return _longest_repeat(_pack(token_ids), _last_positions(token_ids, 1), 1)


def loop(token_ids: Sequence[int]) -> float:
    """Return 1 if the answer ends in a loop, else 0.

    In a loop, the answer's end repeats one n-gram of any length at least `LOOP_REPETITIONS` times in a row. The
    repetitions, with a partial one before them, must cover at least `LOOP_TOKENS` tokens. They must also cover a share
    `LOOP_SHARE` of the answer or `LOOP_LONG` tokens. The last token is ignored if the loop ends just before it, since
    it may be an end-of-text token.
    """
    return _loop(_pack(token_ids))


def compression_ratio(text: str) -> float:
    """Return the text's size in UTF-8 over its size compressed by zlib; NaN if it is empty.

    Ordinary text is at 1 to 2, repetitive text above. Whisper's threshold is 2.4 (Radford et al. 2022,
    arXiv:2212.04356). Below about 50 bytes, zlib's header dominates and the ratio is less than 1.
    """
    raw = text.encode("utf-8", "surrogatepass")
    # A smaller window gives the same result for short texts, and its memory is allocated four times faster.
    window = 12 if len(raw) <= 2**12 - 262 else zlib.MAX_WBITS  # 262: what zlib reserves of the window
    return len(raw) / len(zlib.compress(raw, wbits=window)) if raw else math.nan


def empty(text: str) -> float:
    """Return 1 if the text is empty or only white space, else 0."""
    return float(not text or text.isspace())


def non_printable(text: str) -> float:
    """Return the share of characters that no text should contain; 0 for an empty text.

    These are control characters other than tabs and line ends, surrogates, private-use characters, and U+FFFD, which
    replaces invalid UTF-8.
    """
    if _REPLACEMENT not in text and (text.isprintable() or text.translate(_LAYOUT).isprintable()):
        return 0.0
    return sum(text.count(character) for character in set(text) if _is_garbage(character)) / len(text)


def _is_garbage(character: str) -> bool:
    if character in "\t\n\r\v\f":
        return False
    return character == _REPLACEMENT or unicodedata.category(character) in ("Cc", "Cs", "Co")


def refusal(text: str) -> float:
    """Return 1 if one of `REFUSALS` occurs in the first `REFUSAL_CHARACTERS` characters, else 0.

    A heuristic for English: models also refuse in other words, and may quote a refusal. Case and the kind of apostrophe
    are ignored.
    """
    start = text[:REFUSAL_CHARACTERS].lower().replace("’", "'")
    return float(any(map(start.__contains__, REFUSALS)))


def _pack(token_ids: Sequence[int]) -> str:
    """Return the ids as a string: substring search runs in C, on whole n-grams at once."""
    return "".join(map(chr, token_ids))


def _last_positions(token_ids: Sequence[int], n: int) -> dict[tuple[int, ...], int]:
    """Return the last position at which each n-gram begins."""
    return dict(zip(zip(*(token_ids[i:] for i in range(n)), strict=False), count(), strict=False))


def _longest_repeat(packed: str, last: dict[tuple[int, ...], int], n: int) -> float:
    """Return the length of the longest repeat; `last` as from `_last_positions`, `n` 1 or the length of a repeat."""
    # A longer repeat begins with a shorter one: search only where an n-gram occurs again later.
    starts = set(range(len(packed) - n + 1)).difference(last.values())
    longest = n if starts else 0
    for start in starts:
        while packed.find(packed[start : start + longest + 1], start + 1) >= 0:
            longest += 1
    return float(longest)


def _loop(packed: str) -> float:
    return float(_ends_in_loop(packed) or _ends_in_loop(packed[:-1]))


def _ends_in_loop(packed: str) -> bool:
    end = len(packed)
    minimum = max(LOOP_TOKENS, min(LOOP_SHARE * end, LOOP_LONG))
    # The unit begins after an earlier occurrence of the last token. The nearest one is tried first.
    earlier = packed.rfind(packed[-1:], 0, max(end - 1, 0)) if end else -1
    while earlier >= 0 and (size := end - 1 - earlier) * LOOP_REPETITIONS <= end:
        if packed.endswith(packed[-size:] * LOOP_REPETITIONS):
            start = end - size * LOOP_REPETITIONS
            while start and packed[start - 1] == packed[start - 1 + size]:
                start -= 1
            if end - start >= minimum:
                return True
        earlier = packed.rfind(packed[-1], 0, earlier)
    return False


# Many answers of a sweep are the same.
_cached = lru_cache(maxsize=CACHE_SIZE)(health)


def _measure(answer: Completion) -> Scores:
    return _cached(answer.text, answer.token_ids)


def _health(name: str, about: str, high: float = 1.0, *, yes_or_no: bool = False, **more: Any) -> MeasureSpec:
    interval: Interval = "wilson" if yes_or_no else "bca"
    return MeasureSpec(f"health/{name}", about, "completion", (0.0, high), interval=interval, compute=_measure, **more)


MEASURES = (
    _health("distinct_1", "different tokens over all tokens", source=DISTINCT),
    _health("distinct_2", "the same for pairs of tokens", source=DISTINCT),
    _health("distinct_3", "the same for triples of tokens", source=DISTINCT),
    _health("longest_repeat", "length of the longest n-gram that occurs twice", math.inf, unit="tokens"),
    _health(
        "loop",
        "the answer ends in a repetition of some length",
        yes_or_no=True,
        direction="lower",
        shown=Shown(report=10, description=50),
    ),
    _health("compression_ratio", "bytes of the text over those that zlib makes of them", math.inf),
    _health("empty", "nothing but white space", yes_or_no=True, direction="lower", shown=Shown(report=20)),
    _health("non_printable", "share of control, surrogate, private-use and replacement characters", direction="lower"),
    _health("refusal", "a heuristic: English phrases at the start, listed in `scoring/health.py`", yes_or_no=True),
    _health("characters", "length", math.inf, unit="characters"),
    _health("tokens", "length", math.inf, unit="tokens"),
)
