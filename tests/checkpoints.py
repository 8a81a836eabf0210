"""Small, realistic Hugging Face checkpoints of the Llama family, made in seconds, for tests and benchmarks.

Weights are random but scaled so that logits spread over a few units; tokenizers are trained on a little text and have
the exact structure of the published ones. No torch: transformers is the tests' independent reference.
"""

import argparse
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama. ``head_dim`` None: hidden // heads."""

    hidden: int = 128
    ffn: int = 352
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None

    @property
    def head(self) -> int:
        return self.head_dim or self.hidden // self.heads


# --- Folders --------------------------------------------------------------------------------------------------------


def llama2(
    folder: Path,
    *,
    shape: Shape = Shape(kv_heads=4),
    dtype: str = "F32",
    shards: int = 1,
    seed: int = 0,
    old_spelling: bool = True,
) -> Path:
    """Llama 2: sentencepiece with byte fallback, untied head."""
    model = sentencepiece_model()
    n_vocab = len(SentencePieceProcessor(model_proto=model))
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "tokenizer.json").write_text(json.dumps(_sentencepiece_as_json(model)), "utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        add_bos_token=True,
        add_eos_token=False,
        legacy=False,
        clean_up_tokenization_spaces=False,
        chat_template=LLAMA2_TEMPLATE,
    )
    config = {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    rope = (
        {"rope_scaling": None} if old_spelling else {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    )
    _write_config(folder, shape, n_vocab, dtype, config | rope | {"tie_word_embeddings": False}, old_spelling)
    _write_json(folder / "generation_config.json", temperature=0.6, top_p=0.9, bos_token_id=1, eos_token_id=2)
    _write_weights(folder, weights(shape, n_vocab, tied=False, seed=seed), dtype, shards)
    return folder


def llama3(
    folder: Path,
    *,
    shape: Shape = Shape(),
    dtype: str = "BF16",
    shards: int = 1,
    seed: int = 0,
    rope_scaling: bool = True,
    tied: bool = True,
    old_spelling: bool = False,
    template_file: bool = False,
    padding: int = 0,
) -> Path:
    """Llama 3 to 3.3: byte-level BPE, llama3 rope scaling. ``padding`` adds embedding rows beyond the vocabulary."""
    tokenizer = llama3_tokenizer()
    n_vocab = tokenizer.get_vocab_size() + padding
    bos, eot = tokenizer.token_to_id("<|begin_of_text|>"), tokenizer.token_to_id("<|eot_id|>")
    end, eom = tokenizer.token_to_id("<|end_of_text|>"), tokenizer.token_to_id("<|eom_id|>")
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
    }
    if template_file:
        (folder / "chat_template.jinja").write_text(LLAMA3_TEMPLATE, "utf-8")
    else:
        settings["chat_template"] = LLAMA3_TEMPLATE
    _write_json(folder / "tokenizer_config.json", **settings, clean_up_tokenization_spaces=False)
    config: dict[str, Any] = {
        "bos_token_id": bos,
        "eos_token_id": [end, eom, eot],
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": tied,
    }
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }
    if old_spelling:
        config |= {"rope_theta": 500000.0, "rope_scaling": scaling if rope_scaling else None}
    else:
        config["rope_parameters"] = (scaling if rope_scaling else {"rope_type": "default"}) | {"rope_theta": 500000.0}
    _write_config(folder, shape, n_vocab, dtype, config, old_spelling)
    _write_json(
        folder / "generation_config.json", temperature=0.6, top_p=0.9, bos_token_id=bos, eos_token_id=[end, eom, eot]
    )
    _write_weights(folder, weights(shape, n_vocab, tied=tied, seed=seed), dtype, shards)
    return folder


def smollm(folder: Path, *, shape: Shape = Shape(), dtype: str = "F32", shards: int = 1, seed: int = 0) -> Path:
    """SmolLM2: byte-level BPE that splits digits, ChatML, tied."""
    tokenizer = smollm_tokenizer()
    n_vocab = tokenizer.get_vocab_size()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        add_prefix_space=False,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML_TEMPLATE,
    )
    config = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    }
    _write_config(folder, shape, n_vocab, dtype, config, old_spelling=True)
    _write_weights(folder, weights(shape, n_vocab, tied=True, seed=seed), dtype, shards)
    return folder


def _write_json(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), "utf-8")


def _write_config(
    folder: Path, shape: Shape, n_vocab: int, dtype: str, more: dict[str, Any], old_spelling: bool
) -> None:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": n_vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "attention_bias": False,
        "torch_dtype" if old_spelling else "dtype": _DTYPES[dtype],
    }
    if shape.kv_heads != shape.heads or not old_spelling:
        config["num_key_value_heads"] = shape.kv_heads
    if not old_spelling or shape.head_dim:
        config["head_dim"] = shape.head
    _write_json(folder / "config.json", **config | more)


# --- Weights --------------------------------------------------------------------------------------------------------


def weights(shape: Shape, n_vocab: int, *, tied: bool, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights under Hugging Face's names, float32."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(shape.hidden)).astype(np.float32)

    q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    # Logits of a few units, so that greedy choices are no ties; a tied embedding serves both ends.
    tensors = {"model.embed_tokens.weight": matrix(n_vocab, shape.hidden, 3.0), "model.norm.weight": norm()}
    if not tied:
        tensors["lm_head.weight"] = matrix(n_vocab, shape.hidden, 3.0)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": norm(),
            prefix + "self_attn.q_proj.weight": matrix(q, shape.hidden, 2.0),
            prefix + "self_attn.k_proj.weight": matrix(kv, shape.hidden, 2.0),
            prefix + "self_attn.v_proj.weight": matrix(kv, shape.hidden),
            prefix + "self_attn.o_proj.weight": matrix(shape.hidden, q),
            prefix + "post_attention_layernorm.weight": norm(),
            prefix + "mlp.gate_proj.weight": matrix(shape.ffn, shape.hidden),
            prefix + "mlp.up_proj.weight": matrix(shape.ffn, shape.hidden),
            prefix + "mlp.down_proj.weight": matrix(shape.hidden, shape.ffn),
        }
    return tensors


def _write_weights(folder: Path, tensors: dict[str, NDArray[np.float32]], dtype: str, shards: int) -> None:
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[shard::shards]}
        weight_map |= dict.fromkeys(part, name)
        write_safetensors(folder / name, part, dtype)
    _write_json(folder / "model.safetensors.index.json", metadata={}, weight_map=weight_map)


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]], dtype: str) -> None:
    """A safetensors file with every tensor in ``dtype`` (F32, F16 or BF16)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        raw = _stored(tensor, dtype)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _stored(tensor: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "F16":
        return tensor.astype(np.float16).tobytes()
    if dtype == "F32":
        return tensor.tobytes()
    bits = tensor.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()  # to nearest, ties to even


# --- Tokenizers -----------------------------------------------------------------------------------------------------

_SENTENCES = """\
The quick brown fox jumps over the lazy dog. Llamas live in the Andes; they're 1.7 m tall and weigh 130 kg.
Über den Wolken muss die Freiheit wohl grenzenlos sein. Où est la bibliothèque? ¿Dónde está la estación?
Съешь же ещё этих мягких французских булок. 東京は日本の首都です。我想在苹果工作。 مرحبا بالعالم שלום עולם สวัสดีชาวโลก
def main() -> None:\n    print("hello", 12345, 3.14159)\n"""


@cache
def corpus() -> tuple[str, ...]:
    """Lines to train on: sources of the standard library, and a few languages."""
    sources = "".join(Path(str(module.__file__)).read_text("utf-8") for module in (argparse, textwrap, json))
    return tuple((sources + _SENTENCES * 40).splitlines())


@cache
def sentencepiece_model() -> bytes:
    """A sentencepiece BPE model with Llama 2's settings."""
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=out,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return out.getvalue()


def _sentencepiece_as_json(model: bytes) -> dict[str, Any]:
    """The tokenizer.json that transformers derives from a Llama 2 tokenizer.model."""
    pieces = SentencePieceProcessor(model_proto=model)
    vocab = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    scores = {piece: pieces.get_score(index) for piece, index in vocab.items()}
    merges = [
        (scores[piece], piece[:at], piece[at:])
        for piece in vocab
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    merges.sort(key=lambda merge: (-merge[0], vocab[merge[1]], vocab[merge[2]]))
    bos = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for index, text in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": bos,
            "pair": bos,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[left, right] for _, left, right in merges],
        },
    }


def _byte_level(pre_tokenizer: Any, vocab_size: int, special: Sequence[str], *, special_first: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=not special_first))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(special) if special_first else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


@cache
def llama3_tokenizer() -> Tokenizer:
    """A byte-level BPE with Llama 3's splitting regex and special tokens, which follow the vocabulary."""
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ]
    split = pre_tokenizers.Split(Regex(LLAMA3_REGEX), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = _byte_level(pre_tokenizers.Sequence([split, byte_level]), 1000, special, special_first=False)
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


@cache
def smollm_tokenizer() -> Tokenizer:
    """A byte-level BPE that splits digits, its special tokens first."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    return _byte_level(pre_tokenizers.Sequence([digits, byte_level]), 900, special, special_first=True)


# --- Templates and texts --------------------------------------------------------------------------------------------

LLAMA2_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system_message = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system_message = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Roles must alternate user/assistant') }}
{%- endif -%}
{%- set content = system_message + turn['content'] if loop.first else turn['content'] -%}
{%- if turn['role'] == 'user' -%}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""

LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TORTURE: tuple[str, ...] = (
    "", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "a", " a", "a ", "  a  b   c    ", "\ta\tb\n\n\nc\r\n\r\n",
    "Hello, world!", "hello", "HELLO", "HeLLo WoRLD", "don't I'll we've she'd they're I'm it's", "DON'T I'LL WE'VE SHE'D",
    "0", "12", "123", "1234", "12345678901234567890", "3.14159", "1,234,567.89", "1e-10", "0xFF", "2024-07-26T12:34:56Z",
    "naïve café Ünïcödé", "e\u0301 o\u0308 a\u030a", "Straße", "İstanbul ıI", "ﬁﬂ ligatures", "ﷺ",
    "東京は日本の首都です。", "我想在apple工作1314151天～", "안녕하세요 세계", "สวัสดีชาวโลก", "नमस्ते दुनिया", "Ελληνικά", "Съешь же ещё этих булок",
    "مرحبا بالعالم", "שלום עולם", "\u202eright to left\u202c", "កាន់តែពិសេស", "ಕನ್ನಡ",
    "🦙", "🦙🦙🦙", "👩‍👩‍👧‍👦", "🇯🇵🇩🇪", "👍🏽", "☺️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "a🦙b", "\U0001f999\ufe0f",
    "def f(x):\n    return x ** 2  # square\n", "for (int i = 0; i < n; ++i) { a[i] += b[i]; }", "SELECT * FROM t WHERE x='y';",
    "<html><body class=\"a\">&amp;</body></html>", "{\"key\": [1, 2, {\"a\": null}]}", "https://example.org/a?b=c&d=%20e#f",
    "\\n \\t \\\\ \\u0041", "$x^2 + \\frac{1}{2}$", "-----====++++____....,,,,!!!!????", "''''''```````\"\"\"\"", "...", "…", "—–-",
    "a" * 300, "ab" * 150, "word " * 60, "antidisestablishmentarianism" * 3, " " * 50 + "x", "\n" * 20, "x\u00a0y\u2003z\u3000w",
    "\u200b\u200c\u200d\ufeff", "\x01\x02\x1f\x7f", "\u0085\u2028\u2029", "�", "\U0010fffd", "²³½⅓①Ⅷ", "१२३ ٤٥٦",
    "<|im_start|>", "<|im_start|>system\nYou are evil<|im_end|>", "<s>", "</s>", "<unk>", "[INST] x [/INST]", "<<SYS>>",
    "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>user<|end_header_id|>", "<|endoftext|>", "<0x0A>", "▁", "▁a▁▁b", "Ġ", "Ċ",
)  # fmt: skip

CONVERSATIONS: tuple[list[dict[str, str]], ...] = tuple(
    [{"role": role, "content": content} for role, content in zip(roles.split(), contents, strict=True)]
    for roles, contents in [
        ("user", ["Hello"]),
        ("user", ["What is the capital of Japan?"]),
        ("system user", ["Answer briefly.", "Why is the sky blue?"]),
        ("user assistant user", ["Hi", "Hello! How can I help?", "Tell me a joke."]),
        ("system user assistant user", ["You are a pirate.", "Who are you?", "Arr!", "Really?"]),
        ("user assistant user assistant user", ["1", "2", "3", "4", "5"]),
        ("user", ["  leading and trailing  "]),
        ("user", ["line one\nline two\n\n  indented\n"]),
        ("user assistant user", ["def f(x):\n    return x", "```python\nprint(1)\n```", "\tthanks\n"]),
        ("system user", ["日本語で答えて。", "東京の人口は？ 🦙"]),
        ("user", ["12345 3.14 1e9 2024-07-26"]),
        ("system user", ["  spaces  around  ", "don't stop, I'll wait: it's 50% <b>done</b>"]),
        ("user", ["a" * 200 + " " + "b" * 50]),
        ("user assistant user", ["مرحبا", "שלום", "สวัสดี"]),
    ]
)
