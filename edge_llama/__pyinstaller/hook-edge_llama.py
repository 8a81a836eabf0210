"""The runtime: engines and children are imported by their names."""

from PyInstaller.utils.hooks import collect_submodules, copy_metadata

hiddenimports = [*collect_submodules("edge_llama.backends"), *collect_submodules("edge_llama.isolation")]
datas = [*copy_metadata("edge-llama")]
for _name in ("llama-cpp-python", "onnxruntime"):
    try:
        datas += copy_metadata(_name)  # verdicts are remembered by versions
    except Exception:  # noqa: S112 - what is not installed is left out
        continue
