"""llama.cpp as the text tower's engine: GGUF files, through llama-cpp-python's low-level functions.

The high-level ``Llama`` class is not used: it detokenizes everything again for each token, and can't be stopped.
"""

import ctypes
import logging
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_llama.artifact import END_TOKENS, Artifact
from edge_llama.backends.base import AbortedError
from edge_llama.errors import ArtifactError, EngineError, OptionError
from edge_llama.formats import FORMATS
from edge_llama.sampling import SamplingParams

_log = logging.getLogger(__name__)
_N_BATCH = 512
_ABORTED = 2
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # tokenizer.ggml.token_type
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]{3,}\]")
# What byte-pair merges leave to tokens that somebody made: "<div>" may be an ordinary word of code, "<|x|>" is none.
_MADE_TAG = re.compile(r"<[|｜].+[|｜]>|</?[a-z]+(?:_[a-z]+)+>|\[/?[A-Z_]{3,}\]")
_PIPED_TAG = re.compile(r"<[|｜].+[|｜]>")
_LEVELS = {2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}  # GGML_LOG_LEVEL_*; what is below is noise


@cache
def _engine() -> Any:
    """The ``llama_cpp`` module, loaded once: its library, its log sent to ours."""
    try:
        import llama_cpp  # noqa: PLC0415 - loads native code, only when a model is opened
    except (ImportError, RuntimeError, OSError) as error:
        raise EngineError(f"llama-cpp-python cannot be loaded: {error}", remedy="reinstall it") from error
    llama_cpp.llama_log_set(_NATIVE_LOG, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


_last_lines: deque[str] = deque(maxlen=4)


def _native_log(level: int, text: bytes, _data: int | None) -> None:
    line = text.decode("utf-8", "replace").strip()
    if level == max(_LEVELS):
        _last_lines.append(line)
    if line and level in _LEVELS:
        # What the engine calls a warning is about its own choices; our callers see an error when work fails.
        _log.debug("%s: %s", logging.getLevelName(_LEVELS[level]), line)


_NATIVE_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_native_log)


def _why() -> str:
    """llama.cpp's own last words, for an error message."""
    lines = [line for line in _last_lines if line]
    _last_lines.clear()
    return ": " + " / ".join(lines) if lines else ""


@cache
def _strlen() -> int:
    """The address of C's ``strlen``: the abort callback.

    ggml asks the callback before each of a graph's thousand nodes; a Python function there would take the GIL each
    time. ``strlen`` of a buffer that holds "" or "x" answers false or true in native code.
    """
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    return ctypes.cast(library.strlen, ctypes.c_void_p).value or 0


class LlamaCppTower:
    """A text tower of a GGUF file. Keeps the Protocol :class:`edge_llama.backends.base.TextTower`."""

    def __init__(self, artifact: Artifact, *, n_ctx: int, threads: int, flash_attention: bool, kv_format: str) -> None:
        """Load the weights (mapped) and allocate a KV cache of ``n_ctx`` positions in ``kv_format`` (f16 or f32).

        Raises ArtifactError if llama.cpp refuses the file, EngineError if the cache can't be allocated.
        """
        self._lib = lib = _engine()
        self._model: Any = lib.llama_model_load_from_file(os.fsencode(artifact.path), lib.llama_model_default_params())
        if not self._model:
            raise ArtifactError(f"{artifact.path}: llama.cpp cannot load it{_why()}")
        self._abort_flag = ctypes.create_string_buffer(2)
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = _N_BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = int(flash_attention)
        params.type_k = params.type_v = FORMATS[kv_format].ggml_id
        params.abort_callback = ctypes.cast(_strlen(), type(params.abort_callback))
        params.abort_callback_data = ctypes.addressof(self._abort_flag)
        params.no_perf = True
        self._context: Any = lib.llama_init_from_model(self._model, params)
        if not self._context:
            lib.llama_model_free(self._model)
            raise EngineError(
                f"{artifact.path}: llama.cpp cannot make a context of {n_ctx:,} tokens{_why()}",
                remedy="use a smaller n_ctx",
            )
        self._memory: Any = lib.llama_get_memory(self._context)
        self._n_ctx = n_ctx
        self._length = 0
        self._tokens = np.empty(_N_BATCH, np.int32)
        self._token_pointer = self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self.tokenizer = GGUFTokenizer(lib, lib.llama_model_get_vocab(self._model), artifact)

    @property
    def n_ctx(self) -> int:
        """Positions that the cache holds."""
        return self._n_ctx

    @property
    def n_batch(self) -> int:
        """Tokens that one ``decode`` takes at most."""
        return _N_BATCH

    def decode(self, tokens: Sequence[int]) -> None:
        """Append at most ``n_batch`` tokens to the cache; their last one's logits can then be read."""
        count = len(tokens)
        if self._abort_flag.value:
            raise AbortedError
        self._tokens[:count] = tokens
        status = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(self._token_pointer, count))
        if status == 0:
            self._length += count
            return
        self.rewind(self._length)
        if status == _ABORTED:
            raise AbortedError
        raise EngineError(f"llama.cpp failed at position {self._length:,} with status {status}{_why()}")

    def logits(self) -> NDArray[np.float32]:
        """A copy of the logits of the last decoded position, float32 ``(n_vocab,)``."""
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.tokenizer.n_vocab,)).copy()

    def rewind(self, length: int) -> None:
        """Keep the first ``length`` positions of the cache."""
        if not self._lib.llama_memory_seq_rm(self._memory, 0, length, -1):
            # Some memories (recurrent states) can't be cut: begin anew.
            self._lib.llama_memory_clear(self._memory, True)
            if length:
                raise EngineError("this model's memory can't be rewound", remedy="start a new chat")
        self._length = length

    def sampler(self, params: SamplingParams, history: Sequence[int]) -> "_NativeSampler":
        """llama.cpp's own sampler chain, in the order of :class:`SamplingParams`."""
        return _NativeSampler(self._lib, self._context, self.tokenizer.n_vocab, params, history)

    def use_threads(self, count: int) -> None:
        """How many threads the next ``decode`` uses."""
        self._lib.llama_set_n_threads(self._context, count, count)

    def abort(self) -> None:
        """Stop the ``decode`` that is running, within a graph node's time, and refuse others until ``resume``."""
        self._abort_flag.value = b"x"

    def resume(self) -> None:
        """Take work again after ``abort``."""
        self._abort_flag.value = b""

    def close(self) -> None:
        """Free the cache and the weights. May be called twice."""
        if self._context:
            self.tokenizer.close()
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = self._model = None


class _NativeSampler:
    def __init__(self, lib: Any, context: Any, n_vocab: int, params: SamplingParams, history: Sequence[int]) -> None:
        self._lib = lib
        self._context = context
        self._chain = chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())

        def add(link: Any) -> None:
            lib.llama_sampler_chain_add(chain, link)

        window = params.penalty_window if params.repetition_penalty != 1 else 0
        if window:
            add(lib.llama_sampler_init_penalties(n_vocab, window, params.repetition_penalty, 0.0, 0.0))
        if params.temperature == 0:
            add(lib.llama_sampler_init_greedy())
        else:
            if params.top_k:
                add(lib.llama_sampler_init_top_k(params.top_k))
            add(lib.llama_sampler_init_top_p(params.top_p, 1))
            add(lib.llama_sampler_init_min_p(params.min_p, 1))
            add(lib.llama_sampler_init_temp(params.temperature))
            seed = params.seed if params.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
            add(lib.llama_sampler_init_dist(seed))
        for token in history[-window:] if window else ():
            lib.llama_sampler_accept(chain, token)

    def sample(self) -> int:
        return int(self._lib.llama_sampler_sample(self._chain, self._context, -1))

    def close(self) -> None:
        self._lib.llama_sampler_free(self._chain)


def _byte_letters() -> str:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


def _is_looked_for(tag: str, template: str) -> bool:
    """Whether a template looks for the tag in what the model wrote (``content.split('</think>')``).

    Such a tag is part of contents; ``<|tag|>`` is none in any case.
    """
    quoted = rf"(['\"]){re.escape(tag)}\1"
    asked = (quoted + r"\s+(?:not\s+)?in\b", r"\.\w+\(\s*" + quoted)
    return not _PIPED_TAG.fullmatch(tag) and any(re.search(pattern, template) for pattern in asked)


class GGUFTokenizer:
    """The vocabulary inside a GGUF file. Keeps the Protocol :class:`edge_llama.tokenizer.Tokenizer`.

    Any thread may use it, also while another closes the model that owns the memory: hence the lock.
    """

    def __init__(self, lib: Any, vocab: Any, artifact: Artifact) -> None:
        self._lib = lib
        self._open_vocab = vocab
        self._lock = threading.RLock()
        self._header = artifact.header
        self.n_vocab = int(lib.llama_vocab_n_tokens(vocab))
        ends = artifact.header.fields.get(END_TOKENS)
        self._ends = frozenset() if ends is None else frozenset(int(token) for token in ends.data)
        self._piece = ctypes.create_string_buffer(512)

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        """Ids of the control tokens by their text.

        They are those that the file types so, those that llama.cpp types so at load (it knows turn ends by their
        text), tags that begin or end a sequence or a turn, and every ``<|tag|>`` that was added to the vocabulary:
        published files type ``<|im_end|>`` in each of these ways.
        """
        with self._lock:
            return {text: token for token, text, kind in self._tags if self._is_control(token, text, kind)}

    def control_tokens_of(self, template: str) -> Mapping[str, int]:
        """``control_tokens``, and tags of any type that ``template`` writes as they stand."""
        written = {
            text: token
            for token, text, kind in self._tags
            if (_TAG if kind == _USER_DEFINED else _MADE_TAG).fullmatch(text)
            and text in template
            and not _is_looked_for(text, template)
        }
        return {**written, **self.control_tokens}

    def _is_control(self, token: int, text: str, kind: int) -> bool:
        if kind == _CONTROL or self._lib.llama_vocab_get_attr(self._vocab, token) & self._lib.LLAMA_TOKEN_ATTR_CONTROL:
            return True
        if kind == _USER_DEFINED and _PIPED_TAG.fullmatch(text):
            return True
        # A plain word may end a turn ("\n" in a base model): to take it for a control token would change plain text.
        is_word = kind == _NORMAL and not _TAG.fullmatch(text)
        return not is_word and (token in self._borders or self.is_end(token))

    @cached_property
    def _borders(self) -> frozenset[int]:
        lib = self._lib
        return frozenset(ask(self._vocab) for ask in (lib.llama_vocab_bos, lib.llama_vocab_eos, lib.llama_vocab_eot))

    @cached_property
    def _tags(self) -> list[tuple[int, str, int]]:
        """Id, text and type of what may be a control token: few of a vocabulary of 128,000."""
        return list(self._find_tags())

    def _find_tags(self) -> Iterator[tuple[int, str, int]]:
        texts = self._header.fields["tokenizer.ggml.tokens"].data
        field = self._header.fields.get("tokenizer.ggml.token_type")
        kinds = [_NORMAL] * len(texts) if field is None else [int(kind) for kind in field.data]
        for token, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
            is_tag = kind != _NORMAL or (text[:1] in "<[" and _TAG.fullmatch(text))
            if text and is_tag and kind not in (_UNUSED, _BYTE):
                yield token, text, kind

    @cached_property
    def special_texts(self) -> Mapping[str, str]:
        """``bos_token``, ``eos_token``, ... as chat templates name them; only those that the file sets."""
        tokens = self._header.fields["tokenizer.ggml.tokens"].data
        ids = {
            kind: self._header.fields.get(f"tokenizer.ggml.{key}_token_id")
            for kind, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        }
        return {f"{kind}_token": tokens[value.data] for kind, value in ids.items() if value is not None}

    @property
    def bos(self) -> int | None:
        """The token that begins a raw prompt, or None where the model wants none."""
        with self._lock:
            is_added = self._lib.llama_vocab_get_add_bos(self._vocab)
            return int(self._lib.llama_vocab_bos(self._vocab)) if is_added else None

    def encode(self, text: str, control: Mapping[str, int] | None = None) -> list[int]:
        """The ids of plain text; nothing in it becomes a token of ``control`` (None: ``control_tokens``).

        OptionError for a character that the vocabulary can't express: llama.cpp would drop it in silence.
        """
        data = text.encode()
        if len(data.translate(None, self._missing_bytes)) < len(data):
            lost = next(char for char in text if set(char.encode()).intersection(self._missing_bytes))
            raise OptionError(f"the model's vocabulary can't express the character {lost!a}", remedy="leave it out")
        return self._encode_without(self.control_tokens if control is None else control, text, is_first=True)

    def _encode_without(self, control: Mapping[str, int], text: str, *, is_first: bool) -> list[int]:
        """llama.cpp finds user-defined tokens in plain text, too: text that has one is cut inside of it."""
        ids = self._tokenize(text) if is_first else self._continue(text)
        if set(ids).isdisjoint(control.values()):
            return ids
        formed = set(ids)
        texts = [word for word, token in control.items() if token in formed and len(word) > 1]
        cuts = [match.start() + 1 for match in re.finditer("|".join(map(re.escape, texts)), text)] if texts else []
        if not cuts:  # one character, or a word that only the vocabulary's own normalization forms
            return ids
        parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        return [
            token
            for index, part in enumerate(parts)
            for token in self._encode_without(control, part, is_first=is_first and not index)
        ]

    def _continue(self, text: str) -> list[int]:
        """The ids of text inside a word: without the space that sentencepiece vocabularies put before all text."""
        if self._header.get("tokenizer.ggml.model", str, "") != "llama":
            return self._tokenize(text)
        before, ids = self._tokenize("\n"), self._tokenize("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._tokenize(text)

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        while True:
            out = (ctypes.c_int32 * room)()
            with self._lock:
                count = self._lib.llama_tokenize(self._vocab, data, len(data), out, room, False, False)
            if count >= 0:
                return out[:count]
            room = -count

    @cached_property
    def _missing_bytes(self) -> bytes:
        """Bytes that a byte-level vocabulary has no token for: those that its training text never held."""
        if self._header.get("tokenizer.ggml.model", str, "") != "gpt2":
            return b""
        tokens = set(self._header.fields["tokenizer.ggml.tokens"].data)
        return bytes(byte for byte, letter in enumerate(_byte_letters()) if letter not in tokens)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; empty for control tokens."""
        with self._lock:
            size = self._lib.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
            if size < 0:
                self._piece = ctypes.create_string_buffer(-size)
                return self.piece(token)
            return self._piece.raw[:size]

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        with self._lock:
            return token in self._ends or bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        """The model is about to be freed: what asks from now on gets an error."""
        with self._lock:
            self._open_vocab = None

    @property
    def _vocab(self) -> Any:
        if self._open_vocab is None:
            raise EngineError("the model is closed", remedy="open it again")
        return self._open_vocab
