"""A run to measure: its clients, its model and its shared adapters."""

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedsdr.config import Settings
from fedsdr.data.conversation import Conversation
from fedsdr.errors import UserError
from fedsdr.federation.client_context import ClientContext, data_of, open_client
from fedsdr.federation.export import check_identity
from fedsdr.federation.model_cache import model_of
from fedsdr.messages.wire import Arrays
from fedsdr.model.adapters import LoraModel
from fedsdr.run_folder import RunFolder
from fedsdr.seeds import seed_for
from fedsdr.server.checkpoint import load_round

Views = dict[str, dict[str, list[Conversation]]]
"""View -> client -> conversations."""


@dataclass(frozen=True)
class Options:
    """Inputs that a run's folder does not contain."""

    nli: str = ""
    """Name or folder of an NLI cross-encoder."""
    judge: str = ""
    """Base address of an OpenAI-compatible server that judges."""
    judge_model: str = ""
    """Name of the model on that server."""
    against: Path | None = None
    """A run to judge this run's global model against; None: only the base model."""
    data: str = ""
    """Folder with local questions, or "hub"; empty: benchmarks use the run's own test examples."""
    tasks: tuple[str, ...] = ()
    """Names of benchmarks, or of tasks of retention; empty: all available ones."""
    limit: int = 0
    """Questions of each task; 0: all, for retention `evaluate.retention.MOST`."""
    run_programs: bool = False
    """Whether tests of `data` may run."""
    scales: tuple[float, ...] = ()
    """Scales of the frontier's models; empty: all for a control, 0.5 and 1 for others."""
    rounds: tuple[int, ...] = ()
    """Rounds after which the frontier's models are scored; empty: half of the rounds, and all."""

    def words(self, name: str) -> list[str]:
        """The options that a measurement uses, as command-line arguments."""
        judge = {"--judge": self.judge, "--judge-model": self.judge_model}
        questions = {
            "--data": self.data,
            "--tasks": ",".join(self.tasks),
            "--limit": str(self.limit or ""),
        }
        given = {
            "paradox": {"--nli": self.nli, **judge},
            "winrate": {**judge, "--against": str(self.against or "")},
            "benchmarks": questions,
            "retention": questions,
            "frontier": {
                "--scales": ",".join(f"{scale:g}" for scale in self.scales),
                "--rounds": ",".join(map(str, self.rounds)),
            },
        }.get(name, {})
        words = [word for option, value in given.items() if value for word in (option, value)]
        return [*words, *(["--run-programs"] if name == "benchmarks" and self.run_programs else [])]


@dataclass(frozen=True)
class MeasuredRun:
    """A run to measure, with its clients and its model."""

    folder: Path
    settings: Settings
    options: Options

    @property
    def model(self) -> LoraModel:
        """The base and its adapters, without any residual loaded by another measurement."""
        model = model_of(self.settings)
        check_identity(self.folder, model.base.identity)
        model.load_residual({})
        return model

    @cached_property
    def clients(self) -> list[ClientContext]:
        """All clients.

        Raises:
            UserError: The clients are on other machines.
        """
        clients = RunFolder(self.folder).clients
        if not clients.is_dir():
            raise UserError(
                f"{self.folder} has no folder clients: they are on other machines, but this measurement needs"
                " the data of all in one place. Each client can `fedsdr analyze` its own distilled.jsonl"
            )
        num = len(data_of(self.settings)[1])
        return [open_client(self.settings, number, clients) for number in range(num)]

    def rewritten(self) -> list[ClientContext]:
        """All clients, with rewritings of their training responses.

        Raises:
            UserError: The method does not rewrite.
        """
        if not all("train" in client.rewritings for client in self.clients):
            raise UserError(
                f"method = {self.settings.method} rewrites no training responses; measure a run of fedsd or"
                " fedsdr"
            )
        return self.clients

    def training(self, most: int = 0) -> Views:
        """Training conversations of all clients in both views.

        Args:
            most: Maximum number of examples per client, sampled identically in both views; 0: all.
        """
        found: Views = {"raw": {}, "distilled": {}}
        for client in self.rewritten():
            places = list(range(len(client.data.train)))
            if 0 < most < len(places):
                draw = random.Random(seed_for(self.settings.run.seed, "measure", client.id))
                places = sorted(draw.sample(places, most))
            found["raw"][client.id] = [client.views["raw"][place] for place in places]
            found["distilled"][client.id] = [client.views["distilled"][place] for place in places]
        return found

    def tests(self) -> Views:
        """Test conversations of all clients, with true responses and with rewritings."""
        return {
            "raw": {client.id: list(client.tests.raw) for client in self.clients},
            "distilled": {client.id: list(client.tests.distilled) for client in self.clients},
        }

    def shared(self, server_round: int) -> Arrays:
        """The shared adapter of a round."""
        arrays, _ = load_round(RunFolder(self.folder), server_round, self.settings.adapter.rank)
        return arrays
