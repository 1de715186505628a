"""Enumerations whose members are words with a meaning: each carries the sentence that says it."""

import enum
from typing import Self


class SentenceEnum(enum.StrEnum):
    """Strings that each carry a `sentence`; a member is declared as `NAME = "word", "What it means."`."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> Self:
        """Make a string member that carries its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member
