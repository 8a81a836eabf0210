"""What a sound GGUF file lacks so that answers become worse than the model's own: told by all who open or convert it.

llama.cpp works on without a word, or says so in a log that nobody reads (``llama-vocab.cpp: load`` in llama-cpp-python
0.3.36). Not told is what it puts right itself, or the runtime does: control tokens that are typed oddly, an end token
that its own list of names lacks, empty tokens, special ids past the vocabulary (which are errors here).
"""

from edge_llama.files.gguf import Header

_AGAIN = "convert the original checkpoint again"
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# llama.cpp ends an answer at a token of any of these names, whatever the keys say.
_END_TEXTS = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    ]
)


def quality_warnings(header: Header, end_tokens: str) -> tuple[str, ...]:
    """One sentence each, without the file's name. ``end_tokens`` is a key of more ends than llama.cpp's own hold."""
    prefix = "tokenizer.ggml."
    kind = header.get(prefix + "model", str, "")
    found = []
    if kind == "gpt2" and not header.get(prefix + "pre", str, ""):
        found.append(
            "tokenizer.ggml.pre is missing: llama.cpp splits text by its default rule and not by the model's own "
            f"pre-tokenizer, so that answers get worse; {_AGAIN}"
        )
    if kind == "llama" and prefix + "scores" not in header.fields:
        found.append(
            "tokenizer.ggml.scores is missing: llama.cpp can't tell which pieces of a word to join, so that answers "
            f"get worse; {_AGAIN}"
        )
    keys = [*(prefix + key for key in _END_KEYS), end_tokens]
    tokens = header.fields[prefix + "tokens"].data
    # A sentencepiece vocabulary ends by token 2 where no key says otherwise.
    if kind != "llama" and not any(key in header.fields for key in keys) and _END_TEXTS.isdisjoint(tokens):
        found.append(
            "no token ends an answer: tokenizer.ggml.eos_token_id is missing, so that answers go on until max_tokens; "
            f"{_AGAIN}"
        )
    return tuple(found)
