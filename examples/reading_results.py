"""The results of a run, and how to watch it: python examples/reading_results.py."""

import json
from pathlib import Path

import fedsdr
from fedsdr.run_folder import RunFolder, read_result

HERE = Path(__file__).parent
FOLDER = Path("runs/reading-results")


class Print(fedsdr.Callback):
    """Prints losses during the run; `run.log_to = ["tensorboard"]` logs them instead."""

    def on_round(self, record: dict) -> None:
        print(f"round {record['round']}: training loss {record['train/shared/loss']:.3f}")

    def on_evaluate(self, record: dict) -> None:
        print(f"round {record['round']}: held-out loss {record['eval/global/mean/loss']:.3f}")


fedsdr.run(
    {
        "recipe": HERE / "small.toml",
        "run.dir": FOLDER,
        "data.domains": ["finance", "math"],
        "data.num_train": 8,
        "data.num_test": 2,
    },
    callbacks=[Print()],
)

result = read_result(FOLDER)  # later, or in another program
print(result.to_pandas()[["train/shared/loss", "eval/global/mean/loss", "num_bytes_down"]])

last = result.history[-1]["round"]
folder = RunFolder(FOLDER)
for model, path in folder.client("finance").final_answers(last).items():
    if path.exists():  # fedit has no personalised model
        answer = json.loads(path.read_text().splitlines()[0])
        print(f"{model}: {answer['instruction'][:40]!r} -> {answer['answer']!r}")

adapter = json.loads((result.adapter / "adapter_config.json").read_text())
print(f"LoRA of rank {adapter['r']} on {', '.join(sorted(adapter['target_modules']))}: {result.adapter}")
