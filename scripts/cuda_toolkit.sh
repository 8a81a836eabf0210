#!/bin/sh
# nvcc and what llama.cpp is compiled with, from the package index (530 MB) into FOLDER: where no toolkit is installed.
#
#   scripts/cuda_toolkit.sh FOLDER [VERSION]        VERSION: of CUDA 13; 13.0 by default
#   CUDA_HOME=FOLDER/nvidia/cu13 CMAKE_ARGS=-DGGML_CUDA_NO_VMM=on scripts/cuda_build.sh SOURCE 90 build ggml-cuda
set -eu

if [ $# -lt 1 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
folder=$1 version=${2:-13.0}
packages=
for name in nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cublas; do
    packages="$packages $name==$version.*"
done
# shellcheck disable=SC2086 # several packages
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" $packages

# As a toolkit names them: nvcc looks in lib64, and CMake for libraries without a version.
cd "$folder/nvidia/cu13"
ln -sfn lib lib64
for library in lib/libcudart.so lib/libcublas.so lib/libcublasLt.so; do
    ln -sf "$(basename "$library".*)" "$library"
done
