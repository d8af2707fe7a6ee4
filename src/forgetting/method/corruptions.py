"""Kinds of noise that can be planted into a response, with character-exact labels.

Input: a response, its prompt, what other records offer and a random generator. Output: the
corrupted response and the character spans that are bad. `CORRUPTIONS` is the registry of kinds.
No corruption knows what noise the corpus really holds. Knows nothing of tokens, models or files.

Labels: a token is bad if one of its characters is in a span. The character after the last one
is the end of the response, so a span that reaches `len(text) + 1` says that the response
ends in the wrong place. Text outside the spans is the original's, except for a space that
separates inserted text from the first word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from forgetting.errors import InputError
from forgetting.method.placeholders import draw_placeholder
from forgetting.registry import Registry

Span = tuple[int, int]
"""Characters [start, end)."""
Turn = tuple[str, str]
"""Role ("system", "user" or "assistant") and content."""

CLEAN = "clean"

# How many responses words and sentences are collected from: enough for any draw to be fresh.
_TEXTS_READ = 5000
# Words that are everywhere say nothing: replacing one is no wrong value.
_FUNCTION_WORDS = 120
_TRIES = 20

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE = re.compile(
    r"[^\s.!?。！？][^.!?。！？\n]*(?:[.!?。！？]+(?!\s)[^.!?。！？\n]*)*[.!?。！？]*"
)
_SENTENCE_END = ".!?。！？:\n"
_MARKS = (
    "### Instruction:",
    "### Response:",
    "### Input:",
    "<|user|>",
    "<|assistant|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "User:",
    "Assistant:",
    "Human:",
    "Q:",
)
_TYPOGRAPHIC = {"'": "’", '"': "”", "-": "–", "`": "‘", "*": "•"}


@dataclass(frozen=True, slots=True)
class Corrupted:
    """A corrupted response."""

    text: str
    spans: tuple[Span, ...]
    """Bad characters, ascending and disjoint; `len(text)` is the end of the response."""


class Corpus:
    """What corruptions may take from other records: responses, sentences and words.

    Args:
        conversations: turns of every record.
        rng: chooses which texts are read where there are more than 5,000.
    """

    def __init__(
        self, conversations: Sequence[Sequence[Turn]], rng: np.random.Generator | None = None
    ) -> None:
        turns = [turn for turns in conversations for turn in turns]
        responses = [content for role, content in turns if role == "assistant"]
        prompts = [content for role, content in turns if role == "user"]
        if rng is not None and len(responses) > _TEXTS_READ:
            kept = np.sort(rng.choice(len(responses), _TEXTS_READ, replace=False))
            responses = [responses[index] for index in kept]
        self.responses = tuple(dict.fromkeys(responses))
        self.prompts = tuple(dict.fromkeys(prompts[:_TEXTS_READ]))
        counts = Counter(
            match.group() for text in responses[:_TEXTS_READ] for match in _WORD.finditer(text)
        )
        lower: Counter[str] = Counter()
        for word, count in counts.items():
            lower[word.lower()] += count
        often = max(2, sum(lower.values()) // 1000)
        self._frequent = {w for w, count in lower.most_common(_FUNCTION_WORDS) if count > often}
        words: dict[str, list[str]] = {}
        for word in counts:
            if self.is_content(word):
                words.setdefault(shape(word), []).append(word)
        self._words = words
        self._weights = {
            key: np.cumsum([counts[word] for word in group]) for key, group in words.items()
        }

    def is_content(self, word: str) -> bool:
        """Whether a word or number carries content: not a letter or two, nor a very common word."""
        if word[0].isdigit():
            return True
        return len(word) > 2 and word.lower() not in self._frequent

    def other_response(self, rng: np.random.Generator, than: str) -> str | None:
        """A response that differs from this one; None if there is none."""
        return _draw_other(rng, self.responses, than)

    def other_word(self, rng: np.random.Generator, than: str) -> str | None:
        """A word or number of the same shape, by its frequency or, half the time, regardless of
        it; None if there is no other."""
        key = shape(than)
        words = self._words.get(key, [])
        if not words:
            return None
        for _ in range(_TRIES):
            if rng.random() < 0.5:
                index = int(rng.integers(len(words)))
            else:
                weights = self._weights[key]
                index = int(np.searchsorted(weights, rng.integers(weights[-1]), side="right"))
            if words[index].lower() != than.lower():
                return words[index]
        return None

    def other_sentences(self, rng: np.random.Generator, than: str) -> str | None:
        """One or two sentences of another response or, one time in four, of a prompt."""
        texts = self.prompts if rng.random() < 0.25 and self.prompts else self.responses
        for _ in range(_TRIES):
            text = _draw_other(rng, texts, than)
            if text is None:
                return None
            found = [m for m in _SENTENCE.finditer(text) if len(m.group().split()) > 2]
            if found:
                first = int(rng.integers(len(found)))
                last = min(first + int(rng.integers(2)), len(found) - 1)
                sentences = text[found[first].start() : found[last].end()].strip()
                if sentences and sentences not in than:
                    return sentences
        return None


def _draw_other(rng: np.random.Generator, texts: Sequence[str], than: str) -> str | None:
    for _ in range(_TRIES if texts else 0):
        text = texts[int(rng.integers(len(texts)))]
        if text.strip() and text != than:
            return text
    return None


def shape(word: str) -> str:
    """What a replacement has to share with a word.

    A number: its digits as `0`, with its separators. A word: whether it is lower case, capitalized
    or upper case; the length of short ones; the last two letters of lower-case ones, which often
    tell the part of speech.
    """
    if word[0].isdigit():
        return re.sub(r"\d", "0", word)
    if word.islower():
        return f"a{min(len(word), 6)}{word[-2:]}"
    if word.isupper():
        return f"A{min(len(word), 5)}"
    return f"Aa{min(len(word), 6) // 2}"


CorruptionFunction = Callable[[str, str, Corpus, np.random.Generator], Corrupted | None]
"""From a response, its prompt, the corpus and a generator; None where it does not apply."""


@dataclass(frozen=True)
class Corruption:
    """A kind of noise that can be planted."""

    name: str
    words: str
    """What is wrong with such a token, for people: "answer to another question"."""
    function: CorruptionFunction = field(repr=False)
    weight: float = 1.0
    """Copies that get it, relative to other kinds."""


def _replace(text: str, edits: Sequence[tuple[int, int, str]]) -> Corrupted:
    """Replace ranges of a text; the replacements are the spans. Edits ascend and are disjoint."""
    parts: list[str] = []
    spans = []
    at = length = 0
    for start, end, new in edits:
        parts += [text[at:start], new]
        length += start - at
        spans.append((length, length + len(new)))
        length += len(new)
        at = end
    return Corrupted("".join(parts) + text[at:], tuple(spans))


def _some(rng: np.random.Generator, found: Sequence[re.Match[str]], count: int) -> list[re.Match]:
    chosen = rng.choice(len(found), min(count, len(found)), replace=False)
    return [found[index] for index in np.sort(chosen)]


def swap(response: str, prompt: str, corpus: Corpus, rng: np.random.Generator) -> Corrupted | None:
    """Another record's response; all of it is bad, its end included."""
    other = corpus.other_response(rng, response)
    return None if other is None else Corrupted(other, ((0, len(other) + 1),))


def substitute(
    response: str, prompt: str, corpus: Corpus, rng: np.random.Generator
) -> Corrupted | None:
    """One to four words or numbers become others of the same shape; numbers and names first."""
    found = [m for m in _WORD.finditer(response) if corpus.is_content(m.group())]
    if not found:
        return None
    marked = [m for m in found if not m.group().islower()]
    pool = marked if marked and rng.random() < 0.6 else found
    edits = []
    for match in _some(rng, pool, int(rng.integers(1, 5))):
        new = corpus.other_word(rng, match.group())
        if new is not None:
            edits.append((match.start(), match.end(), new))
    return _replace(response, edits) if edits else None


def insert(
    response: str, prompt: str, corpus: Corpus, rng: np.random.Generator
) -> Corrupted | None:
    """One or two sentences from elsewhere, between sentences; or some of their words, anywhere."""
    foreign = corpus.other_sentences(rng, response)
    if foreign is None:
        return None
    if rng.random() < 0.7:
        places = [m.end() for m in _SENTENCE.finditer(response)]
        places = [0, len(response), *(p for p in places if response[p : p + 1].isspace())]
    else:
        words = list(_WORD.finditer(foreign))
        size = int(rng.integers(3, 13))
        first = int(rng.integers(max(1, len(words) - size + 1)))
        if words:
            last = words[min(first + size, len(words)) - 1]
            foreign = foreign[words[first].start() : last.end()]
        places = [m.start() for m in re.finditer(r"\s+", response)] or [len(response)]
    return _put(response, foreign, places[int(rng.integers(len(places)))])


def _put(response: str, foreign: str, place: int) -> Corrupted:
    """Insert text with the white space that it needs on its left, or, at the start, its right."""
    if place == 0:
        return Corrupted(f"{foreign} {response}", ((0, len(foreign)),))
    gap = "\n" if response[place : place + 1] == "\n" else " "
    return _replace(response, [(place, place, gap + foreign)])


def garble(
    response: str, prompt: str, corpus: Corpus, rng: np.random.Generator
) -> Corrupted | None:
    """A typing error in up to a quarter of the words of four letters or more."""
    found = [m for m in _WORD.finditer(response) if len(m.group()) > 3]
    if not found:
        return None
    count = max(1, int(len(found) * rng.uniform(0, 0.25)))
    edits = []
    for match in _some(rng, found, count):
        word = match.group()
        for _ in range(int(rng.integers(1, 4))):
            word = _mistype(word, rng)
        if word != match.group():
            edits.append((match.start(), match.end(), word))
    return _replace(response, edits) if edits else None


def _mistype(word: str, rng: np.random.Generator) -> str:
    """One typing error: a letter doubled, lost, added, or exchanged with the next one."""
    at = int(rng.integers(len(word)))
    way = int(rng.integers(4))
    if way == 0:
        return word[:at] + word[at] + word[at:]
    if way == 1 and len(word) > 2:
        return word[:at] + word[at + 1 :]
    if way == 2:
        added = "0123456789" if word[0].isdigit() else "abcdefghijklmnopqrstuvwxyz"
        return word[:at] + added[int(rng.integers(len(added)))] + word[at:]
    at = min(at, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :] if len(word) > 1 else word


def drop(response: str, prompt: str, corpus: Corpus, rng: np.random.Generator) -> Corrupted | None:
    """One to eight words are lost. What follows the gap is bad: one token, for the character after
    the gap (and the white space before it) is the span."""
    words = list(_WORD.finditer(response))
    if len(words) < 3:
        return None
    size = min(int(rng.integers(1, 9)), len(words) - 2)
    first = int(rng.integers(1, len(words) - size))
    start, end = words[first - 1].end(), words[first + size - 1].end()
    if response[start:end] == response[end : 2 * end - start]:
        return None
    text = response[:start] + response[end:]
    visible = start + len(text[start:]) - len(text[start:].lstrip())
    return Corrupted(text, ((start, visible + 1),))


def repeat(
    response: str, prompt: str, corpus: Corpus, rng: np.random.Generator
) -> Corrupted | None:
    """Some words or a sentence stand two to four times in a row; all but the first are bad."""
    words = list(_WORD.finditer(response))
    sentences = list(_SENTENCE.finditer(response))
    if not words:
        return None
    if sentences and rng.random() < 0.5:
        match = sentences[int(rng.integers(len(sentences)))]
        start, end = match.start(), match.start() + len(match.group().rstrip())
    else:
        first = int(rng.integers(len(words)))
        last = min(first + int(rng.integers(5)), len(words) - 1)
        start, end = words[first].start(), words[last].end()
    times = int(rng.choice([1, 1, 1, 2, 3]))
    return _replace(response, [(end, end, f" {response[start:end]}" * times)])


def truncate(
    response: str, prompt: str, corpus: Corpus, rng: np.random.Generator
) -> Corrupted | None:
    """The response ends within a sentence. Only its end is bad."""
    places = [
        m.end()
        for m in _WORD.finditer(response)
        if response[m.end() :].strip(" \n\t'\"*)]}`”’" + _SENTENCE_END)
        and response[m.end()] not in _SENTENCE_END
    ]
    if not places:
        return None
    end = places[int(rng.integers(len(places)))]
    return Corrupted(response[:end], ((end, end + 1),))


def leak(response: str, prompt: str, corpus: Corpus, rng: np.random.Generator) -> Corrupted | None:
    """A mark of a chat template, the prompt, or both, before, within or after the response."""
    mark = _MARKS[int(rng.integers(len(_MARKS)))]
    sentences = [m.group().strip() for m in _SENTENCE.finditer(prompt)]
    way = int(rng.integers(3)) if sentences else 0
    if way == 0:
        foreign = mark
    else:
        text = sentences[int(rng.integers(len(sentences)))]
        foreign = text if way == 1 else f"{mark}\n{text}"
    lines = [m.start() for m in re.finditer(r"\n", response)]
    places = [0, len(response), *lines]
    return _put(response, foreign, places[int(rng.integers(len(places)))])


def mojibake(
    response: str, prompt: str, corpus: Corpus, rng: np.random.Generator
) -> Corrupted | None:
    """Characters whose UTF-8 was read as Windows-1252: non-ASCII ones, and quotation marks, hyphens
    and the like as if they had been typographic ones."""
    found = [m for m in re.finditer(r"[^\x00-\x7f]+|['\"`*-]", response) if not m.group().isspace()]
    if not found:
        return None
    edits = []
    for match in _some(rng, found, max(1, int(len(found) * rng.uniform(0.3, 1)))):
        old = match.group()
        typographic = _TYPOGRAPHIC.get(old, old)
        new = typographic.encode().decode("cp1252", errors="replace")
        edits.append((match.start(), match.end(), new))
    return _replace(response, edits)


def placeholder(
    response: str, prompt: str, corpus: Corpus, rng: np.random.Generator
) -> Corrupted | None:
    """A mark of missing text in place of the response or its ending, bad up to its end."""
    places = [m.start() for m in _WORD.finditer(response)][1:]
    place = places[int(rng.integers(len(places)))] if places and rng.random() < 0.5 else 0
    text = response[:place] + draw_placeholder(rng)
    return Corrupted(text, ((place, len(text) + 1),)) if text != response else None


CORRUPTIONS: Registry[Corruption] = Registry(
    "corruption",
    "forgetting.corruptions",
    [
        Corruption("swap", "answer to another question", swap, weight=2.0),
        Corruption("substitute", "wrong value", substitute, weight=2.0),
        Corruption("insert", "foreign text", insert, weight=2.0),
        Corruption("garble", "garbled word", garble),
        Corruption("drop", "something missing before", drop),
        Corruption("repeat", "repetition", repeat),
        Corruption("truncate", "ends too early", truncate),
        Corruption("leak", "prompt or template text", leak),
        Corruption("mojibake", "wrong encoding", mojibake),
        Corruption("placeholder", "placeholder instead of text", placeholder, weight=0.5),
    ],
)
"""The kinds of noise that are planted, by name."""


def register_corruption(
    name: str, function: CorruptionFunction, *, words: str = "", weight: float = 1.0
) -> None:
    """Add a kind of noise, which recipes then accept in `detector.corruptions`.

    Args:
        name: lowercase letters, digits and underscores.
        function: takes a response, its prompt, a `Corpus` of other records and a
            `numpy.random.Generator`. Returns `Corrupted`, the text with its bad characters, or None
            if the kind does not apply to the response.
        words: what is wrong with such a token, for people; default: the name.
        weight: copies that get this kind, relative to other kinds.

    Raises:
        ValueError: the name is malformed or taken, or `weight` is not above 0.

    Example:
        >>> def shout(response, prompt, corpus, rng):
        ...     return Corrupted(response.upper(), ((0, len(response)),))
        >>> register_corruption("shout", shout, words="upper case")
    """
    if name == CLEAN:
        raise ValueError(f"{CLEAN!r} is the name of tokens without noise. Choose another one")
    if not 0 < weight < np.inf:
        raise ValueError(f"weight must be a number above 0, got {weight}")
    CORRUPTIONS.register(Corruption(name, words or name, function, weight))


def checked(name: str, found: Corrupted | None) -> Corrupted | None:
    """Refuse what a registered corruption must not return."""
    if found is None:
        return None
    if not isinstance(found, Corrupted) or not isinstance(found.text, str):
        raise InputError(
            f"the corruption {name} returned {type(found).__name__}. It must return "
            "forgetting.Corrupted or None"
        )
    ends = [0, *(place for span in found.spans for place in span), len(found.text) + 1]
    if any(start >= end for start, end in found.spans) or ends != sorted(ends):
        raise InputError(
            f"the corruption {name} returned the spans {list(found.spans)} for a text of "
            f"{len(found.text)} characters. Spans must ascend, must not overlap or be empty, and "
            f"must end at {len(found.text) + 1} at most"
        )
    return found
