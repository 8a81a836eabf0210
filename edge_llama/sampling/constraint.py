"""Answers that fit a JSON schema, a regular expression or a grammar: masks over the logits, by llguidance.

They work with every engine and every sampler, since they are written into the logits before a token is chosen.
llama.cpp's own grammars are not used: they end the process on a token, or a grammar, that they don't expect.
"""

import json
import math
import re
import weakref
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.errors import EngineError, OptionError
from edge_llama.prompts.tokenizer import Tokenizer
from edge_llama.prompts.tool_grammar import CallGrammar
from edge_llama.sampling import grammar_guard, grammar_walk, json_schema
from edge_llama.sampling.params import SamplingParams

_MAX_TEXT = 100_000  # characters of a regular expression or grammar: an error here takes no gigabytes there
_MAX_PROBES = 500
# Forced text of 100,000 bytes (``(a{1000}){1000}``) takes all that llguidance's lexer has for the answer.
_REPEATS = re.compile(r'(?:\{|"min(?:Items|Length)": )([0-9]{2,6})')
_MANY, _MAX_REPEATS = 50, 20_000
_CONTINUES = 0x80  # to 0xBF: bytes of UTF-8 that begin no character
_OVERLAP = (
    "the choices of a oneOf may overlap, which can't be enforced: use anyOf, or require a key with a const in each"
)
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
# Masks allow all tokens that begin the text that must come, not only those that a tokenizer would cut it into: whether
# it is written without the model is the caller's choice (Constraint.forced).
_NO_FORCING = '%llguidance {"no_forcing": true}'
_JSON_OPTIONS = {
    "lenient": False,
    "coerce_one_of": False,
    # One line, as json.dumps writes it and templates show tools: blanks are no choice, so keys can be forced, and a
    # model that can't go on has none to write for ever.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # No \u: llguidance would take "\u0061" for another key than "a".
    "json_allowed_escapes": 'nrbtf\\"',
}


class Constraint:
    """What the answer must fit, and how far it came. For one answer, in one thread at a time."""

    def __init__(self, matcher: Any, what: str, n_vocab: int, *, may_force: bool = True) -> None:
        """``may_force``: text that must come is no longer than can be looked at, at once."""
        self._may_force = may_force
        self._matcher = matcher
        self._what = what
        self._n_vocab = n_vocab
        self._is_begun = False
        self.refused()  # what nothing fits is an error at once
        self._is_begun = True

    @property
    def is_complete(self) -> bool:
        """Whether the answer fits and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Make every token impossible that does not fit, in place; ``logits`` are ``(n_vocab,)``.

        EngineError if there is none, OptionError if the grammar takes too much time or memory here.
        """
        np.copyto(logits, -np.inf, where=self.refused())

    def refused(self) -> NDArray[np.bool_]:
        """``(n_vocab,)``: the tokens that can't come now. End tokens can where the answer so far is whole."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        refused: NDArray[np.bool_] = np.unpackbits(bits, count=self._n_vocab, bitorder="little") == 0
        if refused.all():
            raise self._dead_end()
        return refused

    def forced(self) -> list[int]:
        """The tokens that must come next, in order; none where there is a choice, or an end token could come.

        Text that must come is cut as the model's tokenizer cuts it after the last token, up to where what follows might
        join its end; masks would also allow any other tokens that spell it. Nothing is accepted by this.
        """
        if not self._may_force:
            return []
        ahead, found = self._matcher.deep_copy(), list[int]()
        while tokens := _forced_text(ahead) or _only_token(ahead):
            found += tokens
            ahead.consume_tokens(tokens)
        return found

    def accept(self, token: int) -> None:
        """Go on by a token that was not refused."""
        if not self._matcher.consume_token(token):
            self._check()
            raise EngineError(f"the sampler chose token {token}, which {self._what} had refused")

    def _check(self) -> None:
        if self._matcher.is_error():
            report = _gist(self._matcher.get_error())
            if grammar_walk.is_stuck(self._matcher):  # it allows an end token there, though the answer is not whole
                raise self._dead_end()
            raise OptionError(f"{self._what}: {report}", remedy="simplify it")

    def _dead_end(self) -> OptionError | EngineError:
        """At the beginning what was asked for can't be; later it is llguidance that went on to where nothing fits."""
        problem = f"{self._what}: nothing that the model can write fits here"
        remedy = "check what must follow, and that the model's vocabulary has its characters"
        return EngineError(problem, remedy=remedy) if self._is_begun else OptionError(problem, remedy=remedy)


def _forced_text(matcher: Any) -> list[int]:
    """The tokens of the text that must come, but for those at its end that what may follow could be a part of."""
    text = matcher.compute_ff_bytes()
    if not text or _CONTINUES <= text[0] < _CONTINUES + 64:  # the rest of a character: no tokenizer begins there
        return []
    tokens: list[int] = matcher.compute_ff_tokens()
    return tokens if matcher.validate_tokens(tokens) == len(tokens) else []


def _only_token(matcher: Any) -> list[int]:
    """The token that the mask leaves alone, unless it is an end token: then there is nothing to write."""
    if matcher.is_stopped() or matcher.is_accepting():
        return []
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    if matcher.is_error() or np.bitwise_count(bits).sum() != 1:  # an error is told where a token is chosen
        return []
    return [int(np.unpackbits(bits, bitorder="little").argmax())]


def constraint(params: SamplingParams, tokenizer: Tokenizer, calls: CallGrammar | None = None) -> Constraint | None:
    """The constraint that ``params`` ask for, or that the answer be ``calls``; None if neither does.

    OptionError for both (unless the calls say otherwise), for what is invalid, unsupported, without end or
    unsatisfiable.
    """
    found = _grammar(params)
    if calls is not None:
        return _of_calls(calls, tokenizer, found)
    if found is None:
        return None
    what, grammar = found
    _walked(what, grammar)
    return _for_model(grammar, what, tokenizer)


def check_form(params: SamplingParams) -> bool:
    """Whether ``params`` ask for a form. OptionError as :func:`constraint` raises it, without a model's vocabulary."""
    found = _grammar(params)
    if found is None:
        return False
    _walked(*found)
    return True


def _for_model(grammar: str, what: str, tokenizer: Tokenizer) -> Constraint:
    counts = [int(count) for count in _REPEATS.findall(grammar)]
    matcher = _matcher(_vocabulary(tokenizer), grammar, what)
    may_force = math.prod(count for count in counts if count >= _MANY) <= _MAX_REPEATS
    return Constraint(matcher, what, tokenizer.n_vocab, may_force=may_force)


def _of_calls(calls: CallGrammar, tokenizer: Tokenizer, other: tuple[str, str] | None) -> Constraint:
    if other and not calls.may_answer:
        raise OptionError(f"tool_choice and {other[0]} were given", remedy="an answer can have one of them")
    rules = [calls.rules, *(f"{name}: {_schema_of(*each)}" for name, each in calls.schemas.items())]
    what, grammar = "tool_choice", "\n".join(rules)
    _walked(what, f"{grammar}\nstart: calls")
    starts = ["calls"]
    starts += [f"<[{begin}]> calls" + ("" if end is None else f" <[{end}]>") for begin, end in calls.tags]
    if other:
        _walked(*other)
        grammar = f"{grammar}\nanswer: {other[1].removeprefix('start: ')}"
        starts.append("answer")
    grammar = f"{grammar}\nstart: {' | '.join(starts)}"
    return _for_model(grammar, what, tokenizer)


def _schema_of(where: str, schema: Any) -> str:
    """A schema within a grammar. OptionError, about ``where`` it stands, if it can't be enforced."""
    try:
        inline = f"%json {_inline(schema)}"
        _compiled(f"start: {inline}")
    except OptionError as error:
        raise OptionError(f"{where}: {error.message.removeprefix('json_schema: ')}", remedy=error.remedy) from error
    return inline


@lru_cache(maxsize=256)
def _compiled(grammar: str) -> None:
    """OptionError for a schema that llguidance refuses, or that nothing fits."""
    Constraint(_matcher(_bytes(), grammar, "json_schema"), "json_schema", _bytes().vocab_size)


@lru_cache(maxsize=64)
def _walked(what: str, grammar: str) -> None:
    """OptionError if nothing fits the grammar, or it leads to where nothing does.

    Over bytes: a model's own vocabulary takes a second or more to prepare.
    """
    matcher = _matcher(_bytes(), grammar, what)
    Constraint(matcher, what, _bytes().vocab_size)
    if (text := grammar_walk.dead_end(matcher)) is None:
        return
    if '"patternProperties"' in grammar:
        cause = "all keys that patternProperties allows seem to be named in properties, and no other is allowed"
        remedy = "leave patternProperties out where it allows no further key"
    else:
        cause, remedy = "what must follow can't be written", "simplify it"
    raise OptionError(f"{what}: after {text!r} nothing fits: {cause}", remedy=remedy)


def _grammar(params: SamplingParams) -> tuple[str, str] | None:
    """Which option was given, and what it asks for in Lark's syntax."""
    if params.json_schema is not None:
        return "json_schema", f"start: %json {_inline(params.json_schema)}"
    for what, text in (("regex", params.regex), ("grammar", params.grammar)):
        if text is not None and len(text) > _MAX_TEXT:
            raise OptionError(f"{what} has {len(text):,} characters", remedy=f"up to {_MAX_TEXT:,} are supported")
    if params.regex is not None:
        return "regex", f"start: /{_llguidance().regex_to_lark(params.regex, '')}/"
    if params.grammar is not None:
        return "grammar", _checked_lark(params.grammar.removeprefix("\ufeff"))
    return None


def _inline(schema: object) -> str:
    checked = json_schema.checked(schema)
    for keys in json_schema.patterned(checked):
        _check_keys(keys)
    return json.dumps({**checked, "x-guidance": _JSON_OPTIONS})


def _check_keys(keys: dict[str, Any]) -> None:
    """OptionError if an object with all its named keys may have a comma after them, and no key that could follow."""
    try:
        _walked("json_schema", f"start: %json {json.dumps({**keys, 'x-guidance': _JSON_OPTIONS})}")
    except OptionError as error:
        if " nothing fits: " in error.message:  # any other is about the schema as it stands, if it is one
            raise


def _checked_lark(text: str) -> str:
    """The grammar with its schemas rebuilt, after a look at each part that might fit nothing."""
    grammar = grammar_guard.read(text, _inline)
    if len(grammar.probes) > _MAX_PROBES:
        raise OptionError(
            f"grammar: has {len(grammar.probes):,} regular expressions", remedy=f"up to {_MAX_PROBES:,} are supported"
        )
    for part, probe in grammar.probes.items():
        Constraint(_matcher(_bytes(), probe, f"grammar: {part:.80}"), f"grammar: {part:.80}", _bytes().vocab_size)
    return grammar.text


def _matcher(vocabulary: Any, grammar: str, what: str) -> Any:
    matcher_type = _llguidance().LLMatcher
    matcher = matcher_type(vocabulary, matcher_type.grammar_from_lark(f"{grammar}\n{_NO_FORCING}"), log_level=0)
    if matcher.is_error():
        report = _gist(matcher.get_error())
        if not what.startswith("grammar"):  # the place in the grammar that we made of it tells nobody anything
            report = _OVERLAP if "coerce_one_of" in report else _PLACE.sub("", report)
        raise OptionError(f"{what}: {report}")
    return matcher


def _gist(report: str) -> str:
    """The first line of llguidance's report, and the regular expression parser's own reason after it."""
    lines = [line.strip() for line in report.strip().splitlines()]
    reasons = [line for line in lines[1:] if line.startswith("error: ")]
    return " ".join([*(line[:200] for line in lines[:1]), *reasons[:1]])


@cache
def _llguidance() -> Any:
    """The module, loaded when the first constraint is made."""
    try:
        import llguidance  # noqa: PLC0415
    except ImportError as error:
        raise EngineError(f"llguidance cannot be loaded: {error}", remedy="reinstall it") from error
    return llguidance


@cache
def _bytes() -> Any:
    """A vocabulary of the 256 bytes, to look into grammars with."""
    return _llguidance().LLTokenizer("byte")


_vocabularies: "weakref.WeakKeyDictionary[Tokenizer, Any]" = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """A vocabulary as llguidance takes it: each token's bytes, none for control tokens. Made once per model."""
    if tokenizer not in _vocabularies:
        module = _llguidance()
        ends = [token for token in range(tokenizer.n_vocab) if tokenizer.is_end(token)]
        if not ends:
            raise OptionError("the model's vocabulary has no end token: its answers can't fit anything")
        wrapper = module.TokenizerWrapper(_Words(tokenizer, ends))
        _vocabularies[tokenizer] = module.LLTokenizer(wrapper, eos_token=ends)
    return _vocabularies[tokenizer]


class _Words:
    """What llguidance asks of a tokenizer. End tokens have no bytes, also where a base model ends with a newline."""

    def __init__(self, tokenizer: Tokenizer, ends: list[int]) -> None:
        self.eos_token_id = ends[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.piece(token) for token in range(tokenizer.n_vocab)]
        for token in ends:
            self.tokens[token] = b""
        self._encoded = lru_cache(maxsize=1024)(partial(_encoded_within, weakref.ref(tokenizer)))

    def __call__(self, text: bytes) -> list[int]:
        """Text that must come, as tokens."""
        return self._encoded(text)


def _encoded_within(tokenizer: "weakref.ref[Tokenizer]", text: bytes) -> list[int]:
    """The tokens of text in the midst of an answer; none for what the vocabulary can't express.

    Sentencepiece's put a space before a text of its own, so there something comes before it that nothing joins.
    """
    opened = tokenizer()
    assert opened is not None  # noqa: S101 - whoever has a constraint has its model
    for before in ("", "\n"):
        try:
            tokens = opened.encode(before + text.decode())[len(opened.encode(before)) :]
        except OptionError:
            return []
        if b"".join(map(opened.piece, tokens)) == text:
            return tokens
    return []
