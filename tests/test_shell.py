"""Quoted overrides: the shell and Hydra read the text that was meant."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ddpm_cli.shell import override, quoted

LETTERS = "ab\\${}\"' ,=~;é1.()[]:#\n%@+-_/eE"


def read(typed: str) -> object:
    """Return what a command gets for the line `typed`: from the shell by shlex, then Hydra, then OmegaConf."""
    (word,) = shlex.split(typed)
    return OmegaConf.create({"x": OverridesParser.create().parse_override(word).value()}).x


@given(st.text(st.sampled_from(LETTERS), max_size=9))
@example("${a}")
@example("\\${a}\\")
@example('a\\"b')
@example("1e3")
@example("1_000")
@example("-inf")
@example("True")
@example("null")
@example(" a ")
@example("")
@settings(max_examples=1000, deadline=None, derandomize=True)
def test_a_text_is_read_as_it_was_meant(text: str) -> None:
    assert read(override("x", text)) == text


@pytest.mark.parametrize("text", ["outputs/train/digits/2026-01-01_10-00-00_123456", "my runs/a", "a@b:c%d+e"])
def test_plain_texts_are_not_quoted_for_hydra(text: str) -> None:
    assert quoted(text) == text
