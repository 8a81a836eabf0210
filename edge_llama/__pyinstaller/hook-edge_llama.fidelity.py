"""What a conversion cost: the texts that it is measured on."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("edge_llama.fidelity")
