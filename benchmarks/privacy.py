"""The cost of differential privacy on the built-in data: held-out loss against epsilon.

    python benchmarks/privacy.py docs/results/privacy.json

Default model, five clients, fedit, two rounds, the settings of benchmarks/poisoning.py. The noise is
seeded, so that the table can be repeated. The second adapter has a fortieth of the numbers that get noise.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from fedsdr.federation import run
from fedsdr.recipe import load_settings
from fedsdr.run_folder import RunFolder
from fedsdr.storage import read_json, read_lines, write_json
from poisoning import SETTINGS

SHAPES = {"all layers, rank 8": (), "q and v, rank 1": ('lora.targets=["q_proj", "v_proj"]', "lora.rank=1")}
NOISES = (0.001, 0.01, 0.1, 1.0, 4.0)


def main() -> None:
    to = Path(sys.argv[1])
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for shape, lora in SHAPES.items():
            ways: list[tuple[str, float]] = [("none", 0.0), *(("central", noise) for noise in NOISES)]
            ways += [("local", 1.0)]
            for kind, noise in ways:
                folder = Path(place) / f"{len(records)}"
                words = [*SETTINGS, *lora, f'run.dir="{folder}"', f'run.cache="{place}/cache"']
                if kind != "none":
                    words += [
                        f"privacy.kind={kind}",
                        f"privacy.noise_multiplier={noise}",
                        "privacy.source=seeded",
                    ]
                settings = load_settings("recipes/demo.toml", words)
                run.run(settings)
                last = [e for e in read_lines(RunFolder(folder).log) if e["event"] == "round"][-1]
                scores = read_json(RunFolder(folder).evaluation(settings.server.num_rounds))
                records.append(
                    {
                        "adapter": shape,
                        "num_values": last["num_bytes_down"] // 4,
                        "kind": kind,
                        "noise": noise,
                        "epsilon": last.get("epsilon"),
                        "delta": last.get("delta"),
                        "loss": scores["global"]["mean"]["loss"],
                        "choice_score": scores["global"]["mean"]["choice_score"],
                    }
                )
                write_json(to, {"command": f"python benchmarks/privacy.py {to}", "records": records})
    print(table(records))


def table(records: list[dict[str, Any]]) -> str:
    lines = ["| adapter | kind | noise | epsilon | loss | choices |", "|---|---|---:|---:|---:|---:|"]
    for one in records:
        spent = "-" if one["epsilon"] is None else f"{one['epsilon']:,.3g}"
        lines.append(
            f"| {one['adapter']} ({one['num_values']:,} numbers) | {one['kind']} | {one['noise']:g} | {spent}"
            f" | {one['loss']:.3f} | {one['choice_score']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
