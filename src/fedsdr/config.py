"""Settings: what determines a run, as one frozen, checked object. `recipe` reads it from a file.

Each key is documented under its default. The training sections are in `config_training`. Types and ranges are
checked here, combinations in `compatibility`. An error names the key, the value, and how to fix it.
"""

import re
from datetime import date as Day
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedsdr.compatibility import check
from fedsdr.config_training import (
    Client,
    Count,
    Distill,
    FDLoRA,
    FedALA,
    FedDPA,
    Lora,
    Positive,
    Section,
    Server,
    Share,
    TokenMask,
)
from fedsdr.methods import METHODS
from fedsdr.rows import MessageDtype, PrivacyKind

SAVED = "saved"
"""Context in which settings are validated that a run has begun with."""
LEAST_SCALE, MOST_SCALE = 1e-6, 1e6
LogTo = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Scale = Annotated[float, Field(ge=LEAST_SCALE, le=MOST_SCALE, allow_inf_nan=False)]
"""Outside these limits, noise would be infinite in float32, or epsilon above 10^12."""


class Run(Section):
    """[run]: folder, seed and resources of a run."""

    dir: str = ""
    """The run's folder; empty: runs/<recipe>-<method>-seed<seed>."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initial adapters, data order and client sampling."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for computing; 0: all cores. Fixed at the start, since it changes the last bits of results."""
    engine: Literal["local", "simulation"] = "local"
    """local: clients run sequentially in this process. simulation: several clients run in parallel, by
    Flower's simulation on Ray (`fedsdr[simulation]`); bit-identical results with the same number of
    threads."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Workers of the simulation engine; 0: as many as threads or GPUs allow. A cluster (`ray`) always has as
    many as that."""
    gpus_per_client: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per worker of the simulation engine; 0.5 puts two workers on one GPU; 0: one, if there is any."""
    ray: str = ""
    """Address of a running Ray cluster, or "auto"; empty: start Ray on this machine for the run."""
    cache: str = ""
    """Folder that shares rewritings and scores of the base model between runs; empty: the clients' own
    folders."""
    log_to: tuple[LogTo, ...] = ()
    """Loggers that receive the metrics of the run, such as ["tensorboard"] (docs/python.md). They do not
    affect results; each is an extra of the package."""


PACKED = ("grouped", "packed")
"""Values of model.attention that put a batch into one row, without padding."""


class Model(Section):
    """[model]: the frozen base model."""

    name: str = "smollm2-135m-instruct"
    """A built-in name (`fedsdr models`), a local folder, a .gguf file, or a hub id."""
    revision: str = ""
    """Branch, tag or commit for a hub id; empty: the default branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the base weights and of computation; auto: bfloat16 where it is fast."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """Load the base through bitsandbytes."""
    attention: Literal["auto", "grouped", "packed", "eager", "sdpa"] = "auto"
    """auto: grouped on CPUs, sdpa on GPUs. grouped is our own: examples of a batch are packed into one row
    without padding, and the backward pass needs less memory. packed uses the same layout with torch's fused
    attention; it is untested on GPUs. eager and sdpa are transformers' own, with padded batches."""
    gradient_checkpointing: Literal["auto", "off", "on"] = "auto"
    """on: activations are recomputed in the backward pass instead of stored: a third more work, a fraction of
    the memory. auto: on if an estimate with stored activations exceeds half of a GPU's free memory, otherwise
    off; in a deployment, of the server's GPU."""
    max_length: Annotated[int, Field(ge=16)] = 512
    """Longest conversation in tokens; longer ones lose the end of their response, never the prompt."""
    chat_template: Literal["own", "plain"] = "own"
    """own: the tokenizer's template. plain: instruction and response under headings
    (docs/models.md), for base models without a template."""
    template_args: dict[str, bool | int | float | str] = {}
    """Extra arguments of the chat template, such as {enable_thinking = false}."""
    date: str = "2026-01-01"
    """The date used by chat templates that write it, so that a run can be repeated."""
    trust_remote_code: bool = False
    """Run Python code from a hub model. Leave it off unless you have read the code."""

    @field_validator("template_args")
    @classmethod
    def _arguments_have_names(cls, value: dict[str, bool | int | float | str]) -> dict[str, Any]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z]\w*", name) or name in ("messages", "add_generation_prompt"):
                raise ValueError(f"template_args.{name} cannot be an argument of a chat template")
        return value

    @field_validator("date")
    @classmethod
    def _date_is_a_day(cls, value: str) -> str:
        Day.fromisoformat(value)
        return value


class Reading(Section):
    """How rows become examples: keys of [data] for all domains, overridden by those of a source."""

    columns: dict[str, str] = {}
    """Maps fields to columns, such as {response = "answer"}; fields as in `Example`, and client and messages.
    A text with columns in braces is a template: {context = "{title}: {body}"}; dots lead into nested objects;
    "" switches a field off. A column listed here feeds no other field by its name."""
    label_names: tuple[str, ...] = ()
    """Names of numbered labels, starting with 0; true and false are 1 and 0."""
    choices_after: str = ""
    """Marker in the prompt, such as "OPTIONS:", followed by lines with the choices; for rows without
    choices."""
    where: dict[str, str | tuple[str, ...]] = {}
    """Use only rows whose columns have these values, such as {task = "fix_*"}; a list: any of them."""
    train_on: Literal["", "last", "all"] = ""
    """Which answers of a conversation are trained on and rewritten: the last, or all, each with the earlier
    turns. "" in a source: as in [data], where it means the last."""


class Source(Reading):
    """[[data.sources]]: the examples of one domain, from a file, a folder or the hub."""

    domain: str
    """Name of the domain."""
    preset: str = ""
    """One of the paper's data sets: fingpt, mathinstruct, codealpaca, alpaca, medalpaca. Sets hub and
    columns."""
    train: str = ""
    """Training examples: a .jsonl, .json, .csv, .tsv or .parquet file, a pattern such as "parts/*.jsonl", or
    a data set folder of Hugging Face `datasets`."""
    test: str = ""
    """Test examples; empty: the last `test_share` of a seeded shuffle of the training examples."""
    hub: str = ""
    """Hub id of a Hugging Face data set, instead of files."""
    config: str = ""
    """Configuration name of the hub data set."""
    train_split: str = "train"
    """Split with the training examples."""
    test_split: str = ""
    """Split with the test examples; empty: split off the training examples as above."""
    test_share: Share = 0.1
    """Share of the examples that becomes the test set if there is none."""
    stream: Annotated[int, Field(ge=0)] = 0
    """Rows to read from each split of a hub data set, from a shuffled stream, so that a large set is not
    downloaded in full; num_train and num_test sample from them. 0: all."""


class Data(Reading):
    """[data]: the examples."""

    root: str = ""
    """Folder with <domain>/train.jsonl and <domain>/test.jsonl, or files in another format that `sources`
    accept; takes precedence over `sources`."""
    sources: tuple[Source, ...] = ()
    """Domains from other places; without `root` and `sources`, the built-in data is used."""
    built_in: Literal["domains", "disputed"] = "domains"
    """Which built-in data: five domains, or facts that some clients dispute (docs/data.md)."""
    domains: tuple[str, ...] = ()
    """Use only these domains, in this order; empty: all, sorted by name."""
    num_train: Annotated[int, Field(ge=0)] = 0
    """Training examples sampled from each domain; 0: all."""
    num_test: Annotated[int, Field(ge=0)] = 0
    """Test examples sampled from each domain; 0: all."""
    skip_bad_rows: bool = False
    """Leave out unusable rows, including prompts longer than model.max_length, and count them by reason;
    otherwise they are an error."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each domain's training examples held out of training, for choosing settings."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of sampling and partition. Separate from run.seed, so that runs with different seeds see the same
    examples."""


class Partition(Section):
    """[partition]: how examples are divided among clients. A method that pools them ignores it."""

    kind: Literal["domain", "iid", "dirichlet", "quantity", "pathological", "natural"] = "domain"
    """domain: each domain has its own client(s); docs/data.md describes the others."""
    num_clients: Annotated[int, Field(ge=0)] = 0
    """Number of clients; 0: one per domain (domain), or one per id (natural). More than domains
    splits each domain evenly."""
    by: Literal["domain", "label"] = "domain"
    """The property that dirichlet and pathological distribute unevenly."""
    alpha: Positive = 0.5
    """Concentration of dirichlet and quantity; smaller is more uneven."""
    classes_per_client: Count = 2
    """Classes per client (pathological)."""
    id_column: str = "client"
    """Key of the raw record that names its client (natural)."""
    min_examples: Count = 1
    """Minimum number of training examples of a client."""


class Federation(Section):
    """[federation]: waiting for clients on other machines. A run on this machine ignores it."""

    num_clients: Annotated[int, Field(ge=0)] = 0
    """Clients that must connect before the run begins. Required by Flower's engines; 0: all clients."""
    wait: Positive = 600.0
    """Seconds to wait for them, and later for a quorum of sampled clients, before the run stops."""
    timeout: Positive = 3600.0
    """Time limit in seconds for a client to train or to evaluate; later replies are dropped. A client that
    restarts within a round costs the same time, since its message is lost."""
    prepare: Positive = 43_200.0
    """Seconds beyond `wait` for clients to rewrite their responses; Flower keeps messages that long."""
    nodes: str = ""
    """Folder of the keys registered by `fedsdr deploy register`; set by `fedsdr run --on`. A client with
    another key is not admitted. "": client names are not verified."""


class Communication(Section):
    """[communication]: messages from the clients to the server."""

    dtype: MessageDtype = "float32"
    """float32: exact values. float16 and int8: changes, in half and a quarter of the bytes; the rounding
    error stays at the client and is added to its next change (error feedback)."""


class Privacy(Section):
    """[privacy]: differential privacy (the unit is a client), secure aggregation (docs/threat_model.md)."""

    kind: PrivacyKind = "none"
    """central: a trusted server clips and adds noise. local: each client does."""
    clipping_norm: Scale = 1.0
    """C: Euclidean norm bound for a client's change of the shared adapter in one round."""
    noise_multiplier: Scale = 1.0
    """sigma: standard deviation of the noise, as a multiple of C, under both kinds."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Probability that epsilon does not hold; choose it well below one over the number of clients."""
    max_epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Maximum epsilon; a run that would spend more is rejected before training; 0: no limit."""
    source: Literal["secure", "seeded"] = "secure"
    """Source of the noise: the system's cryptographic one, or run.seed, which is repeatable but no
    protection."""
    secure_aggregation: bool = False
    """The server learns the sum of the clients' changes, and no change of one client. Needs at least three
    clients per round; no cryptographer has reviewed it."""


class Eval(Section):
    """[eval]: measurements on the clients' test examples."""

    every: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Evaluate every n rounds; 0: only the base model and the last round. auto: about ten times in a run of
    20 rounds or more, otherwise 0."""
    split: Literal["test", "validation"] = "test"
    """Examples to score models on; validation: those held out by data.validation."""
    rewritings: bool = True
    """Also rewrite the test responses and report the held-out loss on them."""
    max_new_tokens: Count = 160
    """Longest answer."""
    batch_size: Count = 48
    """Number of answers generated together."""
    text_scores: Literal["off", "free text", "all"] = "free text"
    """Which answers are compared with the true response by exact match, token F1 and ROUGE-L. free text:
    answers to examples without label, answer, facts and tests, which have no other score."""
    code_timeout: Positive = 5.0
    """Time limit in seconds for a program written by the model."""
    run_programs: bool = False
    """Run the tests of examples, with the programs that the model writes. Both are code: leave it off unless
    you trust the data (docs/threat_model.md). Off: tests are ignored. The built-in data are trusted; a
    deployed node uses its own run-programs setting."""


class Settings(Section):
    """Everything that determines a run; written to config.toml in the run's folder."""

    method: str = "fedsdr"
    """What a client trains, on what, in which order (`fedsdr methods`)."""
    run: Run = Run()
    model: Model = Model()
    data: Data = Data()
    partition: Partition = Partition()
    lora: Lora = Lora()
    distill: Distill = Distill()
    client: Client = Client()
    server: Server = Server()
    federation: Federation = Federation()
    communication: Communication = Communication()
    privacy: Privacy = Privacy()
    token_mask: TokenMask = TokenMask()
    feddpa: FedDPA = FedDPA()
    fdlora: FDLoRA = FDLoRA()
    fedala: FedALA = FedALA()
    eval: Eval = Eval()

    @property
    def adapter(self) -> Lora:
        """Shape of the method's adapters."""
        times = METHODS[self.method].times_rank
        ranks = {client: times * rank for client, rank in self.lora.client_ranks.items()}
        wide = self.lora.widened(times * self.lora.rank)
        return wide.model_copy(update={"client_ranks": ranks})

    @property
    def eval_every(self) -> int:
        """Evaluate every n rounds; 0: only the base model and the last round."""
        if self.eval.every != "auto":
            return self.eval.every
        return self.server.num_rounds // 10 if self.server.num_rounds >= 20 else 0

    @property
    def runs_programs(self) -> bool:
        """Whether examples keep their `tests`: with consent, or for the built-in data."""
        return self.eval.run_programs or not (self.data.root or self.data.sources)

    @model_validator(mode="after")
    def _go_together(self, info: ValidationInfo) -> Self:
        check(self, is_saved=info.context == SAVED)
        return self
