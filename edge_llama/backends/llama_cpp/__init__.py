"""llama.cpp: GGUF text towers and mmproj vision towers."""
