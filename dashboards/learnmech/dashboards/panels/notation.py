r"""A small reader of LaTeX: the formulas of laws and observables, for renderers that know no LaTeX.

`parse` turns the subset that the vocabulary uses into nodes; `text` writes them in Unicode (Grafana's descriptions)
and `data` as JSON (the page, which draws fractions and roots). An unknown command raises, so that a formula that a
dashboard would show wrong fails a test instead.

>>> text(parse(r"\lambda_{\max}(H) \to \frac{2(1+\mu)}{\eta}"))
'λ_max(H) → 2(1+μ)/η'
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class NotationError(ValueError):
    """A formula that this reader does not understand."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A letter in italics."""

    letter: str


@dataclass(frozen=True, slots=True)
class Script:
    """A subscript (`kind` is `sub`) or superscript (`sup`)."""

    kind: str
    body: "Nodes"


@dataclass(frozen=True, slots=True)
class Fraction:
    """A fraction."""

    over: "Nodes"
    under: "Nodes"


@dataclass(frozen=True, slots=True)
class Root:
    """A square root."""

    body: "Nodes"


Node = str | Variable | Script | Fraction | Root
Nodes = tuple[Node, ...]

_SYMBOLS = {
    "lambda": "λ", "eta": "η", "mu": "μ", "tau": "τ", "beta": "β", "varepsilon": "ε", "epsilon": "ε", "omega": "ω",
    "Sigma": "Σ", "rho": "ρ", "delta": "δ", "Delta": "Δ", "sigma": "σ", "theta": "θ", "alpha": "α", "kappa": "κ",
    "to": " → ", "angle": "∠", "top": "ᵀ", "lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|", "approx": " ≈ ",
    "langle": "⟨", "rangle": "⟩", "max": "max", "min": "min", "le": " ≤ ", "ge": " ≥ ", "cdot": "·", "times": "×",
    "qquad": "\u2003\u2003", "quad": "\u2003", "in": " ∈ ", "propto": " ∝ ", "partial": "∂", "nabla": "∇", "sqrt": "√",
}  # fmt: skip
_CHARACTERS = {",": " ", " ": " ", ";": " ", "!": "", "|": "‖", "{": "{", "}": "}", "%": "%"}
_BOLD = {"mathbb": {"E": "𝔼", "R": "ℝ"}}
_ATOM = re.compile(r"\w(_\w+)?²?|\|\w\|²?|\([^()]*\)")
_UPRIGHT = frozenset({"operatorname", "mathrm", "text"})


def parse(source: str) -> Nodes:
    """Read a formula.

    Raises:
        NotationError: A command that is not known, or braces that do not match.
    """
    tokens = list(_tokens(source))
    nodes, rest = _sequence(tokens, 0, closing=False)
    if rest != len(tokens):
        raise NotationError(f"an unmatched }} in {source!r}")
    return nodes


def text(nodes: Nodes) -> str:
    """Write nodes in Unicode, on one line."""
    return " ".join("".join(_text(node) for node in nodes).split())


def data(nodes: Nodes) -> list[Any]:
    """Write nodes as JSON: strings, and objects with `var`, `sub`, `sup`, `over` and `under`, or `root`."""
    written: list[Any] = []
    for item in (_data(node) for node in nodes):
        if isinstance(item, str) and written and isinstance(written[-1], str):
            written[-1] += item
        elif item != "":
            written.append(item)
    return written


def _tokens(source: str) -> Iterator[str]:
    at = 0
    while at < len(source):
        if source[at] != "\\":
            yield source[at]
            at += 1
            continue
        end = at + 1
        while end < len(source) and source[end].isalpha():
            end += 1
        end = max(end, at + 2)
        yield source[at:end]
        at = end


def _sequence(tokens: list[str], at: int, *, closing: bool) -> tuple[Nodes, int]:
    nodes: list[Node] = []
    while at < len(tokens):
        if tokens[at] == "}":
            if closing:
                return tuple(nodes), at + 1
            break
        node, at = _node(tokens, at)
        nodes.extend(node)
    if closing:
        raise NotationError(f"an unmatched {{ in {''.join(tokens)!r}")
    return tuple(nodes), at


def _node(tokens: list[str], at: int) -> tuple[Nodes, int]:
    token = tokens[at]
    if token == "{":
        return _sequence(tokens, at + 1, closing=True)
    if token in "_^":
        body, at = _argument(tokens, at + 1)
        return (Script("sub" if token == "_" else "sup", body),), at
    if not token.startswith("\\"):
        spaced = {"=": " = ", "-": "−", "~": " ", " ": "", "'": "′", ",": ", "}.get(token, token)
        return ((Variable(token) if token.isalpha() else spaced),), at + 1
    return _command(token[1:], tokens, at + 1)


def _command(name: str, tokens: list[str], at: int) -> tuple[Nodes, int]:
    if name in ("frac", "tfrac"):
        over, at = _argument(tokens, at)
        under, at = _argument(tokens, at)
        return (Fraction(over, under),), at
    if name == "sqrt":
        body, at = _argument(tokens, at)
        return (Root(body),), at
    if name in _UPRIGHT or name in _BOLD:
        word, at = _raw(tokens, at)
        if name in _BOLD:
            word = _BOLD[name].get(word, word)
        return (f"{word} " if name == "operatorname" else word,), at
    if name in _CHARACTERS:
        return (_CHARACTERS[name],), at
    if name in _SYMBOLS:
        symbol = _SYMBOLS[name]
        return ((Variable(symbol) if len(symbol) == 1 and symbol.isalpha() and symbol.islower() else symbol),), at
    raise NotationError(f"unknown command \\{name}; add it to {__name__}")


def _argument(tokens: list[str], at: int) -> tuple[Nodes, int]:
    while at < len(tokens) and tokens[at] == " ":
        at += 1
    if at >= len(tokens):
        raise NotationError(f"an argument is missing at the end of {''.join(tokens)!r}")
    return _node(tokens, at)


def _raw(tokens: list[str], at: int) -> tuple[str, int]:
    """Read a braced word as it stands."""
    if at >= len(tokens) or tokens[at] != "{" or "}" not in tokens[at:]:
        raise NotationError(f"expected a word in braces in {''.join(tokens)!r}")
    end = tokens.index("}", at)
    return "".join(tokens[at + 1 : end]), end + 1


def _text(node: Node) -> str:
    match node:
        case str():
            return node
        case Variable(letter):
            return letter
        case Script("sub", body):
            return _scripted("_", text(body))
        case Script(_, body):
            return text(body) if text(body) == "ᵀ" else "²" if text(body) == "2" else _scripted("^", text(body))
        case Fraction(over, under):
            return f"{_numerator(text(over))}/{_denominator(text(under))}"
        case Root(body):
            return f"√({text(body)})"


def _scripted(sign: str, body: str) -> str:
    return f"{sign}{body}" if body.isalnum() else f"{sign}({body})"


def _numerator(body: str) -> str:
    return f"({body})" if _top_level(body, "+−") else body


def _denominator(body: str) -> str:
    """Put a product into parentheses, where a/b(c) would be read as (a/b) c."""
    return body if _ATOM.fullmatch(body) else f"({body})"


def _top_level(body: str, signs: str) -> bool:
    depth = 0
    for character in body:
        depth += (character == "(") - (character == ")")
        if depth == 0 and character in signs:
            return True
    return False


def _data(node: Node) -> Any:
    match node:
        case str():
            return node
        case Variable(letter):
            return {"var": letter}
        case Script("sup", body) if text(body) == "ᵀ":
            return "ᵀ"  # raised by itself
        case Script(kind, body):
            return {kind: data(body)}
        case Fraction(over, under):
            return {"over": data(over), "under": data(under)}
        case Root(body):
            return {"root": data(body)}
