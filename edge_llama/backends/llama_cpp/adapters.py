"""Adapters in llama.cpp: loaded beside a model's weights, set for a context, freed with the model."""

import ctypes
import os
from collections.abc import Iterable
from typing import Any

from edge_llama.backends.adapters import AdapterSet
from edge_llama.errors import ArtifactError, EngineError
from edge_llama.files.gguf_adapter import AdapterFile


class NativeAdapters:
    """Those of one model, by their identities."""

    def __init__(self, lib: Any, model: Any) -> None:
        self._lib = lib
        self._model = model
        self._loaded: dict[str, Any] = {}
        self._used: AdapterSet = ()

    def add(self, adapters: Iterable[AdapterFile]) -> None:
        """Load them. ArtifactError names the one that llama.cpp refuses."""
        for adapter in adapters:
            loaded = self._lib.llama_adapter_lora_init(self._model, os.fsencode(adapter.path))
            if not loaded:
                raise ArtifactError(
                    f"{adapter.path}: llama.cpp cannot load this adapter",
                    remedy="the file is damaged, or changed while it was opened: convert it again",
                )
            self._loaded[adapter.identity] = loaded

    def use(self, context: Any, adapters: AdapterSet) -> None:
        """Have ``context`` compute with these from the next decode on: llama.cpp then plans its graphs anew."""
        if adapters == self._used:
            return
        pointers = (self._lib.llama_adapter_lora_p_ctypes * len(adapters))(
            *(self._loaded[use.identity] for use in adapters)
        )
        scales = (ctypes.c_float * len(adapters))(*(use.weight for use in adapters))
        if self._lib.llama_set_adapters_lora(context, pointers, len(adapters), scales):
            raise EngineError("llama.cpp cannot compute with these adapters")
        self._used = adapters
