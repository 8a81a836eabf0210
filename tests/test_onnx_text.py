"""Text towers in ONNX: the numbers of transformers, however they are read, and everything that a GGUF file can do."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import takewhile
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import onnx
import onnx_llama
import pytest
from refusals import refusal
from texts import CONVERSATIONS

import edge_llama
from edge_llama.artifact import locate, read_artifact, read_bundle, read_towers
from edge_llama.backends import first_run, onnx_prepacked
from edge_llama.backends.base import AbortedError
from edge_llama.backends.onnx_text import OnnxTower, require
from edge_llama.errors import ArtifactError, EngineError, NotVerifiableError, OptionError
from edge_llama.manifest import NAME, Manifest, StoredFile, Tower, sha256_of
from edge_llama.onnx_text import OnnxArtifact, read_onnx_text

EXACT = 1e-3
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llama2": checkpoints.llama2,
    "llama3": lambda folder: checkpoints.llama3(folder, dtype="F32"),
    "smollm": checkpoints.smollm,
}


class Case:
    """A checkpoint, its ONNX folder, and transformers' model of it."""

    def __init__(self, source: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - torch takes seconds to load

        self.folder = folder
        self.reference = AutoModelForCausalLM.from_pretrained(source, dtype="float32")

    def logits(self, tokens: Sequence[int]) -> Any:
        """After each of the tokens, float32 ``(n, n_vocab)``."""
        import torch  # noqa: PLC0415

        with torch.no_grad():
            return self.reference(torch.tensor([tokens])).logits[0].numpy()


@pytest.fixture(scope="module", params=[(name, shared) for name in FAMILIES for shared in (True, False)], ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, shared = request.param
    folder = tmp_path_factory.mktemp(name)
    source = FAMILIES[name](folder / "source")
    return Case(source, onnx_llama.write(source, folder / "onnx", shared=shared, every_row=name == "smollm"))


@pytest.fixture(scope="module")
def folder(llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 3 that appends to its cache in place and takes images."""
    return onnx_llama.write(llama3, tmp_path_factory.mktemp("folder") / "tiny", images=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[edge_llama.Model]:
    with edge_llama.open(folder, n_ctx=2048, threads=1) as opened:
        yield opened


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def opened(folder: Path, n_ctx: int = 256, n_batch: int = 512) -> Any:
    return closing(OnnxTower(text(folder), n_ctx=n_ctx, threads=1, n_batch=n_batch))


def text(folder: Path) -> OnnxArtifact:
    return read_onnx_text(locate(folder))


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_logits_are_transformers_however_a_prompt_is_read(case: Case, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, case.reference.config.vocab_size, 120).tolist()
    expected = case.logits(tokens)
    with opened(case.folder, n_batch=64) as tower:
        for size in (64, 33, 5, 1):
            tower.rewind(0)
            for start in range(0, len(tokens), size):
                tower.decode(tokens[start : start + size])
                last = min(start + size, len(tokens)) - 1
                np.testing.assert_allclose(tower.logits(), expected[last], atol=EXACT, rtol=0)
        tower.rewind(50)
        tower.decode(tokens[50:70])
        np.testing.assert_allclose(tower.logits(), expected[69], atol=EXACT, rtol=0)


def test_a_cache_goes_on_in_another_tower(case: Case, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, case.reference.config.vocab_size, 60).tolist()
    with opened(case.folder) as first, opened(case.folder, n_ctx=64) as second:
        first.decode(tokens[:40])
        kept, logits = first.save(), first.logits()
        assert kept.nbytes == first.saved_bytes
        second.decode(tokens[:7])
        second.load(kept, 40, logits)
        assert np.array_equal(second.logits(), logits)
        for tower in (first, second):
            tower.decode(tokens[40:])
        np.testing.assert_allclose(second.logits(), case.logits(tokens)[-1], atol=EXACT, rtol=0)
        assert np.array_equal(first.logits(), second.logits())
        with pytest.raises(EngineError, match="a cache of"):
            second.load(kept, 39, None)
        assert second.length == 0
        second.decode(tokens)
        np.testing.assert_allclose(second.logits(), case.logits(tokens)[-1], atol=EXACT, rtol=0)


def messages(conversation: list[dict[str, str]]) -> list[edge_llama.Message]:
    return [edge_llama.Message(**message) for message in conversation]


def test_prompts_and_greedy_answers_are_transformers(case: Case) -> None:
    import torch  # noqa: PLC0415
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415

    is_llama2 = (case.folder / "tokenizer.model").exists()
    theirs = (PreTrainedTokenizerFast if is_llama2 else AutoTokenizer).from_pretrained(case.folder)
    with edge_llama.open(case.folder, n_ctx=1024, threads=1) as model:
        for conversation in CONVERSATIONS:
            prompt = theirs.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
            assert model.template.tokens(messages(conversation)) == prompt
            answer = model.answer(messages(conversation), temperature=0, max_tokens=12).result()
            made = case.reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
            wanted = list(takewhile(lambda token: not model.tokenizer.is_end(token), made.tolist()))
            assert list(answer.tokens) == wanted


def test_a_chat_is_parked_saved_and_resumed_without_reading_again(
    model: edge_llama.Model, folder: Path, tmp_path: Path
) -> None:
    chats = [model.chat(system=f"You are number {number}. {'Be kind. ' * 20}") for number in range(2)]
    for text_ in ("Hello", "And then?"):
        answers = [chat.send(text_, temperature=0, max_tokens=5).result() for chat in chats]
    assert all(answer.timings.cached_tokens > 60 for answer in answers)
    chats[0].save(tmp_path / "a.session")
    script = "import sys, edge_llama; m = edge_llama.open(sys.argv[1], **edge_llama.session_settings(sys.argv[2])); "
    script += "c = m.load_chat(sys.argv[2]); a = c.send('More', temperature=0, max_tokens=5).result(); "
    script += "print(c.reread_reason, a.timings.cached_tokens, *a.tokens)"
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "a.session")]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split()
    answer = chats[0].send("More", temperature=0, max_tokens=5).result()
    assert out[0] == "None"
    assert int(out[1]) == answer.timings.cached_tokens > 60
    assert tuple(map(int, out[2:])) == answer.tokens


def test_an_answer_fits_its_schema(model: edge_llama.Model) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    answer = model.chat().send("A number", json_schema=schema, max_tokens=200, seed=3).result()
    if answer.finish_reason == "stop":
        assert json.loads(answer.text)["n"] <= 99
    assert answer.text.lstrip().startswith("{")
    assert model.generate("It is", regex="(yes|no)", max_tokens=8).result().text in ("yes", "no")


def test_a_run_that_is_stopped_appended_nothing(folder: Path, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 900, 400).tolist()
    with opened(folder, n_ctx=1024) as tower:
        tower.decode(tokens[:10])
        timer = threading.Timer(0.02, tower.abort)
        timer.start()

        def read() -> None:
            while True:
                tower.rewind(10)
                tower.decode(tokens[10:])

        with pytest.raises(AbortedError):  # either within a run or before the next
            read()
        timer.join()
        assert tower.length == 10
        with pytest.raises(AbortedError):
            tower.decode(tokens[:1])
        tower.resume()
        tower.decode(tokens[10:])
        stopped = tower.logits()
        tower.rewind(0)
        tower.decode(tokens)
        np.testing.assert_allclose(stopped, tower.logits(), atol=EXACT, rtol=0)


def test_cancelling_a_long_prompt_leaves_a_model_that_answers(model: edge_llama.Model) -> None:
    before = model.generate("Once upon", temperature=0, max_tokens=6).result()
    long = model.generate("word " * 900, max_tokens=400)
    long.cancel()
    assert long.result().finish_reason == "cancelled"
    assert model.generate("Once upon", temperature=0, max_tokens=6).result().tokens == before.tokens


def test_embeddings_stand_where_tokens_would(folder: Path, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, 900, 30).tolist()
    table = next(
        onnx.numpy_helper.to_array(tensor, str(folder))
        for tensor in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
        if tensor.name == "model.embed_tokens.weight"
    )
    with opened(folder) as tower:
        tower.decode(tokens)
        whole = tower.logits()
        tower.rewind(10)
        tower.decode_embeddings(table[tokens[10:20]])
        tower.decode(tokens[20:])
        np.testing.assert_allclose(tower.logits(), whole, atol=EXACT, rtol=0)
        for odd in (table[:3, :-1], table[:0], table[0]):
            with pytest.raises(EngineError, match="embeddings have the shape"):
                tower.decode_embeddings(odd)


def test_a_graph_that_takes_no_images_refuses_a_vision_tower(llama3: Path, bundle: Path, tmp_path: Path) -> None:
    folder = onnx_llama.write(llama3, tmp_path / "blind")
    with refusal(ArtifactError, "takes no images", folder):
        edge_llama.open(folder, vision=bundle, n_ctx=64)


def test_a_full_context_and_a_closed_tower_are_errors(folder: Path) -> None:
    with opened(folder, n_ctx=16) as tower, pytest.raises(EngineError, match="17 positions don't fit"):
        tower.decode([1] * 17)
    with pytest.raises(EngineError, match="closed"):
        tower.decode([1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_format": "f16"}, "kv_format is 'f16', but ONNX Runtime runs"),
        ({"flash_attention": False}, "flash_attention is False"),
        ({"device": "gpu"}, "device gpu: unknown to ONNX Runtime"),
        ({"n_ctx": 5000}, "expected a whole number from 2 to 4,096"),
    ],
)
def test_options_of_another_engine_are_errors(options: dict[str, Any], told: str, folder: Path) -> None:
    with refusal(OptionError, told) if "n_ctx" not in options else pytest.raises(OptionError, match=told):
        edge_llama.open(folder, **options)


def test_a_device_that_this_build_has_not_is_an_error(folder: Path) -> None:
    with pytest.raises(EngineError, match="device cuda: this onnxruntime has no CUDAExecutionProvider"):
        edge_llama.open(folder, device="cuda")


def test_the_model_is_found_by_folder_and_by_file(folder: Path) -> None:
    assert locate(folder) == folder / "model.onnx" == read_towers(folder / "model.onnx").text
    artifact = read_artifact(folder / "model.onnx")
    assert (artifact.engine, artifact.n_ctx_train, artifact.n_vocab) == ("onnxruntime", 4096, 1010)
    assert artifact.kv_values_per_token == 3 * 2 * 2 * 32
    options = {entry.option: entry.value for entry in artifact.sampling}
    assert options == {"temperature": 0.6, "top_p": 0.9}


def test_what_genai_draws_by_is_taken_where_the_publisher_says_nothing(copied: Path) -> None:
    (copied / "generation_config.json").unlink()
    search = {"do_sample": True, "top_k": 7}
    edited(copied / "genai_config.json", lambda content: content["search"].update(search))
    assert [(entry.option, entry.value) for entry in text(copied).sampling] == [("top_k", 7)]
    edited(copied / "genai_config.json", lambda content: content["search"].update(do_sample=False))
    assert text(copied).sampling == ()


def sealed(folder: Path, *left_out: str) -> Path:
    """The folder with a manifest of all its files but these."""
    files = [file for file in sorted(folder.iterdir()) if file.name not in left_out]
    stored = {file.name: StoredFile(file.stat().st_size, sha256_of(file)) for file in files}
    manifest = Manifest("Tiny", "a test", stored, Tower("onnxruntime", "model.onnx"))
    (folder / NAME).write_bytes(manifest.encode())
    return folder


def test_a_bundle_has_its_name_and_every_file_is_verified(copied: Path) -> None:
    from edge_llama import manifest  # noqa: PLC0415

    sealed(copied)
    manifest.verify(copied)
    assert read_bundle(copied).text == copied / "model.onnx"
    assert text(copied).name == "Tiny"
    with edge_llama.open(copied, n_ctx=64) as model:
        assert model.generate("a", max_tokens=2).result().tokens
    raw = bytearray((copied / "model.onnx").read_bytes())
    raw[-1] ^= 1
    (copied / "model.onnx").write_bytes(raw)
    with refusal(ArtifactError, "is not as it was written", copied / "model.onnx"):
        edge_llama.open(copied, n_ctx=64)


@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx.data"])
def test_a_manifest_that_does_not_list_what_is_read_is_refused(name: str, copied: Path) -> None:
    sealed(copied, name)
    with refusal(ArtifactError, f"{name}' is missing", copied):
        edge_llama.open(copied, n_ctx=64)


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edited(folder / "genai_config.json", change)


def decoder(**fields: Any) -> Callable[[Path], None]:
    return config(lambda content: content["model"]["decoder"].update(fields))


def settings(**fields: Any) -> Callable[[Path], None]:
    return config(lambda content: content["model"].update(fields))


def graph(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return edit


def renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for values in (model.graph.input, model.graph.output):
            for value in values:
                value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return change


def located(name: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name

    return change


def typed(name: str, kind: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(value for value in model.graph.input if value.name == name).type.tensor_type.elem_type = kind

    return change


def more_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1]))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "genai_config.json").unlink(), "expected exactly one text model"),
    "config that is cut": (lambda folder: (folder / "genai_config.json").write_text('{"model"'), "not valid JSON"),
    "config that is a list": (lambda folder: (folder / "genai_config.json").write_text("[]"), "expected a JSON object"),
    "no decoder": (config(lambda content: content["model"].pop("decoder")), r"model\.decoder\.filename is missing"),
    "a file elsewhere": (decoder(filename="../model.onnx"), r"filename is '../model.onnx', expected a file in"),
    "a file that is not there": (decoder(filename="other.onnx"), "other.onnx"),
    "no vocabulary": (settings(vocab_size=0), "model.vocab_size is 0, expected 1 to"),
    "a vocabulary of text": (settings(vocab_size="many"), "model.vocab_size is 'many', expected a whole number"),
    "a vocabulary too small": (
        settings(vocab_size=100, eos_token_id=1),
        "has a token [0-9,]+, the model knows 0 to 99",
    ),
    "a vocabulary too large": (settings(vocab_size=2000), r"the output 'logits' as .*expected .* 2000\]"),
    "an end beyond": (settings(eos_token_id=[5, 10**6]), "model.eos_token_id has 1000000, expected token ids"),
    "a context of nothing": (settings(context_length=-1), "model.context_length is -1"),
    "layers without number": (decoder(num_hidden_layers=True), "num_hidden_layers is True, expected a whole"),
    "a layer more": (decoder(num_hidden_layers=4), "no input 'past_key_values.3.key', which genai_config.json names"),
    "a layer less": (decoder(num_hidden_layers=2), "has the input 'past_key_values.2.key', which this version"),
    "other heads": (
        decoder(num_key_value_heads=3),
        r"input 'past_key_values.0.key' as .* expected .*\[\?, 3, \?, 32\]",
    ),
    "another width": (decoder(head_size=16), r"expected tensor\(float\) \[\?, 2, \?, 16\]"),
    "names without a layer": (
        decoder(inputs={"past_key_names": "past"}),
        "past_key_names is 'past', expected a name with",
    ),
    "other names": (decoder(outputs={"logits": "scores"}), "no output 'scores', which genai_config.json names"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "holds no tokenizer.json and no tokenizer.model",
    ),
    "no settings": (
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        "tokenizer_config.json: cannot be read",
    ),
    "an odd template": (
        lambda folder: edited(folder / "tokenizer_config.json", lambda content: content.update(chat_template=3)),
        "chat_template is 3, expected a text",
    ),
    "a graph that is none": (lambda folder: (folder / "model.onnx").write_bytes(b"\xff" * 99), "model.onnx: is"),
    "weights elsewhere": (graph(located("../outside.data")), "expected a file beside it"),
    "weights anywhere": (graph(located("/etc/hostname")), "expected a file beside it"),
    "weights nowhere": (lambda folder: (folder / "model.onnx.data").unlink(), "its weights are missing"),
    "weights cut short": (lambda folder: os.truncate(folder / "model.onnx.data", 9999), "ends at byte"),
    "an opset to come": (graph(lambda model: setattr(model.opset_import[0], "version", 99)), "[Oo]pset"),
    "a domain unknown": (graph(lambda model: setattr(model.graph.node[5], "domain", "com.example")), "com.example"),
    "an operator unknown": (graph(lambda model: setattr(model.graph.node[5], "op_type", "Nonsense")), "Nonsense"),
    "ids by another name": (graph(renamed("input_ids", "ids")), "no input 'input_ids'"),
    "logits by another name": (graph(renamed("logits", "scores")), "no output 'logits'"),
    "ids in 32 bits": (graph(typed("input_ids", onnx.TensorProto.INT32)), "input_ids|INT32|int32"),
    "an input more": (graph(more_input), "has the input 'extra', which this version does not know"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_tower_is_told_by_its_field(name: str, copied: Path) -> None:
    damage, told = BAD[name]
    damage(copied)
    with refusal(ArtifactError, told, copied):
        edge_llama.open(copied, n_ctx=64)


def test_a_graph_that_onnx_runtime_dies_of_ends_a_child_alone(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))

    def change(model: onnx.ModelProto) -> None:
        split = onnx.helper.make_node("Split", ["norm"], ["one", "two"], name="split", axis=2, num_outputs=1)
        model.graph.node.append(split)

    graph(change)(copied)
    with refusal(ArtifactError, "ONNX Runtime"):  # one that was repaired would refuse it itself
        require(text(copied), "cpu")
        opened(copied).close()


def test_a_foreign_graph_is_tried_once(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    require(text(copied), "cpu")
    monkeypatch.setattr(first_run, "child", None)  # not asked again
    require(text(copied), "cpu")


def test_verify_says_that_a_foreign_folder_has_no_hashes(folder: Path) -> None:
    from edge_llama.cli.verify import verify  # noqa: PLC0415

    with pytest.raises(NotVerifiableError, match="no hashes"):
        verify(str(folder), quiet=True)


def test_packed_weights_are_kept_and_made_again_when_damaged(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    artifact = text(copied)
    tokens = [5, 6, 7]

    def read() -> Any:
        with opened(copied) as tower:
            tower.decode(tokens)
            return tower.logits()

    kept = onnx_prepacked.graph(artifact, "cpu")
    assert kept.is_relative_to(tmp_path / "cache")
    first = read()
    for damage in (
        lambda: os.truncate(kept.with_name("model.onnx.data"), 1000),
        lambda: kept.write_bytes(b"\0" * 100),
        lambda: kept.with_name("about.json").write_text("{"),
        kept.unlink,
    ):
        damage()
        assert np.array_equal(read(), first)
        assert onnx_prepacked._is_whole(kept.parent, json.loads(kept.with_name("about.json").read_text())["key"])
    monkeypatch.setenv(onnx_prepacked.VARIABLE, "0")
    assert onnx_prepacked.graph(artifact, "cpu") == artifact.path
    np.testing.assert_allclose(read(), first, atol=EXACT, rtol=0)


def test_without_a_folder_to_keep_them_the_model_itself_is_opened(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    assert onnx_prepacked.graph(text(copied), "cpu") == copied / "model.onnx"


def test_what_belongs_to_no_model_any_more_is_removed(
    copied: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_LLAMA_CACHE", str(tmp_path / "cache"))
    edited(copied / "tokenizer.json", lambda content: content.update(version="1.0 "))
    old = onnx_prepacked.graph(text(copied), "cpu")
    assert old.exists()
    shutil.rmtree(copied)
    assert onnx_prepacked.graph(text(folder), "cpu").exists()
    assert not old.exists()


def test_a_process_takes_no_memory_of_its_own_for_packed_weights(tmp_path: Path) -> None:
    """What the second load adds is far below the weights: they are mapped."""
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    shape = checkpoints.Shape(hidden=1024, ffn=4096, layers=4, heads=8, kv_heads=2)
    source = checkpoints.llama3(tmp_path / "source", shape=shape, dtype="F32")
    folder = onnx_llama.write(source, tmp_path / "onnx")
    weights = (folder / "model.onnx.data").stat().st_size
    script = """
import sys
from pathlib import Path
import onnxruntime, tokenizers
from edge_llama.backends.onnx_text import OnnxTower
from edge_llama.onnx_text import read_onnx_text
def anonymous():
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("RssAnon"))
before = anonymous()
tower = OnnxTower(read_onnx_text(Path(sys.argv[1])), n_ctx=64, threads=1)
tower.decode([1, 2, 3])
print(anonymous() - before)
"""
    command = [sys.executable, "-c", script, str(folder / "model.onnx")]
    environment = {**os.environ, "EDGE_LLAMA_CACHE": str(tmp_path / "cache")}
    first, second = (
        int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environment).stdout)
        for _ in range(2)
    )
    assert weights > 200e6
    assert second < 40e6, first
