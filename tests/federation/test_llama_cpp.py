"""What llama.cpp does with an exported model."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from fedsdr.config import Data, Lora, Model
from fedsdr.data.conversation import encode
from fedsdr.data.sources import load_domains
from fedsdr.federation.export import export_merged
from fedsdr.model.adapters import LoraModel
from fedsdr.model.base import load_base

NUM_LIKELIEST = 5


def test_llama_cpp_finds_the_same_next_token_likeliest_on_the_merged_weights(
    llama_server, real_model: Model, tmp_path: Path, capsys
):
    """Both compute in float32 on the same weights, whose adapter changes what the base would say."""
    if not (folder := os.environ.get("FEDSDR_LLAMA_CPP")):
        pytest.skip("FEDSDR_LLAMA_CPP is not set; `make test-server` does it")
    spec, lora = real_model.model_copy(update={"dtype": "float32"}), Lora(rank=8)
    model = LoraModel(load_base(spec), lora)
    random = torch.Generator().manual_seed(1)
    shapes = {key: value.shape for key, value in model.state("shared").items()}
    state = {key: 0.05 * torch.randn(shape, generator=random) for key, shape in shapes.items()}
    model.load("shared", state)
    export_merged(spec, state, lora, tmp_path / "merged", "", "float32")
    converter = [sys.executable, str(Path(folder) / "convert_hf_to_gguf.py"), str(tmp_path / "merged")]
    gguf = str(tmp_path / "merged.gguf")
    subprocess.run(
        [*converter, "--outtype", "f32", "--outfile", gguf],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        check=True,
    )
    num = num_same = num_moved = 0
    largest = 0.0
    with llama_server(gguf, "float32") as address:
        for domain in [*load_domains(Data()).values()][:4]:
            example = domain.test[0].example
            text = encode(model.base.tokenizer, example, example.response, 256)
            ids = [int(number) for number in text.ids]
            with model.inference(()):
                base = model.base.model(torch.tensor([ids])).logits[0]
            with model.inference(("shared",)):
                ours = torch.log_softmax(model.base.model(torch.tensor([ids])).logits[0], dim=-1)
            for place in range(text.prompt_length, len(ids)):
                body = {"prompt": ids[:place], "n_predict": 1, "n_probs": NUM_LIKELIEST, "temperature": 0}
                reply = httpx.post(f"{address}/completion", json=body, timeout=60).json()
                theirs = reply["completion_probabilities"][0]["top_logprobs"]
                here = ours[place - 1]
                num += 1
                num_same += theirs[0]["id"] == int(here.argmax())
                num_moved += int(base[place - 1].argmax()) != int(here.argmax())
                largest = max(largest, *(abs(one["logprob"] - float(here[one["id"]])) for one in theirs))
    with capsys.disabled():
        print(
            f"\nllama.cpp: the same likeliest token in {num_same} of {num} places; largest difference of log"
            f" probabilities of the {NUM_LIKELIEST} likeliest: {largest:.1e}"
        )
    assert num > 100 and num_moved > 0.1 * num
    assert num_same >= 0.99 * num
    assert largest < 0.01
