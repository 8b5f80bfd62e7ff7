"""Settings: what determines a run, as one frozen, checked object. `recipe` reads it from a file.

Each key is documented under its default. The sections of training are in `config_training`. Types and ranges
are checked here, and what goes with what in `compatibility`. An error names the key, the value, and how to
fix it.
"""

import re
from datetime import date as Day
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

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

LEAST_SCALE, MOST_SCALE = 1e-6, 1e6
LogTo = Literal["tensorboard", "wandb", "mlflow", "trackio"]
Scale = Annotated[float, Field(ge=LEAST_SCALE, le=MOST_SCALE, allow_inf_nan=False)]
"""Beyond these, noise would be infinite in float32, or epsilon beyond 10^12."""


class Run(Section):
    """[run]: folder, seed and resources of a run."""

    dir: str = ""
    """The run's folder; empty: runs/<recipe>-<method>-seed<seed>."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initial adapters, data order and the draw of clients."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for computing; 0: all cores. Fixed at start, since it changes the last bits of results."""
    engine: Literal["local", "simulation"] = "local"
    """local: one client after the other, in this process. simulation: several at a time, by Flower's
    simulation on Ray (`fedsdr[simulation]`); equal bytes at equal threads."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Workers of the simulation engine; 0: as many as threads or GPUs allow."""
    gpus_per_client: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a worker of the simulation engine; 0.5 puts two workers on one."""
    ray: str = ""
    """Address of a running Ray cluster, or "auto"; empty: Ray is started on this machine for the run."""
    cache: str = ""
    """A folder that keeps rewritings and what the base model scored, for other runs to reuse; empty: the
    clients' own folders."""
    log_to: tuple[LogTo, ...] = ()
    """Loggers that receive the numbers of the run, such as ["tensorboard"] (docs/python.md). They change no
    result; each is an extra of the package."""


class Model(Section):
    """[model]: the frozen base model."""

    name: str = "smollm2-135m-instruct"
    """A built-in name (`fedsdr models`), a local folder, a .gguf file, or a hub id."""
    revision: str = ""
    """Branch, tag or commit for a hub id; empty: the default branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the base weights and of computing; auto: bfloat16 where the machine is fast in it."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """Load the base through bitsandbytes."""
    attention: Literal["auto", "grouped", "packed", "eager", "sdpa"] = "auto"
    """auto: grouped on processors, sdpa on GPUs. grouped is ours: examples of a batch lie one after the
    other without padding, and the backward pass needs less memory. packed lays them out alike, under torch's
    fused attention; it was not tried on a GPU. eager and sdpa are transformers' own, with padded batches."""
    checkpointing: Literal["auto", "off", "on"] = "auto"
    """on: activations are recomputed in the backward pass instead of stored: a third more work,
    a fraction of the memory. auto: on where an estimate with states kept takes more than half of a GPU's free
    memory, else off; in a deployment, of the server's."""
    max_length: Annotated[int, Field(ge=16)] = 512
    """Longest conversation in tokens; what is longer loses the end of its response, never the prompt."""
    chat_template: Literal["own", "plain"] = "own"
    """own: the one that comes with the tokenizer. plain: instruction and response under headings
    (docs/models.md), for base models without a template."""
    template_args: dict[str, bool | int | float | str] = {}
    """What the chat template is given besides the turns, such as {enable_thinking = false}."""
    date: str = "2026-01-01"
    """The day that it is for chat templates which write the date, so that a run can be repeated."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off unless you have read it."""

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

    def __hash__(self) -> int:
        """Hash what may be hashed, so that models can be remembered by it."""
        return hash(self.model_dump_json())


class Reading(Section):
    """How rows become examples: keys of [data], for all domains, and of a source, whose own win."""

    columns: dict[str, str] = {}
    """Which column feeds which field, such as {response = "answer"}; fields as in `Example`, and client and
    messages. A text with columns in braces is filled from them: {context = "{title}: {body}"}; points lead
    into nested objects; "" switches a field off. A column named here feeds no other field by its name."""
    label_names: tuple[str, ...] = ()
    """Names of numbered labels, that of 0 first; true and false are 1 and 0."""
    choices_after: str = ""
    """Text in the prompt after which its lines list the choices, such as "OPTIONS:"; for rows without."""
    where: dict[str, str | tuple[str, ...]] = {}
    """Only rows whose columns have these values, such as {task = "fix_*"}; a list: any of them."""
    train_on: Literal["", "last", "all"] = ""
    """Which answers of a conversation are trained on, and rewritten: the last, or all, each with the turns
    before it. "" in a source: as [data] has it; there: the last."""


class Source(Reading):
    """[[data.sources]]: the examples of one domain, from a file, a folder or the hub."""

    domain: str
    """Name of the domain."""
    preset: str = ""
    """One of the paper's sets: fingpt, mathinstruct, codealpaca, alpaca, medalpaca. Sets hub and columns."""
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
    """Split with the test examples; empty: taken off the training examples as above."""
    test_share: Share = 0.1
    """Share of the examples that becomes the test set where none is given."""
    stream: Annotated[int, Field(ge=0)] = 0
    """Rows that are read of each split of a hub set, out of a shuffled stream, so that a large set is not
    fetched whole; num_train and num_test draw from them. 0: all."""


class Data(Reading):
    """[data]: which examples there are."""

    root: str = ""
    """A folder with <domain>/train.jsonl and <domain>/test.jsonl, or files of another format that `sources`
    take; wins over `sources`."""
    sources: tuple[Source, ...] = ()
    """Domains from elsewhere; with neither `root` nor `sources` the built-in data is used."""
    built_in: Literal["domains", "disputed"] = "domains"
    """Which built-in data: five domains, or facts that some clients contradict (docs/data.md)."""
    domains: tuple[str, ...] = ()
    """Only these domains, in this order; empty: all, sorted by name."""
    num_train: Annotated[int, Field(ge=0)] = 0
    """Training examples drawn from each domain; 0: all."""
    num_test: Annotated[int, Field(ge=0)] = 0
    """Test examples drawn from each domain; 0: all."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be used, prompts longer than model.max_length among them, and count them by
    reason; else they are an error."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each domain's training examples that is kept out of training, to choose settings by."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draw and the partition. Apart from run.seed, so that runs with different seeds see the
    same examples."""


class Partition(Section):
    """[partition]: which client holds which examples."""

    kind: Literal["domain", "iid", "dirichlet", "quantity", "pathological", "natural"] = "domain"
    """domain: each domain at its own client(s); the others are in docs/data.md."""
    num_clients: Annotated[int, Field(ge=0)] = 0
    """Number of clients; 0: one per domain (domain), or one per id (natural). More than domains
    splits each domain evenly."""
    by: Literal["domain", "label"] = "domain"
    """What dirichlet and pathological make uneven."""
    alpha: Positive = 0.5
    """Concentration of dirichlet and quantity; smaller is more uneven."""
    classes_per_client: Count = 2
    """Classes that a client of pathological holds."""
    id_column: str = "client"
    """Key of the raw record that names its client (natural)."""
    min_examples: Count = 1
    """Fewest training examples that a client may end up with."""


class Federation(Section):
    """[federation]: waiting for clients on other machines. The local engine needs none of it."""

    num_clients: Annotated[int, Field(ge=0)] = 0
    """Clients that must have connected before the run begins. Flower's engines need it; 0: all there are."""
    wait: Positive = 600.0
    """Seconds to wait for them, and later for a quorum of the sampled clients, before the run stops."""
    timeout: Positive = 3600.0
    """Seconds that a client has to train or to evaluate; later replies are dropped. A client that restarts
    within a round costs the same time, since its message is lost."""
    prepare: Positive = 43_200.0
    """Seconds beyond `wait` for clients to rewrite their responses; Flower keeps messages so long."""
    nodes: str = ""
    """Folder where `fedsdr deploy register` keeps which key is whose; `fedsdr run --on` sets it. A client
    with another key is not let in. "": clients are believed who they say they are."""


class Communication(Section):
    """[communication]: what travels from the clients to the server."""

    dtype: MessageDtype = "float32"
    """float32: values as they are. float16 and int8: changes, in half and a quarter of the bytes; what is
    lost in rounding stays at the client and is added to its next change (error feedback)."""


class Privacy(Section):
    """[privacy]: differential privacy (the unit is a client), secure aggregation (docs/threat_model.md)."""

    kind: PrivacyKind = "none"
    """central: a trusted server clips and adds noise. local: each client does."""
    clip: Scale = 1.0
    """C: Euclidean norm to which a client's change of the shared adapter in one round is scaled down."""
    noise: Scale = 1.0
    """sigma: standard deviation of the noise over C."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Probability that epsilon does not hold; well below one over the number of clients."""
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Largest epsilon; a run that would spend more is refused before it trains; 0: any."""
    source: Literal["secure", "seeded"] = "secure"
    """Of the noise: the system's cryptographic source, or run.seed, which repeats it and protects nothing."""
    secure_aggregation: bool = False
    """The server learns the sum of the clients' changes, and no change of one client. For rounds of three
    clients or more; no cryptographer has reviewed it."""


class Eval(Section):
    """[eval]: what is measured on the clients' test examples."""

    every: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Evaluate every so many rounds; 0: only the base model and the last round. auto: about ten times in a
    run of 20 rounds or more, else 0."""
    on: Literal["test", "validation"] = "test"
    """Which examples models are scored on; validation: those that data.validation keeps out."""
    rewritings: bool = True
    """Also rewrite the test responses and give the held-out loss on them."""
    max_new_tokens: Count = 160
    """Longest answer."""
    batch_size: Count = 48
    """Answers written at a time."""
    text_scores: Literal["off", "free text", "all"] = "free text"
    """Whose answers are compared with the true response by exact match, token F1 and ROUGE-L. free text: of
    examples without label, answer, facts and tests, which have no other score."""
    code_timeout: Positive = 5.0
    """Seconds that a program written by the model may run."""
    run_programs: bool = False
    """Run the tests that examples carry, with the programs that the model writes. Both are code: leave it off
    unless you trust the data (docs/threat_model.md). Off: such examples count as having no tests. The
    built-in data are trusted, and at a node of a deployment its own run-programs counts."""


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
        """Shape of the adapters that the method has."""
        times = METHODS[self.method].times_rank
        ranks = {client: times * rank for client, rank in self.lora.client_ranks.items()}
        wide = self.lora.widened(times * self.lora.rank)
        return wide.model_copy(update={"client_ranks": ranks})

    @property
    def eval_every(self) -> int:
        """Evaluate every so many rounds; 0: only the base model and the last round."""
        if self.eval.every != "auto":
            return self.eval.every
        return self.server.num_rounds // 10 if self.server.num_rounds >= 20 else 0

    @property
    def runs_programs(self) -> bool:
        """Whether examples keep their `tests`: by consent, or since they are the built-in ones."""
        return self.eval.run_programs or not (self.data.root or self.data.sources)

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        check(self)
        return self
