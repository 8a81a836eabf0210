"""The server: its page's files."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

hiddenimports = collect_submodules("edge_llama.server")
datas = collect_data_files("edge_llama.server")
