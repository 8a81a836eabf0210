"""What quantized bytes must be: ggml's own kernels where they are installed, and hashes of theirs everywhere."""
