"""Where the characters of messages are in rendered text.

In: texts before and after a template. Out: positions. Templates may strip and add white space, and
nothing else of a message may change. Knows nothing about templates or tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

from forgetting.data.encoding import Range
from forgetting.formats import Unusable

# Characters without a meaning, to mark places in texts that do not hold them.
_FIRST_PRIVATE, _LAST_PRIVATE = 0xE000, 0xF8FF


def unused_characters(texts: Sequence[str], number: int) -> list[str]:
    """Private-use characters that no text holds."""
    used = set().union(*texts)
    private = map(chr, range(_FIRST_PRIVATE, _LAST_PRIVATE + 1))
    free = list(islice((character for character in private if character not in used), number))
    if len(free) < number:
        raise Unusable("the text holds every private-use character of Unicode")
    return free


def between(text: str, mark: str) -> str:
    """A text with a mark at both ends, inside the white space that templates may strip."""
    stripped = text.strip()
    before, _, after = text.partition(stripped) if stripped else (text, "", "")
    return f"{before}{mark}{stripped}{mark}{after}"


def literals_of(text: str, marks: str, places: Sequence[int]) -> Iterator[Range]:
    """The marked ranges of a text, as positions in the text without its marks."""
    for index, (a, b) in enumerate(pairwise(places)):
        if (text[a], text[b]) == (marks[0], marks[1]):
            # Before the range are `index` marks and its own.
            yield a - index, b - index - 1


def unmarked(places: Sequence[int], position: int) -> int:
    """A position in a text without the marks at `places`."""
    return position - bisect_left(places, position)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def holds(text: str, end: int, content: str) -> bool:
    """Whether a text holds a content before a position, apart from white space."""
    return text.find(content.strip(), 0, end) >= 0 or _squeezed(content) in _squeezed(text[:end])


def ends_with(text: str, end: int, content: str) -> bool:
    """Whether a text ends with a content at a position, apart from white space."""
    if text.endswith((content, content.strip()), 0, end):
        return True
    return _squeezed(text[:end]).endswith(_squeezed(content))


def noise_ranges(
    spans: Sequence[Range], content: str, text: str, body_end: int, mark: Range
) -> tuple[Range, ...]:
    """Where spans of a response are in the rendered text.

    The character after the last one of the response is its end mark.

    Args:
        spans: ranges [start, end) of `content`.
        content: the response.
        body_end: where the response ends in `text`.
        mark: where its end mark is.
    """
    found: list[Range] = []
    places = _places(content, text, body_end) if spans else []
    kept = [index for index, place in enumerate(places) if place is not None]
    known = [place for place in places if place is not None]
    for first, last in spans:
        low, high = bisect_left(kept, first), bisect_left(kept, last)
        if low < high:
            found.append((known[low], known[high - 1] + 1))
        if last > len(content):
            found.append(mark)
    return tuple(found)


def content_ranges(
    offsets: Sequence[Range], content: str, text: str, start: int, body_end: int, mark_start: int
) -> list[Range]:
    """Which characters of a response some tokens of its rendering cover.

    A token of the end mark covers the character after the last one, as in `noise_ranges`. One of
    the template's own text has an empty range, where the next character of the response is.

    Args:
        offsets: characters of each token in `text`.
        content: the response.
        start: where its turn begins in `text`.
        body_end: where the turn's body ends. A call may follow the response in it.
        mark_start: where the end mark begins.
    """
    first = text.rfind(content, start, body_end) if content else -1
    if text.endswith(content, start, body_end):
        first = body_end - len(content)
    if first >= 0:
        places: list[int | None] = list(range(first, first + len(content)))
    else:
        places = _places(content, text, body_end)
    known = [(place, index) for index, place in enumerate(places) if place is not None]
    positions = [place for place, _ in known]
    ranges = []
    for begin, end in offsets:
        low, high = bisect_left(positions, begin), bisect_left(positions, end)
        first = known[low][1] if low < len(known) else len(content)
        last = known[high - 1][1] + 1 if low < high else first
        ranges.append((first, len(content) + 1 if end > mark_start else last))
    return ranges


def _places(content: str, text: str, body_end: int) -> list[int | None]:
    """The position in a text of each character of a content that ends at `body_end`; None for
    white space that the template has dropped."""
    for kept in (content, content.strip()):
        if text.endswith(kept, 0, body_end):
            before = content.find(kept)
            first = body_end - len(kept)
            after = len(content) - before - len(kept)
            return [*[None] * before, *range(first, body_end), *[None] * after]
    # The template has changed white space: all else is there, in order.
    visible = [position for position in range(body_end) if not text[position].isspace()]
    number = sum(not character.isspace() for character in content)
    positions = iter(visible[len(visible) - number :])
    return [None if character.isspace() else next(positions) for character in content]
