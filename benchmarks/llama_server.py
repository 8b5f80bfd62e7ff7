"""Serve a .gguf file by llama.cpp until standard input ends; the first line of output is the address.

Run by the Python of .venv-server (Makefile), which has xllamacpp and not fedsdr:

    .venv-server/bin/python benchmarks/llama_server.py MODEL.gguf [float32]

float32: keys and values are kept in float32, not float16, and attention is computed in plain steps.
"""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port = 0  # any free one
params.n_parallel, params.n_ctx = 4, 4 * 2048
if sys.argv[2:] == ["float32"]:
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
