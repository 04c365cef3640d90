"""Word-level diff of an answer's text against the control's."""

from __future__ import annotations

import re

from rapidfuzz.distance import Levenshtein

# A word or sign with the space before it, so that "blue" at the end equals "blue" before "sky". Scripts that are
# written without spaces are split into characters: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_PIECE = re.compile(rf"\s*(?:[^\W{_UNSPACED}]+|\S)|\s+\Z")

SAME, AGREES, DIFFERS, MISSING = "=~+-"


def pieces(text: str) -> list[str]:
    """Split a text into words and signs; joined, they give the text."""
    return _PIECE.findall(text)


def spans(answer: str, control: str) -> tuple[list[str], float]:
    """Compare an answer with the control's, word by word.

    Returns:
        The answer in spans, and the share of words that differ: 0 for equal answers, 1 if nothing is in common. Each
        span begins with a sign: "=" the same up to the first divergence, "+" not in the control, "~" the same again,
        "-" (no text) words of the control are missing. Equal answers are one span.
    """
    if answer == control:
        return ([SAME + answer] if answer else []), 0.0
    words, others = pieces(answer), pieces(control)
    diff: list[str] = []
    differing = 0
    for code in Levenshtein.opcodes(others, words):
        text = "".join(words[code.dest_start : code.dest_end])
        if code.tag == "equal":
            diff.append((AGREES if diff else SAME) + text)
            continue
        differing += max(code.src_end - code.src_start, code.dest_end - code.dest_start)
        if not diff or diff[-1][0] != DIFFERS:
            diff.append(DIFFERS)
        diff[-1] += text
    return [MISSING if span == DIFFERS else span for span in diff], differing / max(len(words), len(others))
