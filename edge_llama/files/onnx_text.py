"""A text tower in a folder as onnxruntime-genai reads it: a graph, genai_config.json, a tokenizer. No native code.

The folder may be of another program. Nothing in it is believed before it was checked; of what is in genai_config.json
only that is read which is needed to run the graph.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from edge_llama.errors import ArtifactError, NotVerifiableError
from edge_llama.files.artifact import Recommended, Row
from edge_llama.files.formats import F32, Format
from edge_llama.files.gguf import TensorInfo
from edge_llama.files.identity import identity_of
from edge_llama.files.json_fields import Fields
from edge_llama.files.manifest import NAME as MANIFEST
from edge_llama.files.manifest import read_manifest
from edge_llama.files.onnx_graph_file import OnnxFile, data_of, read_onnx
from edge_llama.files.onnx_stages import files_named, is_staged
from edge_llama.files.shape import TextShape
from edge_llama.files.text_artifact import TextArtifact
from edge_llama.files.tokenizer_folder import (
    GENERATION,
    MAX_BYTES,
    SETTINGS,
    TEMPLATE,
    TOKENIZERS,
    chat_templates,
    more_templates,
    published_sampling,
    sampling_of,
    tokenizer_file,
)

CONFIG = "genai_config.json"
IMAGE_FEATURES = "image_features"
"""The input, an initializer that may be left out, whose rows stand where ``input_ids`` are negative: float32."""
HIDDEN_STATES = "hidden_states"
"""The output, which a graph may lack, of all positions after the last norm: float32 ``(batch, sequence, n_embd)``."""
POSITIONS = "position_ids"
_AGAIN = "copy the whole folder again, or convert again"
_MOST = {"layers": 10_000, "heads": 10_000, "width": 1 << 20, "vocabulary": 1 << 24, "context": 2**31 - 1}
_USUAL_FF = 4


@dataclass(frozen=True, slots=True)
class Names:
    """What the graph calls its inputs and outputs; keys and values by layer."""

    ids: str
    mask: str
    logits: str
    past: tuple[str, ...]
    """Key and value of the first layer, of the second, ..."""
    present: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact(TextArtifact):
    """A text tower for ONNX Runtime."""

    engine: ClassVar[str] = "onnxruntime"

    graph: OnnxFile = field(repr=False)
    names: Names = field(repr=False)
    n_embd: int
    n_kv_heads: int
    head_dim: int
    is_shared: bool
    """Whether the graph appends to the cache where it is; else it takes one and gives a longer one."""
    ends: frozenset[int]
    """Tokens that end an answer."""
    tokenizer: Path
    settings: Fields = field(repr=False)
    """tokenizer_config.json."""
    config: Fields = field(repr=False)
    """genai_config.json."""
    begins: int | None = None
    """The token that every text must begin with, for the graphs take no other; None: they take any."""

    @property
    def kv_format(self) -> Format:
        """float32, in which attention is computed."""
        return F32

    @property
    def graphs(self) -> tuple[OnnxFile, ...]:
        """All that the tower has, the one by which it is known first."""
        return (self.graph,)

    @property
    def form(self) -> str:
        """ONNX."""
        return "ONNX"

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The weights that lie beside the graphs."""
        return tuple(tensor for tensors in data_of(self.graphs).values() for tensor in tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The graphs' files, and those of their weights."""
        return (*(graph.path for graph in self.graphs), *data_of(self.graphs))

    @property
    def weight_bytes(self) -> int:
        """Bytes of these files: a tensor may serve twice."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def n_weights(self) -> int | None:
        """None: several weights are packed into a number."""
        return None

    @property
    def shape(self) -> TextShape:
        """By genai_config.json, which does not tell how wide the feed-forward part is: as wide as most are."""
        decoder = self.config.within("model").within("decoder")
        return TextShape(
            name=self.name,
            engine=self.engine,
            tensors=self.tensors,
            weight_bytes=self.weight_bytes,
            n_layer=self.n_layer,
            n_ctx_train=self.n_ctx_train,
            n_embd=self.n_embd,
            n_head=decoder.get("num_attention_heads", int, self.n_kv_heads),
            n_head_kv=self.n_kv_heads,
            head_dim=self.head_dim,
            n_ff=_USUAL_FF * self.n_embd,
            n_vocab=self.n_vocab,
            kv_values_per_token=self.kv_values_per_token,
        )

    @property
    def takes_embeddings(self) -> bool:
        """Whether images can be given to the graph."""
        return IMAGE_FEATURES in self.graph.inputs

    @property
    def gives_hidden_states(self) -> bool:
        """Whether the graph has an output for them."""
        return HIDDEN_STATES in self.graph.outputs

    def identity(self) -> str:
        """By the graphs, the tokenizer, and weights as :func:`edge_llama.files.identity.identity_of` has them."""
        return self._identity

    def metadata(self) -> Mapping[str, Any]:
        """genai_config.json, objects within objects as one, their keys with dots between."""
        return dict(_flat(self.config.content))

    def rows(self) -> Sequence[Row]:
        """The same for people."""
        return [(key, type(value).__name__, str(value)) for key, value in self.metadata().items()]

    def verify(self, on_progress: Callable[[int], None]) -> None:  # noqa: ARG002 - there is nothing to check
        """NotVerifiableError: only a bundle's manifest has hashes of an ONNX folder."""
        raise NotVerifiableError(
            f"{self.path}: its structure is sound, but there are no hashes to verify its contents",
            remedy="convert the original checkpoint with edge-llama to have them",
        )

    @cached_property
    def _identity(self) -> str:
        def whole(path: Path) -> tuple[Path, int, Sequence[TensorInfo]]:
            return path, path.stat().st_size, ()

        graphs = [whole(graph.path) for graph in self.graphs]
        data = [(file, 0, tensors) for file, tensors in data_of(self.graphs).items()]
        return identity_of([*graphs, *data, whole(self.tokenizer)])


class Described(TypedDict):
    """What of :class:`OnnxArtifact` is read beside a graph, the same for every kind of graph."""

    path: Path
    name: str
    architecture: str
    chat_template: str | None
    named_templates: Mapping[str, str]
    n_layer: int
    n_ctx_train: int
    n_vocab: int
    sampling: tuple[Recommended, ...]
    n_embd: int
    n_kv_heads: int
    head_dim: int
    ends: frozenset[int]
    tokenizer: Path
    settings: Fields
    config: Fields


def is_text_file(path: Path) -> bool:
    """Whether ``path`` is the text tower's ONNX file in its folder. ArtifactError if what should say is damaged."""
    return (path.parent / CONFIG).is_file() and text_file(path.parent).name == path.name


def text_file(folder: Path) -> Path:
    """The text tower's file in ``folder``, by its genai_config.json. ArtifactError if that names none."""
    return files_named(genai_config(folder), folder)[0]


def files_of(path: Path) -> tuple[Path, ...]:
    """Everything that is read of the text tower at ``path``: its graphs, their weights, and what lies beside them."""
    folder = path.parent
    config = genai_config(folder)
    graphs = list(map(read_onnx, files_named(config, folder) if is_staged(config) else (path,)))
    beside = [folder / name for name in (CONFIG, SETTINGS, *TOKENIZERS, GENERATION, TEMPLATE)]
    there = (file for file in (*beside, *more_templates(folder)) if file.exists())
    return (*(graph.path for graph in graphs), *data_of(graphs), *there)


def read_onnx_text(path: Path) -> OnnxArtifact:
    """Read what lies beside the graph at ``path`` and check what a text tower needs.

    ArtifactError names what is wrong: the file, the field, and the value.
    """
    about = described(path)
    config, n_layer = about["config"], about["n_layer"]
    is_shared = config.within("search").get("past_present_share_buffer", bool, False)
    names = names_of(config, n_layer)
    values = 2 * n_layer * about["n_kv_heads"] * about["head_dim"]
    return OnnxArtifact(
        **about,
        kv_values_per_token=values * (1 if is_shared else 2),  # the old and the new
        graph=_graph(path, names),
        names=names,
        is_shared=is_shared,
    )


def described(path: Path) -> Described:
    """What lies beside the graph at ``path``: its shape, its tokenizer and how it is asked. ArtifactError as above."""
    folder = path.parent
    config, settings = genai_config(folder), Fields.read(folder / SETTINGS, MAX_BYTES, _AGAIN)
    model = config.within("model")
    decoder, n_vocab = model.within("decoder"), model.count("vocab_size", _MOST["vocabulary"])
    templates = chat_templates(folder, settings)
    return Described(
        path=path,
        name=_name(folder),
        architecture=model.get("type", str),
        chat_template=templates.pop("default", None),
        named_templates=templates,
        n_layer=decoder.count("num_hidden_layers", _MOST["layers"]),
        n_ctx_train=model.count("context_length", _MOST["context"]),
        n_vocab=n_vocab,
        sampling=_sampling(folder, config),
        n_embd=decoder.count("hidden_size", _MOST["width"]),
        n_kv_heads=decoder.count("num_key_value_heads", _MOST["heads"]),
        head_dim=decoder.count("head_size", _MOST["width"]),
        ends=frozenset(model.ids("eos_token_id", n_vocab)),
        tokenizer=tokenizer_file(folder),
        settings=settings,
        config=config,
    )


def genai_config(folder: Path) -> Fields:
    """The genai_config.json in ``folder``. ArtifactError if it can't be read or is no object."""
    return Fields.read(folder / CONFIG, MAX_BYTES, _AGAIN)


def names_of(config: Fields, n_layer: int) -> Names:
    """What the graph's inputs and outputs are called, by genai_config.json, else as onnxruntime-genai calls them."""
    decoder = config.within("model").within("decoder")
    inputs, outputs = decoder.within("inputs"), decoder.within("outputs")
    return Names(
        ids=inputs.get("input_ids", str, "input_ids"),
        mask=inputs.get("attention_mask", str, "attention_mask"),
        logits=outputs.get("logits", str, "logits"),
        past=_by_layer(inputs, "past", "past_key_values", n_layer),
        present=_by_layer(outputs, "present", "present", n_layer),
    )


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(folder: Path) -> str:
    return read_manifest(folder).name if (folder / MANIFEST).exists() else folder.resolve().name


def _by_layer(fields: Fields, when: str, usual: str, n_layer: int) -> tuple[str, ...]:
    patterns = [fields.get(f"{when}_{kind}_names", str, f"{usual}.%d.{kind}") for kind in ("key", "value")]
    for kind, pattern in zip(("key", "value"), patterns, strict=True):
        if pattern.count("%d") != 1 or pattern.count("%") != 1:
            raise fields.fail(f"{when}_{kind}_names", f"is {pattern!r:.100}, expected a name with one %d for the layer")
    return tuple(pattern % layer for layer in range(n_layer) for pattern in patterns)


def _graph(path: Path, names: Names) -> OnnxFile:
    """The graph, which must have these inputs and outputs, and no other input that must be given."""
    graph = read_onnx(path)
    inputs, outputs = (names.ids, names.mask, *names.past), (names.logits, *names.present)
    for kind, wanted, found in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        if missing := next((name for name in wanted if name not in found), None):
            raise ArtifactError(
                f"{path}: the graph has no {kind} {missing!r:.100}, which {CONFIG} names", remedy=_AGAIN
            )
    return graph


def _sampling(folder: Path, config: Fields) -> tuple[Recommended, ...]:
    """The publisher's settings: of generation_config.json, else of genai_config.json where it means to draw."""
    if (folder / GENERATION).is_file():
        return published_sampling(folder)
    search = config.within("search")
    return sampling_of(f"{CONFIG}: search", search.content) if search.get("do_sample", bool, False) else ()
