"""What transformers makes of a Llama 4 folder, in float32 on the CPU: the reference for towers, pictures and prompts.

Its image processor needs torchvision, whose wheels break every import beside torch for CPUs: it is imported with the
functions that it uses, which do what torchvision's do.
"""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, image_processing_backends
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.llama4.processing_llama4 import Llama4Processor

# transformers 5.24: the two towers' forward() asks the text tower's output for a field that it doesn't have.
if not hasattr(MoeCausalLMOutputWithPast, "image_outputs"):
    MoeCausalLMOutputWithPast.image_outputs = None

Messages = Sequence[dict[str, Any]]
"""In Hugging Face's form: content is a text or a list of ``{"type": "text", "text"}`` and ``{"type": "image"}``."""


def _resize(image: torch.Tensor, size: Sequence[int], *, interpolation: str, antialias: bool) -> torch.Tensor:
    """As torchvision resizes uint8 images of shape (n, 3, height, width) on processors with AVX2: in integers."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(
        image, size=list(size), mode=interpolation, align_corners=False, antialias=antialias
    )


def _pad(image: torch.Tensor, padding: Sequence[int], fill: Sequence[int]) -> torch.Tensor:
    left, top, right, bottom = padding
    assert not any(fill), fill
    return torch.nn.functional.pad(image, (left, right, top, bottom))


def _normalize(
    image: torch.Tensor, mean: Sequence[float], std: Sequence[float], *, inplace: bool = False
) -> torch.Tensor:
    shift, scale = (torch.tensor(values, dtype=image.dtype).view(-1, 1, 1) for values in (mean, std))
    return image.sub(shift).div_(scale)


@cache
def image_processor_class() -> Any:
    """``Llama4ImageProcessor``, whichever of transformers' modules were imported before."""
    functional = SimpleNamespace(
        InterpolationMode=SimpleNamespace(BILINEAR="bilinear", LANCZOS="lanczos"),
        resize=_resize,
        pad=_pad,
        normalize=_normalize,
        grayscale_to_rgb=lambda image: image,
    )
    modules = {
        name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    }
    modules["torchvision.transforms.v2"].functional = functional  # type: ignore[attr-defined]
    image_processing_backends.tvF = functional
    image_processing_backends.pil_torch_interpolation_mapping = {Image.Resampling.BILINEAR: "bilinear"}
    with mock.patch.dict(sys.modules, modules):
        from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor  # noqa: PLC0415
    return Llama4ImageProcessor


def processor(folder: Path) -> Any:
    """``Llama4Processor`` of a two-tower folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = image_processor_class().from_pretrained(folder)
    template = (folder / "chat_template.jinja").read_text("utf-8")
    return Llama4Processor(images, tokenizer, chat_template=template)


def tiles(folder: Path, image: Image.Image, **options: Any) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """(tiles, 3, side, side), the global one last, and (rows, columns); ``options``: ``max_patches``."""
    found = image_processor_class().from_pretrained(folder)(image, return_tensors="pt", **options)
    rows, columns = found["aspect_ratios"][0].tolist()
    return found["pixel_values"].float().numpy(), (rows, columns)


class Reference:
    """A folder, loaded: ``model`` and ``processor`` are transformers' own (a text tower alone has no processor)."""

    def __init__(self, folder: Path) -> None:
        self.is_multimodal = (folder / "preprocessor_config.json").is_file()
        auto = AutoModelForImageTextToText if self.is_multimodal else AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = processor(folder) if self.is_multimodal else None

    def inputs(
        self, messages: Messages, images: Sequence[Image.Image] = (), *, add_generation_prompt: bool = True
    ) -> tuple[list[int], NDArray[np.float32] | None]:
        """Token ids, ``<|patch|>`` once for each embedding, and all tiles in order: (tiles, 3, side, side) or None."""
        renderer = self.processor or self.tokenizer
        text = renderer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False)
        if not images:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"], None
        found = self.processor(text=[text], images=[list(images)], add_special_tokens=False, return_tensors="pt")
        return found["input_ids"][0].tolist(), found["pixel_values"].float().numpy()

    def logits(self, ids: Sequence[int], pixels: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """(tokens, n_vocab)."""
        with torch.inference_mode():
            return self.model(**_tensors(ids, pixels)).logits[0].float().numpy()

    def image_features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """What takes the place of ``<|patch|>``: (tiles, tokens per tile, n_embd), projected."""
        with torch.inference_mode():
            found = self.model.get_image_features(pixel_values=torch.from_numpy(pixels), return_dict=True)
            return self.model.multi_modal_projector(found.last_hidden_state).numpy()

    def generate(
        self,
        ids: Sequence[int],
        pixels: NDArray[np.float32] | None = None,
        *,
        max_new_tokens: int = 32,
        stop: bool = True,
    ) -> list[int]:
        """The greedy continuation; ``stop`` False: through ends of turn, ``max_new_tokens`` long."""
        options: dict[str, Any] = {} if stop else {"eos_token_id": None, "min_new_tokens": max_new_tokens}
        given = _tensors(ids, pixels)
        with torch.inference_mode():
            mask = torch.ones_like(given["input_ids"])
            found = self.model.generate(
                **given, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, **options
            )
        return found[0, len(ids) :].tolist()

    def answer(self, messages: Messages, images: Sequence[Image.Image] = (), *, max_new_tokens: int = 32) -> str:
        """The greedy answer's text, without control tokens."""
        generated = self.generate(*self.inputs(messages, images), max_new_tokens=max_new_tokens)
        return self.tokenizer.decode(generated, skip_special_tokens=True)


def _tensors(ids: Sequence[int], pixels: NDArray[np.float32] | None) -> dict[str, torch.Tensor]:
    found = {"input_ids": torch.tensor([list(ids)])}
    return found if pixels is None else found | {"pixel_values": torch.from_numpy(pixels)}
