#!/bin/sh
# Clang 14 or newer with lld (Debian: apt-get install clang lld). A memory's maximum has to be
# declared; nothing of a libc is there.
set -e
cd "$(dirname "$0")"
mkdir -p build
clang --target=wasm32 -std=c11 -Wall -Wextra -Werror -Wno-unused-function -O2 -nostdlib \
    -fno-builtin -fvisibility=hidden \
    -Wl,--no-entry -Wl,--strip-all -Wl,--max-memory=4194304 -Wl,-z,stack-size=65536 \
    -o build/policy.wasm policy.c
