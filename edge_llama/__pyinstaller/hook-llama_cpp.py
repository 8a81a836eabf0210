"""llama.cpp's libraries, which ctypes loads. What its package can do with other packages is not used here."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("llama_cpp")
excludedimports = ["huggingface_hub", "torch", "transformers"]
