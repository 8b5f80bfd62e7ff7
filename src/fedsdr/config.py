"""Settings: what determines a run, as one frozen, checked object. `recipe` makes it of a file.

Every key has its default and its meaning beside it. What a key may be is checked here, and what does not go
together; an error names the key, the value and what would do.
"""

from operator import attrgetter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsdr.methods import (
    AGGREGATIONS,
    DRIFT_CORRECTIONS,
    METHODS,
    OPTIMIZERS,
    PROMPTS,
    ROBUST_AGGREGATORS,
    LocalOptimizer,
    MessageDtype,
    allowed_beside,
    allowed_with,
    clash,
    look_up,
    obstacles,
)

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LEAST_SCALE, MOST_SCALE = 1e-6, 1e6
Scale = Annotated[float, Field(ge=LEAST_SCALE, le=MOST_SCALE, allow_inf_nan=False)]
"""Beyond these, noise would be infinite in float32, or epsilon beyond 10^12."""


MU = 0.01
"""Default weight of the proximal term."""
ROTATION = 1.0
"""Default strength of the rotation."""


class Section(BaseModel):
    """A table of the recipe: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Run(Section):
    """[run]: where the run is kept and what it may use."""

    dir: str = ""
    """The run's folder; empty: runs/<recipe>-<method>-seed<seed>."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initial adapters, data order and the draw of clients."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads for computing; 0: all cores. Fixed at start, since it changes the last bits of results."""
    cache: str = ""
    """A folder that keeps rewritings and what the base model scored, for other runs to reuse; empty: the
    clients' own folders."""


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
    attention: Literal["auto", "grouped", "eager", "sdpa"] = "auto"
    """auto: grouped on processors, sdpa on GPUs. grouped is ours: examples of a batch lie one after the
    other without padding, and less is kept for the backward pass; eager and sdpa are transformers' own,
    with padded batches."""
    checkpointing: Literal["auto", "off", "on"] = "auto"
    """on: a layer's inner states are computed again in the backward pass instead of kept: a third more work,
    a fraction of the memory. auto: on for a quantised base on a GPU, else off."""
    max_length: Annotated[int, Field(ge=16)] = 512
    """Longest conversation in tokens; what is longer loses the end of its response, never the prompt."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off unless you have read it."""


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
    """[partition]: who holds which examples."""

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


class Lora(Section):
    """[lora]: shape of both adapters."""

    rank: Count = 8
    """Rank r of each adapter."""
    alpha: Positive = 16.0
    """Scale is alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get adapters, such as ["q_proj", "v_proj"]."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the adapters in training."""
    client_ranks: dict[str, Count] = {}
    """Rank of the shared adapter at the clients that have a smaller one, by client id; the server and all
    others have `rank`. The scale stays alpha / rank, and private adapters keep `rank`."""

    def __hash__(self) -> int:
        """Hash what may be hashed, so that models can be remembered by it."""
        return hash((self.rank, self.alpha, self.targets, self.dropout))

    def rank_of(self, client: str) -> int:
        """Rank of the shared adapter at a client."""
        return self.client_ranks.get(client, self.rank)

    def widened(self, rank: int) -> "Lora":
        """The same scale alpha / rank at another rank."""
        return self.model_copy(update={"rank": rank, "alpha": self.alpha * (rank / self.rank)})

    @model_validator(mode="after")
    def _clients_have_smaller_ranks(self) -> Self:
        for client, rank in self.client_ranks.items():
            if rank >= self.rank:
                raise ValueError(
                    f"client_ranks.{client} = {rank} is not below rank = {self.rank}, which the server and"
                    " all clients not named have: set less, or leave it out"
                )
        return self


class Distill(Section):
    """[distill]: how the model rewrites the responses before round 1."""

    verify: Literal["off", "answer"] = "off"
    """off: what a rewriting says is not checked (the paper's FedSD); only empty, cut-off, refusing and
    self-referring ones, and what is too long, fall back to the true response. answer: one that loses
    the label, final answer, facts or tests falls back too (ours, beyond the paper)."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("reference", "paraphrase", "turn")
    """Rewriting prompts, tried in order until the checks pass; without checks only the first."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """0: greedy. The paper leaves the sampling open."""
    top_p: Share = 1.0
    """Nucleus of the sampling; 1: the whole vocabulary."""
    max_new_tokens: Count = 192
    """Longest rewriting; what is cut off there falls back to the true response."""
    batch_size: Count = 48
    """Responses rewritten at a time."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampling. Apart from run.seed, so that runs may share rewritings."""
    url: str = ""
    """Base address of an OpenAI-compatible server that rewrites, such as http://localhost:8000/v1; empty:
    the model of this process. It sees the client's prompts and responses, so it must be the client's own.
    A key, where it wants one, is read from the environment variable FEDSDR_API_KEY."""
    served_name: str = ""
    """Name of the model there. Self-distillation wants the run's own model; another one is a teacher, and
    the run no longer FedSD or FedSDR as the paper has them."""

    @model_validator(mode="after")
    def _server_is_named(self) -> Self:
        if bool(self.url) != bool(self.served_name):
            raise ValueError(
                f"url = {self.url!r} and served_name = {self.served_name!r}: set both to rewrite by a server,"
                " or neither"
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"url = {self.url!r} does not begin with http:// or https://: set an address such as"
                " http://localhost:8000/v1"
            )
        return self


class Client(Section):
    """[client]: the local update."""

    local_steps: Annotated[int, Field(ge=0)] = 8
    """Optimizer steps; 0: use local_epochs. See `budget` for of what."""
    local_epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the client's data in each stage, instead of local_steps."""
    budget: Literal["per_stage", "per_round"] = "per_stage"
    """per_stage: each stage takes local_steps. per_round: the stages of a round divide local_steps
    evenly among them, so that methods with one and two stages take equal steps."""
    batch_size: Count = 4
    """Examples in one forward pass."""
    accumulation: Count = 1
    """Forward passes in one optimizer step."""
    optimizer: LocalOptimizer = "adamw"
    """adamw, or sgd: plain, without momentum. Sgd wants a larger learning_rate."""
    learning_rate: Positive = 2e-4
    """The optimizer's rate in round 1."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the rate falls over the rounds; within a round it is constant."""
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Rate of the last round as a share of the first's (cosine and linear)."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay, alike in both optimizers: each step takes rate * weight_decay of w off."""
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Gradients are clipped to this global norm; 0: not at all."""
    drift_correction: str = "none"
    """Against drift, in stages that train the shared adapter: none, proximal, scaffold or scaffold-adamw
    (`fedsdr methods`)."""
    mu: Positive = MU
    """Weight of the proximal term."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        row = look_up(DRIFT_CORRECTIONS, self.drift_correction, "client.drift_correction")
        if not row.is_proximal and self.mu != MU:
            raise ValueError(
                f"mu = {self.mu} does nothing under drift_correction = {self.drift_correction!r}:"
                " set drift_correction = 'fedprox'"
            )
        if row.optimizer == "sgd" and self.max_grad_norm:
            raise ValueError(
                f"drift_correction = {self.drift_correction!r} reads gradients off the steps, so they may not"
                f" be clipped to max_grad_norm = {self.max_grad_norm}: set it to 0"
            )
        if row.has_control_variates and self.schedule != "constant" and not self.final_rate:
            raise ValueError(
                f"drift_correction = {self.drift_correction!r} divides by the rate, which final_rate = 0"
                " makes 0 in the last round: set it above 0, or schedule = 'constant'"
            )
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ValueError(
                "set one of local_steps and local_epochs above 0 and the other to 0"
                f" (found local_steps = {self.local_steps}, local_epochs = {self.local_epochs})"
            )
        if self.local_epochs and self.budget == "per_round":
            raise ValueError("budget = 'per_round' divides steps: set local_steps, not local_epochs")
        return self


class Server(Section):
    """[server]: rounds and aggregation."""

    num_rounds: Count = 3
    """Rounds of the whole run."""
    aggregation: str = "average"
    """How the clients' factors become one target (`fedsdr methods`)."""
    robust: str = "none"
    """How one number of several clients becomes one (`fedsdr methods`). Robust aggregators take no weights,
    and hold every client's factors in memory."""
    num_byzantine: Annotated[int, Field(ge=0)] = 0
    """f: how many bad clients a robust aggregator must withstand in a round."""
    optimizer: str = "fedavg"
    """How the server steps towards the target (`fedsdr methods`)."""
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """eta of the server optimizer; 0: its own default (1 for momentum, 1e-3 for the adaptive ones, whose
    steps do not shrink with the clients' changes). fedavg takes the target as it is."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment (all but fedavg)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the second moment (fedadam, fedyogi)."""
    tau: Positive = 1e-3
    """Added to the root of the second moment, whose first value is its square (adaptive ones)."""
    clients_per_round: Annotated[int, Field(ge=0)] = 0
    """Clients drawn for each round; 0: all."""
    quorum: Share = 0.5
    """Share of the asked clients whose replies must pass the guard, or the run stops."""
    rotation: Share = ROTATION
    """lambda of fedrot: 1 rotates the clients' factors fully towards the reference, less only partly."""
    rotation_reference: Literal["alternate", "A", "B"] = "alternate"
    """Which broadcast factor fedrot rotates towards; alternate: A in even rounds, B in odd ones."""
    max_norm: Positive = 1e4
    """A reply whose tensor has a larger Euclidean norm is dropped as absurd."""
    keep_updates: bool = False
    """Keep what each client sent in each round, to measure how alike the clients' changes are
    (`fedsdr measure`): one adapter a client and round on the server's disk, for good. A single client's
    update says more of its data than the mean does: in a deployment each client must consent."""

    @property
    def eta(self) -> float:
        """The server optimizer's learning rate."""
        return self.learning_rate or OPTIMIZERS[self.optimizer].rate

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        look_up(AGGREGATIONS, self.aggregation, "server.aggregation")
        look_up(OPTIMIZERS, self.optimizer, "server.optimizer")
        look_up(ROBUST_AGGREGATORS, self.robust, "server.robust")
        for key, usual in (("rotation", ROTATION), ("rotation_reference", "alternate")):
            value = getattr(self, key)
            if value != usual and not AGGREGATIONS[self.aggregation].is_turned:
                raise ValueError(
                    f"{key} = {value!r} does nothing under aggregation = {self.aggregation!r}, which rotates"
                    " nothing: leave it out, or set aggregation = 'fedrot'"
                )
        if self.num_byzantine and self.robust == "none":
            raise ValueError(
                f"num_byzantine = {self.num_byzantine} does nothing under robust = 'none': choose a robust"
                " one, or leave it at 0"
            )
        if ROBUST_AGGREGATORS[self.robust].wants_byzantine and not self.num_byzantine:
            raise ValueError(
                f"robust = {self.robust!r} withstands num_byzantine bad clients, which is 0: set 1 or more"
            )
        if self.learning_rate and self.optimizer == "fedavg":
            raise ValueError(
                f"learning_rate = {self.learning_rate} does nothing under optimizer = 'fedavg', which takes"
                " the target as it is: leave it at 0, or choose another optimizer"
            )
        return self


class Federation(Section):
    """[federation]: waiting for clients on other machines. The local engine has all of its own at hand."""

    num_clients: Annotated[int, Field(ge=0)] = 0
    """Clients that must have connected before the run begins. Flower's engines need it; 0: all there are."""
    wait: Positive = 600.0
    """Seconds to wait for them, and later for a quorum of those that a round asks, before the run stops."""
    timeout: Positive = 3600.0
    """Seconds that a client has to train or to be evaluated; what comes later is not used. A client that is
    killed and back within seconds costs the round as much, since its message is lost."""
    prepare: Positive = 43_200.0
    """Seconds beyond `wait` for clients to rewrite their responses; Flower keeps messages so long."""
    nodes: str = ""
    """Folder where `fedsdr deploy register` keeps which key is whose; `fedsdr run --on` sets it. A client
    with another key is not let in. "": clients are believed who they say they are."""


class Communication(Section):
    """[communication]: what travels from the clients to the server."""

    dtype: MessageDtype = "float32"
    """float32: values as they are. float16 and int8: changes, in half and a quarter of the bytes; what is
    lost in rounding is kept at the client and added to its next change."""


class Privacy(Section):
    """[privacy]: differential privacy of the shared adapter; the unit is a client (docs/threat_model.md)."""

    kind: Literal["none", "central", "local"] = "none"
    """central: the server clips what comes and adds noise, and is trusted to. local: each client does."""
    clip: Scale = 1.0
    """C: Euclidean norm to which a client's change of the shared adapter in one round is scaled down."""
    noise: Scale = 1.0
    """sigma: standard deviation of the noise over C."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Chance that the promise of epsilon fails; well below one over the number of clients."""
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Largest epsilon; a run that would spend more stops before it trains, and says what would do; 0: any."""
    source: Literal["secure", "seeded"] = "secure"
    """Of the noise: the system's cryptographic source, or run.seed, which repeats it and protects nothing."""


class FedDPA(Section):
    """[feddpa]: weights of the shared and the private adapter for each test prompt (method feddpa)."""

    num_examples: Count = 5
    """Training examples to which a prompt is compared."""
    max_weight: Share = 0.5
    """Weight of the private adapter for a prompt that is as the client's own."""


class FDLoRA(Section):
    """[fdlora]: the private adapter before round 1, and the fusion of both adapters (method fdlora)."""

    before_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of a stage before round 1; 0: as many as client.local_steps or client.local_epochs
    give a stage."""
    num_examples: Count = 5
    """Training examples on which a fusion is tried."""
    num_evaluations: Count = 40
    """Fusions that are tried; some more, since the search ends with a whole sweep."""


class FedALA(Section):
    """[fedala]: the local aggregation at the start of a round (method fedala)."""

    share: Share = 0.8
    """Share of the training examples on which its weights are learnt."""
    rate: Positive = 1.0
    """Step size of those weights. The paper's 1 hardly moves them (docs/methods.md)."""


class Eval(Section):
    """[eval]: what is measured on the clients' test examples."""

    every: Annotated[int, Field(ge=0)] = 0
    """Evaluate every so many rounds; 0: only the base model and the last round."""
    on: Literal["test", "validation"] = "test"
    """Which examples models are scored on; validation: those that data.validation keeps out."""
    rewritings: bool = True
    """Also rewrite the test responses and give the held-out loss on them."""
    max_new_tokens: Count = 160
    """Longest answer."""
    batch_size: Count = 48
    """Answers written at a time."""
    code_timeout: Positive = 5.0
    """Seconds that a program written by the model may run."""


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

    @model_validator(mode="after")
    def _check_across(self) -> Self:
        method = look_up(METHODS, self.method, "method")
        for name in self.distill.prompts:
            look_up(PROMPTS, name, "distill.prompts")
        aggregation = AGGREGATIONS[self.server.aggregation]
        why = obstacles(aggregation) | {"method": clash(method, aggregation)}
        for key, allowed in allowed_with(aggregation).items():
            chosen = attrgetter(key)(self)
            if chosen not in allowed:
                raise ValueError(
                    f"{key} = {chosen!r} does not go with server.aggregation = {self.server.aggregation!r},"
                    f" which {why[key]}: set {key} = {' or '.join(map(repr, allowed))}"
                )
        if self.lora.client_ranks and aggregation.ranks == "one":
            able = [name for name, row in AGGREGATIONS.items() if row.ranks != "one"]
            raise ValueError(
                f"lora.client_ranks = {self.lora.client_ranks} does not go with server.aggregation ="
                f" {self.server.aggregation!r}, which takes factors of one rank: set server.aggregation ="
                f" {' or '.join(map(repr, able))}"
            )
        if aggregation.ranks == "several" and not self.lora.client_ranks:
            raise ValueError(
                f"server.aggregation = {self.server.aggregation!r} is 'average' where all clients have one"
                " rank: name those of smaller rank in lora.client_ranks, or set 'average'"
            )
        for key, allowed in allowed_beside(DRIFT_CORRECTIONS[self.client.drift_correction]).items():
            chosen = attrgetter(key)(self)
            if chosen not in allowed:
                raise ValueError(
                    f"client.drift_correction = {self.client.drift_correction!r} does not hold with {key} ="
                    f" {chosen!r}"
                    f" (docs/methods.md): set {key} = {' or '.join(map(repr, allowed))}"
                )
        if not method.shares:
            for key, value, usual in (
                ("client.drift_correction", self.client.drift_correction, "none"),
                ("server.aggregation", self.server.aggregation, "average"),
                ("server.robust", self.server.robust, "none"),
                ("server.optimizer", self.server.optimizer, "fedavg"),
                ("communication.dtype", self.communication.dtype, "float32"),
                ("lora.client_ranks", self.lora.client_ranks, {}),
                ("server.keep_updates", self.server.keep_updates, False),
                ("privacy.kind", self.privacy.kind, "none"),
            ):
                if value != usual:
                    raise ValueError(
                        f"{key} = {value!r} does nothing under method = {self.method!r}: leave it out"
                    )
        if self.privacy.kind == "none":
            changed = [key for key, value in self.privacy if value != getattr(Privacy(), key)]
            if changed:
                raise ValueError(
                    f"privacy.{changed[0]} = {getattr(self.privacy, changed[0])!r} does nothing under"
                    " privacy.kind = 'none': set central or local, or leave it out"
                )
        else:
            accounted: dict[str, tuple[Any, ...]] = {
                "server.aggregation": ("average", "ffa"),
                "server.robust": ("none",),
                "client.drift_correction": ("none", "fedprox"),
                "communication.dtype": ("float32",),
                "lora.client_ranks": ({},),
                "server.keep_updates": (False,),
            }
            for setting, fitting in accounted.items():
                found = attrgetter(setting)(self)
                if found not in fitting:
                    raise ValueError(
                        f"{setting} = {found!r} lets out more of a client than privacy.kind ="
                        f" {self.privacy.kind!r} accounts for: set {setting} ="
                        f" {' or '.join(map(repr, fitting))}"
                    )
        if self.data.built_in == "disputed":
            if self.data.root or self.data.sources:
                raise ValueError(
                    "data.built_in = 'disputed' is not used beside data.root or data.sources: leave it out"
                )
            if self.partition.kind != "natural":
                raise ValueError(
                    f"data.built_in = 'disputed' says who holds what, which partition.kind ="
                    f" {self.partition.kind!r} would undo: set partition.kind = 'natural'"
                )
        if self.eval.on == "validation" and not self.data.validation:
            raise ValueError(
                "eval.on = 'validation', but data.validation = 0.0 keeps no examples out: set it to 0.1"
            )
        for name, is_used in (
            ("feddpa", method.personal == "weighed"),
            ("fdlora", method.personal == "fused"),
            ("fedala", method.on_receive == "adapt"),
        ):
            section = getattr(self, name)
            changed = [key for key, value in section if value != getattr(type(section)(), key)]
            if changed and not is_used:
                raise ValueError(
                    f"{name}.{changed[0]} = {getattr(section, changed[0])} does nothing under method ="
                    f" {self.method!r}: leave it out"
                )
        if method.on_receive == "adapt" and self.client.drift_correction != "none":
            raise ValueError(
                f"client.drift_correction = {self.client.drift_correction!r} holds the shared adapter to what"
                " was sent,"
                f" from which method = {self.method!r} does not begin: set client.drift_correction = 'none'"
            )
        steps, stages = self.client.local_steps, len(method.stages)
        if self.client.budget == "per_round" and steps < stages:
            raise ValueError(
                f"client.local_steps = {steps} cannot be divided over the {stages} stages of"
                f" {self.method}: set at least {stages}"
            )
        return self
