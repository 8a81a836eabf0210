"""What lies in other programs' folders is found under the names that these show, and every verb takes the names."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from model_stores import HASH, MODEL, PROJECTOR, TENSOR, environment, ollama

from edge_llama.backends.local_models import FOLDERS_VARIABLE, found, local_models
from edge_llama.errors import ArtifactError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def put(home: Path, small_talk: Path) -> Callable[..., Path]:
    """Have a small model lie at a path below the home, or what was given."""

    def put(path: str, source: Path | None = None) -> Path:
        target = home / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if source is None or source.is_file():
            os.link(small_talk if source is None else source, target)
        else:
            shutil.copytree(source, target)
        return target

    return put


def names(**of: str) -> list[str]:
    return [model.name for model in local_models() if all(getattr(model, name) == value for name, value in of.items())]


def test_where_there_is_nothing_nothing_is_found(home: Path) -> None:
    assert local_models() == []
    with pytest.raises(ArtifactError, match="no such file or folder"):
        found("llama-9")
    (home / ".ollama").write_text("no folder")
    (home / ".lmstudio-home-pointer").write_text("/nowhere\n")
    assert local_models() == []


def test_given_folders_have_files_and_folders_of_one_model(
    home: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("some/llama-q8_0.gguf")
    put("some/alone/any.gguf")
    put("some/two/a.gguf")
    put("some/two/b-00001-of-00002.gguf")
    put("some/two/b-00002-of-00002.gguf")
    put("more/deep/er/x.GGUF")
    put("some/.hidden/no.gguf")
    (home / "some" / "notes.txt").write_text("no model")
    monkeypatch.setenv(FOLDERS_VARIABLE, os.pathsep.join([str(home / "some"), "~/more", str(home / "nowhere"), ""]))
    assert names() == ["llama-q8_0", "alone", "two/a", "two/b", "deep/er"]
    assert found("two/b").name == "b-00001-of-00002.gguf"
    assert found(Path("two") / "a") == home / "some" / "two" / "a.gguf"
    for no_name in ("/alone", "./alone", "~/alone", "Alone"):
        with pytest.raises(ArtifactError, match="no such file"):
            found(no_name)
    monkeypatch.setenv("EDGE_LLAMA_MODEL", "alone")
    assert found() == found("alone")
    assert found("alone") == home / "some" / "alone" / "any.gguf"


def test_a_vision_tower_beside_makes_one_of_the_folder(
    home: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("models/pair/text.gguf")
    put("models/pair/mmproj-text.gguf")
    monkeypatch.setenv(FOLDERS_VARIABLE, str(home / "models"))
    (model,) = local_models()
    assert (model.name, model.path) == ("pair", home / "models" / "pair")
    put("models/other.gguf")
    put("models/mmproj-other.gguf")
    assert names() == ["other", "pair"], "a store is no model"


def test_hugging_faces_cache_has_models_and_checkpoints(home: Path, put: Callable[..., Path], llama3: Path) -> None:
    hub = ".cache/huggingface/hub"
    blob = put(f"{hub}/models--some--one-GGUF/blobs/abc")
    for revision in ("old", "new"):
        link = home / hub / "models--some--one-GGUF" / "snapshots" / revision / "one.gguf"
        link.parent.mkdir(parents=True)
        link.symlink_to(blob)
    (home / hub / "models--some--one-GGUF" / "refs").mkdir()
    (home / hub / "models--some--one-GGUF" / "refs" / "main").write_text("new\n")
    put(f"{hub}/models--meta-llama--Llama-X/snapshots/123", llama3)
    put(f"{hub}/models--many--quants/snapshots/1/a.gguf")
    put(f"{hub}/models--many--quants/snapshots/1/b.gguf")
    broken = home / hub / "models--half--loaded" / "snapshots" / "1" / "x.gguf"
    broken.parent.mkdir(parents=True)
    broken.symlink_to("nowhere")
    (home / hub / "version.txt").write_text("1")
    later = home / hub / "models--many--quants" / "snapshots" / "2" / "config.json"
    later.parent.mkdir()
    later.write_text("{}")
    (home / hub / "models--many--quants" / "refs").mkdir()
    (home / hub / "models--many--quants" / "refs" / "main").write_text("2")
    assert names(kind="checkpoint") == ["meta-llama/Llama-X"]
    assert names(kind="model") == ["many/quants/a", "many/quants/b", "some/one-GGUF"]
    assert found("some/one-GGUF").parent.name == "new"


def test_lm_studios_and_llama_cpps_folders(home: Path, put: Callable[..., Path]) -> None:
    put(".lmstudio/models/lmstudio-community/Llama-GGUF/llama-q4.gguf")
    put("elsewhere/models/me/mine/mine.gguf")
    (home / ".lmstudio-home-pointer").write_text(str(home / "elsewhere"))
    (home / "elsewhere" / "models" / "me" / "again").symlink_to(home / "elsewhere" / "models" / "me" / "mine")
    put(".cache/llama.cpp/some_Llama-GGUF_llama-q8_0.gguf")
    assert names(store="lmstudio") == ["me/again", "me/mine", "lmstudio-community/Llama-GGUF"]
    assert names(store="llama.cpp") == ["some_Llama-GGUF_llama-q8_0"]


def test_two_of_one_name_are_told_apart(home: Path, put: Callable[..., Path], small_talk: Path) -> None:
    first = put(".lmstudio/models/some/model/a.gguf")
    second = home / ".cache" / "huggingface" / "hub" / "models--some--model" / "snapshots" / "1" / "b.gguf"
    second.parent.mkdir(parents=True)
    shutil.copy(small_talk, second)
    assert [model.name for model in local_models()] == ["some/model", "some/model@lmstudio"]
    assert (found("some/model"), found("some/model@lmstudio")) == (second, first)


def test_ollamas_manifests_lead_to_blobs(home: Path, put: Callable[..., Path]) -> None:
    put(f".ollama/models/blobs/sha256-{HASH}")
    layers = [{"mediaType": MODEL, "digest": f"sha256:{HASH}"}, {"mediaType": PROJECTOR, "digest": "sha256:1"}]
    ollama(home, "registry.ollama.ai/library/llama3.2/1b", {"layers": layers})
    ollama(home, "registry.ollama.ai/library/llama3.2/latest", {"layers": layers})
    assert names() == ["llama3.2:1b", "llama3.2:latest"]
    assert found("llama3.2:1b").name == f"sha256-{HASH}"
    gone = [{"mediaType": MODEL, "digest": f"sha256:{HASH[::-1]}"}]
    ollama(home, "hf.co/some/model/Q4_K_M", {"layers": gone})
    with pytest.raises(ArtifactError, match=rf"hf.co/some/model:Q4_K_M \(ollama\): sha256-{HASH[::-1]} is missing"):
        found("hf.co/some/model:Q4_K_M")
    ollama(home, "registry.ollama.ai/me/mlx/latest", {"layers": [{"mediaType": TENSOR}]})
    assert [model.problem for model in local_models() if model.name == "me/mlx:latest"] == [
        "its tensors are in files of their own (MLX)"
    ]


def test_ollamas_later_manifests_have_several_forms(home: Path, put: Callable[..., Path]) -> None:
    put(f".ollama/models/blobs/sha256-{HASH}")
    child = {"layers": [{"mediaType": MODEL, "digest": f"sha256:{HASH}"}]}
    (home / ".ollama" / "models" / "blobs" / f"sha256-{HASH[::-1]}").write_text(json.dumps(child))
    forms = [{"format": "safetensors", "digest": "sha256:2"}, {"format": "gguf", "digest": f"sha256:{HASH[::-1]}"}]
    ollama(home, "ollama.com/library/llama4/scout", {"manifests": forms}, "manifests-v2")
    assert names() == ["llama4:scout"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"layers": 1}', '{"layers": [1, {"digest": 5}]}', '{"manifests": 3}', "[" * 99_999, "\0"]
)
def test_a_manifest_that_is_none_is_no_model(content: str, home: Path) -> None:
    ollama(home, "registry.ollama.ai/library/x/latest", {}).write_text(content)
    assert local_models() == []


def test_odd_folders_hide_nothing_else(home: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDERS_VARIABLE, os.pathsep.join(["~nobody-at-all/models", str(home / "models")]))
    put("models/good/a.gguf")
    broken = home / "models" / "broken" / "genai_config.json"
    broken.parent.mkdir()
    broken.write_text("{")
    (home / "models" / "good" / "loop").symlink_to(home / "models")
    (home / "models" / "gone").symlink_to("nowhere")
    locked = home / "models" / "locked"
    locked.mkdir(mode=0)
    assert names() == ["broken", "good"]
    with pytest.raises(ArtifactError, match="broken"):
        found("broken")
    locked.chmod(0o700)
