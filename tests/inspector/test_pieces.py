"""That no character is broken or lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forgetting.inspector.pieces import piece_spans


def decode_bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text())
def test_pieces_of_a_text_are_its_characters(text: str) -> None:
    spans = piece_spans(list(text.encode()), decode_bytes)
    # U+FFFD itself looks like a broken character, and is held together with its neighbour.
    if "\ufffd" not in text:
        assert [piece for _, _, piece in spans] == list(text)
    assert "".join(piece for _, _, piece in spans) == text


@given(st.binary())
def test_pieces_join_to_the_whole_whatever_the_bytes(data: bytes) -> None:
    spans = piece_spans(list(data), decode_bytes)
    assert "".join(piece for _, _, piece in spans) == decode_bytes(list(data))
    assert [start for start, _, _ in spans] == [0, *(stop for _, stop, _ in spans)][: len(spans)]
    assert sum(stop - start for start, stop, _ in spans) == len(data)


def test_leading_space_survives_a_decoder_that_drops_it_at_the_start() -> None:
    words = ["a", " b", " c"]
    spans = piece_spans([0, 1, 2, 1], lambda ids: "".join(words[i] for i in ids).lstrip(" "))
    assert [piece for _, _, piece in spans] == ["a", " b", " c", " b"]
