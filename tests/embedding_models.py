"""Small encoders by transformers and llama.cpp's own converter, and what transformers gives for texts.

A BERT, whose vocabulary is that of BGE, word for word as llama.cpp's source has it: the converter knows vocabularies by
a hash. And an XLM-RoBERTa with a unigram vocabulary of sentencepiece.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import write_json
from engine_source import ENGINE, unpacked
from llama_cpp_converter import converted_by_llama_cpp
from numpy.typing import NDArray
from vocabularies import unigram_model

from edge_llama.files.gguf import read_header
from edge_llama.prompts.control_tokens import SPACE

BERT, XLM_ROBERTA = "bert/bert-f32.gguf", "xlm-roberta/xlm-roberta-f32.gguf"
POSITIONS = 96
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = (
    "The capital of Japan is Tokyo.",
    "Llamas carry 25 kg, don't they?",
    "naïve café, ÜBER allés",
    "東京は日本の首都です。 你好",
    "unaffordable internationalization",
    "a",
    "🦙🦙 \x00\x07tab\tand\nline",
    "word " * 40,
)
"""Word pieces, letters with marks, Chinese, and what the vocabulary has not."""


_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.2,
}


def write(folder: Path) -> None:
    """Both as checkpoints, and as GGUF files within them, which pool by the first token."""
    files = [folder / name for name in (BERT, XLM_ROBERTA)]
    for file, checkpoint in zip(files, (_bert, _xlm_roberta), strict=True):
        checkpoint(file.parent)
        _name_pooling(file.parent)
    converted_by_llama_cpp([(file.parent, file, "") for file in files])


def _name_pooling(folder: Path) -> None:
    """As sentence-transformers does it."""
    modules = [{"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True)


def _xlm_roberta(folder: Path) -> None:
    import torch  # noqa: PLC0415 - takes seconds to load
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel  # noqa: PLC0415

    folder.mkdir(parents=True)
    (folder / "sentencepiece.bpe.model").write_bytes(unigram_model())
    names = {f"{name}_token": f"<{name}>" for name in ("unk", "pad", "mask")}
    marks = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
    write_json(folder / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer", **names, **marks)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)  # as published folders have it
    torch.manual_seed(0)
    offset = 2  # of positions: they begin after that of the padding
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS + offset, **_SIZES)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)


def _bert(folder: Path) -> None:
    import torch  # noqa: PLC0415 - takes seconds to load
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    folder.mkdir(parents=True)
    words = _words()
    _tokenizer(words).save(str(folder / "tokenizer.json"))
    names = {f"{word.strip('[]').lower()}_token": word for word in SPECIAL}
    write_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **names)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=POSITIONS, **_SIZES)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def _words() -> list[str]:
    """BGE's vocabulary as BERT writes it, from the one with marks before words that GGUF has."""
    header = read_header(unpacked(version(ENGINE)) / "models" / "ggml-vocab-bert-bge.gguf")
    texts = header.fields["tokenizer.ggml.tokens"].data
    return [
        text if text in SPECIAL or text.startswith("[unused") else text[1:] if text[0] == SPACE else f"##{text}"
        for text in texts
    ]


def _tokenizer(words: Sequence[str]) -> Any:
    """As ``transformers`` makes it of BERT's vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415

    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    marks = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", marks)
    return tokenizer


def reference(checkpoint: Path, texts: Sequence[str], pooling: str) -> NDArray[np.float32]:
    """Vectors of unit length by transformers in float32, one text at a time."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModel.from_pretrained(checkpoint, dtype="float32").eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].numpy()
            row = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}[pooling]
            rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


def cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of vectors of unit length, row by row."""
    assert found.shape == expected.shape
    products: NDArray[np.float32] = (found * expected).sum(axis=1)
    return products
