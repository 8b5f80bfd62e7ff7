"""Serve a .gguf file by llama.cpp until standard input ends; the first line of output is the address.

Run by the Python of .venv-server (Makefile), which has xllamacpp and not fedsdr:

    .venv-server/bin/python benchmarks/llama_server.py MODEL.gguf [float32] [--slots 4] [--threads N]

float32: keys and values are kept in float32, not float16, and attention is computed in plain steps.
slots: requests that are answered at the same time, each with 2,048 tokens of context.
threads: llama.cpp's own choice unless given.
"""

import argparse
import sys

import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("keys", nargs="?", choices=["float32"])
parser.add_argument("--slots", type=int, default=4)
parser.add_argument("--threads", type=int)
options = parser.parse_args()
params = xllamacpp.CommonParams()
params.model.path = options.model
params.port = 0  # any free one
params.n_parallel, params.n_ctx = options.slots, options.slots * 2048
if options.threads:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
if options.keys == "float32":
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
