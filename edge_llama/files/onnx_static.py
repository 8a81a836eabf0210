"""A text tower for NPUs in a folder: graphs of fixed shapes that compute in integers, in stages. No native code.

One graph reads a window of a prompt and one a token, with the same weights; a third, for the CPU, makes of ids and
positions what both take. Keys and values of all positions come in from outside, the new ones go out. Such a graph may
have those of position 0 within it, which is then the same token in every text: its activations are so large that the
ranges of all others would be coarse (:mod:`edge_llama.backends.onnxruntime.static` runs them).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_llama.errors import ArtifactError
from edge_llama.files.formats import FORMATS, Format
from edge_llama.files.json_fields import Fields
from edge_llama.files.onnx_graph_file import OnnxFile, read_onnx
from edge_llama.files.onnx_stages import is_staged, stages_named
from edge_llama.files.onnx_text import CONFIG, POSITIONS, Names, OnnxArtifact, described, genai_config, names_of

EMBEDS, MASK, COS, SIN = "embeds", "mask", "cos", "sin"
"""What the first graph makes of ids and positions, and the others take; the mask is added to scores."""
HIDDEN = -1e4
"""What the mask adds to the score of a place that is not seen; the graphs' ranges are measured for it."""
_AGAIN = "copy the whole folder again, or convert again"
_STORED: Mapping[str, Format] = {"u8": FORMATS["i8"], "u16": FORMATS["i16"]}
"""How keys and values may be stored, by ONNX's names: as wide as these."""
_Value = tuple[str, tuple[int | None, ...]]
"""An input or output: the format of its numbers, and its sizes, of which None is any."""


def handed_on(layer: int) -> str:
    """What a graph takes that begins with ``layer``: embeddings, or what the layer before gave, as ours are called."""
    return f"layers.{layer - 1}.mlp.residual" if layer else EMBEDS


@dataclass(frozen=True, kw_only=True)
class StaticArtifact(OnnxArtifact):
    """A text tower for NPUs; ``graph`` is the first of those that read a window of a prompt."""

    prompts: tuple[OnnxFile, ...] = field(repr=False)
    """The graphs that read a window of a prompt: one, or several by layers."""
    tokens: tuple[OnnxFile, ...] = field(repr=False)
    """The graphs that read a token, likewise."""
    inputs: OnnxFile = field(repr=False)
    """The graph that runs on the CPU, before the others."""
    positions: str
    """What that calls its input of positions."""
    window: int
    """Tokens that a prompt's graph reads at once."""
    context: int
    """Positions that the graphs see: earlier ones, and their own; one more where they have the first within them."""
    stored: Format
    """Keys and values: of one byte or of two, whose middle (128, 32,768) is zero."""

    @property
    def form(self) -> str:
        """ONNX, and for what."""
        return "ONNX for NPUs"

    @property
    def kv_format(self) -> Format:
        """As the graphs store them."""
        return self.stored

    @property
    def graphs(self) -> tuple[OnnxFile, ...]:
        """Those of a prompt, those of a token, and the one before both."""
        return *self.prompts, *self.tokens, self.inputs

    @property
    def takes_embeddings(self) -> bool:
        """It takes nothing else."""
        return True

    @property
    def gives_hidden_states(self) -> bool:
        """Only the logits of its last row."""
        return False


def is_static(path: Path) -> bool:
    """Whether the text tower at ``path`` is such a one. ArtifactError if its genai_config.json is damaged."""
    return is_staged(genai_config(path.parent))


def read_static(path: Path) -> StaticArtifact:
    """Read the graphs in the folder of ``path`` and what lies beside them, and check that they belong together.

    ArtifactError names what is wrong: the file, the field, and the value.
    """
    stages = stages_named(genai_config(path.parent), path.parent)
    about = described(stages.prompts[0])
    model = about["config"].within("model")
    decoder, context = model.within("decoder"), about["n_ctx_train"]
    if about["head_dim"] % 2:
        raise decoder.fail("head_size", f"is {about['head_dim']:,}, expected an even number")
    names = names_of(about["config"], about["n_layer"])
    positions = decoder.within("inputs").get("position_ids", str, POSITIONS)
    prompts, tokens = (_row_graphs(files, names) for files in (stages.prompts, stages.tokens))
    prompt = prompts[0]
    begins = _begins(model, prompt, context, about["n_vocab"])
    # A token's graph takes one position less than it sees; that is the first, where it has the first within it.
    about["n_ctx_train"] = context - (begins is None)
    artifact = StaticArtifact(
        **about,
        kv_values_per_token=2 * 2 * about["n_layer"] * about["n_kv_heads"] * about["head_dim"],  # for both graphs
        graph=prompt,
        names=names,
        is_shared=False,
        begins=begins,
        warnings=_warnings(begins, about["settings"]),
        prompts=prompts,
        tokens=tokens,
        inputs=_graph(stages.inputs, (names.ids, names.mask, positions), (EMBEDS, COS, SIN)),
        positions=positions,
        window=_window(decoder, prompt, context),
        context=context,
        stored=_stored(prompts, names),
    )
    _check_inputs(artifact)
    _check_rows(artifact, artifact.prompts, artifact.window)
    _check_rows(artifact, artifact.tokens, 1)
    return artifact


def _row_graphs(files: Sequence[Path], names: Names) -> tuple[OnnxFile, ...]:
    """The graphs of all layers. Each takes what the one before gave, the last gives logits."""
    graphs = []
    takes = EMBEDS
    for number, path in enumerate(files):
        is_last = number == len(files) - 1
        graph = _graph(path, (takes, MASK, COS, SIN), (names.logits,) if is_last else ())
        graphs.append(graph)
        if not is_last:
            takes = _handed_on(graph, names)
    for kind, wanted, found in (
        ("input", names.past, [name for graph in graphs for name in graph.inputs]),
        ("output", names.present, [name for graph in graphs for name in graph.outputs]),
    ):
        if odd := next((name for name in wanted if found.count(name) != 1), None):
            where = ", ".join(path.name for path in files)
            raise ArtifactError(
                f"{files[0]}: {found.count(odd) or 'no'} {kind}s {odd!r:.100} in {where}, which {CONFIG} names",
                remedy=_AGAIN,
            )
    return tuple(graphs)


def _handed_on(graph: OnnxFile, names: Names) -> str:
    """What a graph gives to the next: its only output that is neither keys nor values."""
    found = [name for name in graph.outputs if name not in names.present]
    if len(found) != 1:
        given = ", ".join(found) or "nothing"
        raise ArtifactError(f"{graph.path}: gives {given[:200]} to the next graph, expected one value", remedy=_AGAIN)
    return found[0]


def _graph(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> OnnxFile:
    """The graph at ``path``, which must have these inputs and outputs."""
    graph = read_onnx(path)
    for kind, wanted, found in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        if missing := next((name for name in wanted if name not in found), None):
            whose = "this version needs" if missing in (EMBEDS, MASK, COS, SIN) else f"{CONFIG} names"
            raise ArtifactError(f"{path}: the graph has no {kind} {missing!r:.100}, which {whose}", remedy=_AGAIN)
    return graph


def _begins(model: Fields, prompt: OnnxFile, context: int, n_vocab: int) -> int | None:
    """The token of position 0 where the graphs have that within them: the mask has a column more."""
    mask = prompt.types[MASK]
    columns = mask.shape[-1] if mask.shape else None
    if columns not in (context, context + 1):
        raise model.fail("context_length", f"is {context:,}, but {prompt.path} has the input {MASK!r} as {mask}")
    if columns == context:
        return None
    ids = model.ids("bos_token_id", n_vocab)
    if len(ids) != 1:
        raise model.fail("bos_token_id", f"is {[*ids]}, expected the token that {prompt.path} has at position 0")
    return ids[0]


def _window(decoder: Fields, prompt: OnnxFile, context: int) -> int:
    """Rows of a prompt's graph.

    At most half of the context, as onnxruntime-genai has it: or else it would soon hold too little of what was before.
    """
    fields = decoder.within("sliding_window")
    window, embeds = fields.count("window_size", context // 2), prompt.types[EMBEDS]
    if embeds.shape[1:2] != (window,):
        raise fields.fail("window_size", f"is {window:,}, but {prompt.path} has the input {EMBEDS!r} as {embeds}")
    return window


def _stored(prompts: Sequence[OnnxFile], names: Names) -> Format:
    """How keys and values are stored, by the first of them."""
    prompt = next(graph for graph in prompts if names.past[0] in graph.types)
    told = prompt.types[names.past[0]]
    stored = _STORED.get(told.format.name) if told.format else None
    if stored is None:
        raise ArtifactError(
            f"{prompt.path}: the graph has the input {names.past[0]!r:.100} as {told}, expected u8 or u16",
            remedy="convert again",
        )
    return stored


def _warnings(begins: int | None, settings: Fields) -> tuple[str, ...]:
    """Of a token before every text that the tokenizer would not put there, as far as its settings tell."""
    if begins is None or settings.content.get("add_bos_token") is not False:
        return ()
    given = settings.content.get("bos_token")
    text = given.get("content") if isinstance(given, dict) else given
    called = text if isinstance(text, str) else f"token {begins:,}"
    return (f"every text begins with {called}, which the tokenizer does not ask for: the graphs were made for that",)


def _check_inputs(artifact: StaticArtifact) -> None:
    """The graph before the others takes and gives what genai_config.json says."""
    names, half = artifact.names, artifact.head_dim // 2
    turn = _value("f32", 1, 1, None, half)
    values = {
        names.ids: _value("i32", 1, None),
        names.mask: _value("i32", 1, artifact.context),
        artifact.positions: _value("i32", 1, None),
        EMBEDS: _value("f32", 1, None, artifact.n_embd),
        COS: turn,
        SIN: turn,
    }
    _check(artifact.inputs, values)


def _check_rows(artifact: StaticArtifact, graphs: Sequence[OnnxFile], count: int) -> None:
    """The graphs take and give what genai_config.json says for ``count`` rows."""
    names, context, past = artifact.names, artifact.context, artifact.context - count
    heads, width = artifact.n_kv_heads, artifact.head_dim
    cache = next(name for name, stored in _STORED.items() if stored is artifact.stored)
    turn = _value("f32", 1, 1, count, width // 2)
    values = {
        EMBEDS: _value("f32", 1, count, artifact.n_embd),
        MASK: _value("f32", 1, 1, count, context + (artifact.begins is not None)),
        COS: turn,
        SIN: turn,
        names.logits: _value("f32", 1, 1, artifact.n_vocab),
        **dict.fromkeys(names.past[::2], _value(cache, heads, 1, width, past)),
        **dict.fromkeys(names.past[1::2], _value(cache, heads, 1, past, width)),
        **dict.fromkeys(names.present[::2], _value(cache, heads, 1, width, count)),
        **dict.fromkeys(names.present[1::2], _value(cache, heads, 1, count, width)),
    }
    values |= dict.fromkeys((_handed_on(graph, names) for graph in graphs[:-1]), values[EMBEDS])
    for graph in graphs:
        _check(graph, {name: value for name, value in values.items() if name in graph.types})


def _value(format_: str, *sizes: int | None) -> _Value:
    return format_, sizes


def _check(graph: OnnxFile, values: Mapping[str, _Value]) -> None:
    """ArtifactError for the first input or output that is another; where the graph leaves a size open it may be any."""
    for name, (format_, sizes) in values.items():
        found = graph.types[name]
        is_format = found.format is not None and found.format.name == format_
        if not is_format or len(found.shape) != len(sizes) or not all(map(_fits, found.shape, sizes)):
            kind = "input" if name in graph.inputs else "output"
            wanted = ", ".join("?" if size is None else str(size) for size in sizes)
            raise ArtifactError(
                f"{graph.path}: the graph has the {kind} {name!r:.100} as {found}, expected {format_} [{wanted}] by "
                f"{CONFIG}",
                remedy=f"they do not belong together: {_AGAIN}",
            )


def _fits(found: int | None, wanted: int | None) -> bool:
    return None in (found, wanted) or found == wanted
