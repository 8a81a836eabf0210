#!/bin/sh
# llama-cpp-python for NVIDIA's GPUs, built of sources that lie here: nothing is downloaded.
#
#   scripts/cuda_build.sh SOURCE ARCHITECTURES [OUT]        a wheel in OUT (default: dist)
#   scripts/cuda_build.sh SOURCE ARCHITECTURES OUT TARGET   no wheel: CMake's TARGET alone, in OUT
#
# SOURCE         llama-cpp-python's source, an archive or the folder that it unpacks to, with ggml in vendor/llama.cpp:
#                pip download --no-deps --no-binary llama-cpp-python llama-cpp-python
# ARCHITECTURES  CMAKE_CUDA_ARCHITECTURES: 90 for H100 and H200, 89 for an RTX 4090, "80-real;90-real" for both, native
# TARGET         ggml-cuda compiles all that is CUDA: whether it compiles can be tried where no GPU is
#
# Takes nvcc from CUDACXX, CUDA_HOME/bin or PATH, cmake and (for a wheel) scikit-build-core from PATH's Python; PYTHON
# names another. CMAKE_ARGS adds options, such as -DGGML_CUDA_NO_VMM=on where there is no libcuda to link with.
set -eu

if [ $# -lt 2 ]; then
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
source=$1 architectures=$2 out=${3:-dist} target=${4:-}
python=${PYTHON:-python3}

CUDACXX=${CUDACXX:-$(PATH="${CUDA_HOME:-/usr/local/cuda}/bin:$PATH" command -v nvcc || true)}
if [ -z "$CUDACXX" ]; then
    echo "nvcc is not here: install the CUDA toolkit, and set CUDA_HOME to its folder" >&2
    exit 2
fi
export CUDACXX
toolkit=$(dirname "$(dirname "$CUDACXX")") # or CMake takes the headers of another that it knows

scratch=
if [ -f "$source" ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    tar -xzf "$source" -C "$scratch"
    source=$(echo "$scratch"/*)
fi
if [ ! -d "$source/vendor/llama.cpp/ggml/src/ggml-cuda" ]; then
    echo "$source: no vendor/llama.cpp with ggml there: give llama-cpp-python's source distribution" >&2
    exit 2
fi

# Beside the GPU's code there is the CPU's: as scripts/install.py builds it.
flags="-ffp-contract=off"
case $(uname -m) in
x86_64 | amd64) flags="$flags -mno-amx-tile -mno-amx-int8 -mno-amx-bf16" ;;
esac
export CFLAGS="${CFLAGS:-} $flags" CXXFLAGS="${CXXFLAGS:-} $flags"

if [ -n "$target" ]; then
    # shellcheck disable=SC2086 # several options
    cmake -S "$source/vendor/llama.cpp" -B "$out" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=on \
        -DLLAMA_BUILD_COMMON=off -DLLAMA_BUILD_TESTS=off -DLLAMA_BUILD_TOOLS=off -DLLAMA_BUILD_EXAMPLES=off \
        -DLLAMA_BUILD_SERVER=off -DGGML_CUDA=on "-DCMAKE_CUDA_ARCHITECTURES=$architectures" \
        "-DCUDAToolkit_ROOT=$toolkit" ${CMAKE_ARGS:-}
    cmake --build "$out" --target "$target" --parallel "${JOBS:-$(nproc)}"
else
    CMAKE_ARGS="-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=$architectures -DCUDAToolkit_ROOT=$toolkit ${CMAKE_ARGS:-}" \
        "$python" -m pip wheel --no-deps --no-index --no-build-isolation --no-cache-dir -w "$out" "$source"
fi
