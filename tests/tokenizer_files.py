"""Tokenizer files at work without a model: by the two engines of the runtime."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.metadata.vocabulary import Vocabulary, to_gguf
from converters.tokenizers.writer import write_files
from edge_llama.backends.llama_cpp.text import the_engine
from edge_llama.backends.llama_cpp.tokenizer import GGUFTokenizer, overrides
from edge_llama.files import text_rules
from edge_llama.files.gguf import encode_header, read_header, string
from edge_llama.files.json_fields import Fields
from edge_llama.files.onnx_graph_file import OnnxFile
from edge_llama.files.onnx_text import Names, OnnxArtifact


@contextmanager
def by_llama_cpp(vocabulary: Vocabulary, folder: Path) -> Iterator[GGUFTokenizer]:
    """The vocabulary as a GGUF file without weights, open."""
    fields = {"general.architecture": string("llama"), **to_gguf(vocabulary), **text_rules.to_gguf(vocabulary.rules)}
    path = folder / "vocabulary.gguf"
    path.write_bytes(encode_header(fields, [])[0])
    lib, header = the_engine(), read_header(path)
    options = lib.llama_model_default_params()
    options.vocab_only = True
    options.kv_overrides = overrides(lib, header)
    model = lib.llama_model_load_from_file(os.fsencode(path), options)
    assert model
    tokenizer = GGUFTokenizer(lib, lib.llama_model_get_vocab(model), header)
    yield tokenizer
    tokenizer.close()
    lib.llama_model_free(model)


def written(vocabulary: Vocabulary, folder: Path) -> Path:
    """The folder, with the tokenizer files that the vocabulary becomes."""
    folder.mkdir(exist_ok=True)
    for name, content in write_files(vocabulary, folder).items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(vocabulary.tokens)}), "utf-8")
    return folder


def artifact(folder: Path, name: str = "tokenizer.json") -> OnnxArtifact:
    """The folder of a checkpoint as if there was a graph in it: only what a tokenizer reads."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config = config.get("text_config", config) | config
    vocab = config.get("vocab_size") or config["text_config"]["vocab_size"]
    generation = json.loads(path.read_text()) if (path := folder / "generation_config.json").exists() else config
    ends = generation.get("eos_token_id", [])
    return OnnxArtifact(
        path=folder / "model.onnx",
        name=folder.name,
        architecture="llama",
        chat_template=None,
        n_layer=1,
        n_ctx_train=1,
        n_vocab=vocab,
        kv_values_per_token=1,
        graph=OnnxFile(folder, (), (), {}),
        names=Names("", "", "", (), ()),
        n_embd=1,
        n_kv_heads=1,
        head_dim=1,
        is_shared=True,
        ends=frozenset(ends if isinstance(ends, list) else [ends]),
        tokenizer=folder / name,
        settings=Fields.read(folder / "tokenizer_config.json", 1 << 24, "remedy"),
        config=Fields(folder, {}, "remedy"),
    )
