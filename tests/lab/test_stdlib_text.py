import string

import pytest
import torch

from learnmech.lab.stdlib_text import (
    ALPHABET,
    UNKNOWN,
    VOCABULARY,
    CorpusError,
    RandomWindows,
    decode,
    encode,
    standard_library,
)


def test_the_text_is_source_code_and_the_same_at_every_call():
    text = standard_library(20_000)
    assert len(text) == 20_000
    assert text == standard_library(20_000)
    assert "import " in text
    assert "def " in text


def test_a_longer_text_begins_with_the_shorter_one():
    assert standard_library(30_000)[:10_000] == standard_library(10_000)


def test_files_are_read_in_alphabetical_order_and_undecodable_bytes_do_not_stop_it(tmp_path):
    (tmp_path / "b.py").write_bytes(b"second \xff")
    (tmp_path / "a.py").write_text("first ")
    (tmp_path / "c.txt").write_text("not python")
    assert standard_library(folder=tmp_path) == "first second \N{REPLACEMENT CHARACTER}"


def test_an_interpreter_without_source_is_a_sentence(tmp_path):
    with pytest.raises(CorpusError, match="without the source of its standard library"):
        standard_library(folder=tmp_path)


def test_the_alphabet_covers_printable_ascii_and_codes_round_trip():
    assert set(string.ascii_letters + string.digits + string.punctuation + " \n\t") == set(ALPHABET)
    assert len(set(ALPHABET)) == len(ALPHABET) == VOCABULARY - 1
    assert decode(encode(ALPHABET)) == ALPHABET
    assert encode("é").tolist() == [UNKNOWN]


def test_windows_are_pieces_of_the_text_and_targets_the_characters_that_follow():
    text = "abcdefghij"
    inputs, following = RandomWindows(encode(text), context=4, batch=50, steps=1)[0]
    assert inputs.shape == following.shape == (50, 4)
    for window, after in zip(inputs, following, strict=True):
        assert decode(window) in text
        assert decode(window)[1:] + decode(after)[-1] == decode(after)
        assert decode(window) + decode(after)[-1] in text


def test_every_place_is_drawn_equally_often():
    """Chi-squared with 5 degrees of freedom: 30 is far beyond its 99.99 % quantile (25.7)."""
    windows = RandomWindows(torch.arange(8), context=2, batch=200, steps=30)
    counts = torch.bincount(torch.cat([windows[i][0][:, 0] for i in range(30)]), minlength=6)
    assert len(counts) == 6
    expected = 200 * 30 / 6
    assert float(((counts - expected) ** 2 / expected).sum()) < 30


def test_batches_depend_on_seed_and_index_alone():
    codes = encode(standard_library(5_000))
    one = RandomWindows(codes, context=8, batch=4, steps=10, seed=1)
    assert torch.equal(one[3][0], RandomWindows(codes, context=8, batch=4, steps=10, seed=1)[3][0])
    assert not torch.equal(one[3][0], one[4][0])
    assert not torch.equal(one[3][0], RandomWindows(codes, context=8, batch=4, steps=10, seed=2)[3][0])
    assert len(one) == 10
    with pytest.raises(IndexError):
        one[10]


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="no window of 8"):
        RandomWindows(encode("12345678"), context=8, batch=1, steps=1)
