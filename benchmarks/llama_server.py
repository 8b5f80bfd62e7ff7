"""Serve a .gguf file by llama.cpp until standard input ends; the first line of output is the address.

Run by the Python of .venv-server (Makefile), which has xllamacpp and not fedsdr:

    .venv-server/bin/python benchmarks/llama_server.py MODEL.gguf
"""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port = 0  # any free one
params.n_parallel, params.n_ctx = 4, 4 * 2048
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
