"""Numbers only: kernels, and recipes that say which tensor gets which format. No files, no checkpoint names."""
