"""A bundle: a folder with the towers of a model, each for its engine, and a manifest that says how they are run.

The text tower is a GGUF file (or several) or an ONNX file with its weights beside it; so is the vision tower, whose
GGUF file is called mmproj. The checkpoint's licence files go along; the manifest is written last, since it holds every
file's hash.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from converters.architectures import llama4_vision
from converters.checkpoint import Checkpoint
from converters.layout import Closing, Layout
from converters.options import Options
from converters.target import TowerFiles
from converters.targets.writers import (
    TEXT,
    VISION,
    check_heeded,
    check_same_kind,
    with_quant,
    with_vision_quant,
)
from edge_llama.errors import CheckpointError
from edge_llama.files.manifest import NAME, Manifest, StoredFile, Tower

_NOTHING = TowerFiles(())


class Bundle:
    """A folder of towers."""

    def chosen(self, options: Options, towers: Collection[str]) -> Options:
        """With each tower's recipe or format, and the vision tower's kind of file."""
        writer = TEXT[options.to or "gguf"]
        has_text, has_vision = "text" in towers, "vision" in towers
        check_heeded(options, writer.options if has_text else None, has_vision=has_vision)
        writer.check(options)
        check_same_kind(options, towers)
        if has_text:
            called = "onnx" if options.to == "onnx" else "bundle"
            options = with_quant(options, called, writer.quants, writer.default_quant)
        if has_vision:
            alone = None if has_text else options.to
            options = with_vision_quant(options, options.vision_to or alone or next(iter(VISION)))
        return options

    def lay_out(self, checkpoint: Checkpoint, _name: str, options: Options) -> Layout:
        """The folder of the towers for which ``options`` name a format."""
        manifest = Manifest(
            name=checkpoint.name,
            writer=f"edge-llama {version('edge-llama')}",
            files={},
            generation=checkpoint.generation,
        )
        text = vision = _NOTHING
        if options.quant:
            writer = TEXT[options.to or "gguf"]
            text = writer.files(checkpoint, options)
            tower = Tower(writer.engine, text.parts[0].name, options.quant if options.to == "onnx" else "")
            manifest = replace(manifest, text=tower)
        if options.vision_quant and options.vision_to:
            writer = VISION[options.vision_to]
            vision = writer.files(checkpoint, options)
            tower = Tower(writer.engine, vision.parts[0].name, options.vision_quant)
            manifest = replace(manifest, vision=tower, images=llama4_vision.spec(checkpoint))
        closing = _closing(manifest, checkpoint.path)
        closing({})  # what it can't hold shows now
        files = {**checkpoint.provenance.notices, **text.files, **vision.files}
        return Layout((*text.parts, *vision.parts), files, is_folder=True, closing=closing)


BUNDLE = Bundle()


def _closing(manifest: Manifest, source: Path) -> Closing:
    def close(files: Mapping[str, StoredFile]) -> dict[str, bytes]:
        try:
            return {NAME: replace(manifest, files=files).encode()}
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{source}: {NAME} can't hold its name and its generation_config.json: {error}",
                remedy="correct them, or download the folder again",
            ) from error

    return close
