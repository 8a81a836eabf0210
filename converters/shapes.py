"""What a checkpoint would become, by shapes alone: for who asks whether it fits before converting or downloading it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from converters.architectures import for_config, llama4_vision
from converters.architectures.hyperparameters import Hyperparameters
from converters.checkpoint import Checkpoint
from converters.sources import open_checkpoint
from converters.sources.config_alone import open_config
from converters.targets import has_vision
from converters.targets.gguf import planned_entries
from edge_llama.errors import OptionError
from edge_llama.files.formats import FORMATS
from edge_llama.files.shape import PlannedTensor, TextShape
from edge_llama.files.vision_spec import VisionSpec
from quant.recipe import RECIPES

_MERGES_PER_TOKEN = 2.2
"""Of byte-level vocabularies whose tokenizer is not there to be counted: Llama 3 has 280,147 for 128,256 tokens."""
_WITHOUT_MERGES = 33_000
"""Vocabularies of no more tokens are sentencepiece's, as a rule."""


@dataclass(frozen=True)
class Sketch:
    """A checkpoint as a planner sees it."""

    checkpoint: Checkpoint

    @cached_property
    def hyperparameters(self) -> Hyperparameters:
        """What config.json says. CheckpointError names the field that is missing or wrong."""
        return for_config(self.checkpoint).hyperparameters(self.checkpoint)

    def text(self, quant: str) -> TextShape:
        """The text tower as a GGUF file by the recipe ``quant``. OptionError for one that nobody knows."""
        if quant not in RECIPES:
            raise OptionError(f"--quant {quant}: unknown", remedy=f"known: {', '.join(RECIPES)}")
        hp = self.hyperparameters
        entries = planned_entries(self.checkpoint, quant)
        tensors = tuple(PlannedTensor(entry.tensor.name, entry.tensor.shape, entry.format) for entry in entries)
        used = max(1, hp.n_expert_used) + (hp.n_ff_dense > 0)  # Llama 4 has a shared expert beside those
        n_vocab = len(self.checkpoint.vocabulary.tokens) or hp.n_vocab
        return TextShape(
            name=self.checkpoint.name,
            engine="llama.cpp",
            tensors=tensors,
            weight_bytes=sum(tensor.nbytes for tensor in tensors),
            n_layer=hp.n_layer,
            n_ctx_train=hp.n_ctx,
            n_embd=hp.n_embd,
            n_head=hp.n_head,
            n_head_kv=hp.n_head_kv,
            head_dim=hp.head_dim,
            n_ff=max(hp.n_ff_dense, hp.n_ff * (used if hp.n_expert else 1)),
            n_vocab=n_vocab,
            kv_values_per_token=2 * hp.kv * hp.n_layer,
            n_merges=self._n_merges(n_vocab),
            n_expert=hp.n_expert,
            n_expert_used=hp.n_expert_used,
            has_windows=hp.chunk_size is not None or any(hp.window_layers),
            has_output=not hp.tied,
        )

    def _n_merges(self, n_vocab: int) -> int:
        if self.checkpoint.vocabulary.tokens:
            return len(self.checkpoint.vocabulary.merges or ())
        return 0 if n_vocab <= _WITHOUT_MERGES else round(_MERGES_PER_TOKEN * n_vocab)

    def vision(self, quant: str) -> tuple[int, llama4_vision.Hyperparameters, VisionSpec] | None:
        """Bytes of the vision tower's weights, its sizes, and how images are cut for it; None if there is none."""
        if not has_vision(self.checkpoint):
            return None
        hp = llama4_vision.hyperparameters(self.checkpoint)
        format_ = FORMATS.get(quant) or FORMATS["f16"]
        weights = sum(tensor.rows * tensor.columns for tensor in llama4_vision.tensors(self.checkpoint, hp).values())
        return weights * format_.block_bytes // format_.block_size, hp, llama4_vision.spec(self.checkpoint)


def sketch(source: Path) -> Sketch:
    """The checkpoint at ``source``: what :func:`converters.sources.open_checkpoint` takes, or a config.json alone.

    CheckpointError if it is none of these.
    """
    if (config := _config_alone(source)) is None:
        return Sketch(open_checkpoint(source))
    return Sketch(open_config(config))


def _config_alone(source: Path) -> Path | None:
    """The config.json that is meant, if there are no weights beside it."""
    config = source / "config.json" if source.is_dir() else source
    if config.suffix != ".json" or not config.is_file():
        return None
    has_weights = source.is_dir() and any(source.glob("*.safetensors*"))
    return None if has_weights else config
