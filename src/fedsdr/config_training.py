"""Settings of federated training: adapters, self-distillation, local update, server, specific methods."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsdr.methods import DRIFT_CORRECTIONS, OPTIMIZERS
from fedsdr.rows import Adapter, LocalOptimizer

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of the recipe: frozen, without unknown keys or silent type conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def __hash__(self) -> int:
        """Hash the JSON, since a field may be a dict; models are cached by their settings."""
        return hash(self.model_dump_json())


class Lora(Section):
    """[lora]: shape of both adapters."""

    rank: Count = 8
    """Rank r of each adapter."""
    alpha: Positive = 16.0
    """Scale is alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of the linear layers with adapters, such as ["q_proj", "v_proj"]."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of the adapters in training."""
    client_ranks: dict[str, Count] = {}
    """Rank of the shared adapter at clients with a smaller one, by client id; the server and all other
    clients use `rank`. The scale stays alpha / rank, and private adapters keep `rank`."""

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
                    f"client_ranks.{client} = {rank} is not below rank = {self.rank}, that of the server and"
                    " all other clients: set a smaller one, or leave it out"
                )
        return self


class Distill(Section):
    """[distill]: how the model rewrites the responses before round 1."""

    verify: Literal["off", "answer", "answer+likelihood"] = "off"
    """off: the content of a rewriting is not checked (the paper's FedSD); only empty, truncated, refusing and
    self-referring rewritings, and those too long, fall back to the true response. answer: a rewriting that
    loses the label, final answer, facts or tests falls back too (our addition). answer+likelihood: for
    labelled examples, also one that raises the base model's likelihood of another choice more than that of
    the label. It shares the model's errors: see the shares used by label."""
    only: Literal["all", "likelier", "representative"] | tuple[str, ...] = "all"
    """Which training responses are rewritten; the others are used unchanged. A list: those of these domains.
    likelier: those whose rewriting passes the checks and is likelier under the base model than the true
    response, by mean log p per token. representative: one for each cluster of a client's examples, selected
    as in FedHDS. Test responses are always rewritten, so that losses on them are comparable."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("reference", "paraphrase", "turn")
    """Rewriting prompts, tried in order until the checks pass; without checks only the first."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Sampling temperature; 0: greedy. The paper leaves the sampling open."""
    top_p: Share = 1.0
    """Nucleus sampling probability; 1: the whole vocabulary."""
    max_new_tokens: Count = 192
    """Longest rewriting in tokens; truncated rewritings fall back to the true response."""
    batch_size: Count = 48
    """Responses rewritten together; with a server, responses saved together."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampling. Separate from run.seed, so that runs can share rewritings."""
    url: str = ""
    """Base address of an OpenAI-compatible server that rewrites, such as http://localhost:8000/v1; empty: the
    model of this process. The server receives the client's prompts and responses, so it must be the client's
    own. An API key, if needed, is read from the environment variable FEDSDR_API_KEY."""
    num_requests: Count = 48
    """Number of concurrent requests to the server."""
    served_name: str = ""
    """Name of the model on that server. Self-distillation means the run's own model. With another model as
    the teacher, the run is not the FedSD or FedSDR of the paper."""
    template_args: dict[str, bool | int | float | str] = {}
    """Arguments for the server's chat template, such as {enable_thinking = false}: sent as
    chat_template_kwargs, which vLLM, SGLang and llama.cpp accept. Empty: not sent."""

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
    """Optimizer steps per stage or per round (`budget`); 0: use local_epochs."""
    local_epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the client's data in each stage, instead of local_steps."""
    budget: Literal["per_stage", "per_round"] = "per_stage"
    """per_stage: each stage takes local_steps (times its share, if it has one). per_round: the stages of a
    round divide local_steps among them, so that methods with one and two stages take the same number of
    steps."""
    batch_size: Count = 4
    """Examples in one forward pass."""
    accumulation: Count = 1
    """Forward passes in one optimizer step."""
    optimizer: LocalOptimizer = "adamw"
    """adamw, or sgd: plain, without momentum. sgd needs a larger learning_rate."""
    learning_rate: Positive = 2e-4
    """Learning rate in round 1."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """Schedule of the learning rate over rounds; it is constant within a round."""
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate of the last round as a share of the first round's (cosine and linear)."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay in both optimizers: each step subtracts rate * weight_decay * w."""
    max_grad_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Gradients are clipped to this global norm; 0: no clipping."""
    drift_correction: str = "none"
    """Correction of client drift in stages that train the shared adapter (`fedsdr methods`)."""
    mu: Positive | Literal["auto"] = "auto"
    """Weight of the correction's term in the loss. auto: 0.01 for fedprox, 0.1 for l2, 1 for kl and not-true,
    4 for rehearsal."""

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if (self.local_steps > 0) == (self.local_epochs > 0):
            raise ValueError(
                "set one of local_steps and local_epochs above 0 and the other to 0"
                f" (found local_steps = {self.local_steps}, local_epochs = {self.local_epochs})"
            )
        return self

    @property
    def weight(self) -> float:
        """The weight of the drift correction's term in the loss."""
        return DRIFT_CORRECTIONS[self.drift_correction].weight if self.mu == "auto" else self.mu


class Server(Section):
    """[server]: rounds and aggregation."""

    num_rounds: Count = 3
    """Rounds of the whole run."""
    aggregation: str = "average"
    """How the clients' factors are combined into one target (`fedsdr methods`)."""
    robust: str = "none"
    """Robust aggregator (`fedsdr methods`); none: the mean weighted by example counts
    (`max_weight`). The others use no weights and hold the factors of all clients in memory."""
    num_byzantine: Annotated[int, Field(ge=0)] = 0
    """f: number of malicious clients that a robust aggregator must tolerate in a round."""
    optimizer: str = "fedavg"
    """Server optimizer: how the server steps towards the target (`fedsdr methods`)."""
    learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """eta of the server optimizer; 0: its own default (1 for momentum, 1e-3 for the adaptive ones, whose
    steps do not shrink with the clients' changes). fedavg uses the target unchanged."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the second moment."""
    tau: Positive = 1e-3
    """Added to the root of the second moment, whose first value is its square. fedexp adds its square to the
    squared norm of the mean change."""
    mean_of_rounds: Count = 1
    """The final shared adapter is the mean over the last n rounds; 1: the last one."""
    clients_per_round: Annotated[int, Field(ge=0)] = 0
    """Clients sampled for each round; 0: all."""
    quorum: Share = 0.5
    """Share of the sampled clients whose replies must pass validation; otherwise the run stops."""
    rotation: Share = 1.0
    """lambda of fedrot: 1 rotates the clients' factors fully towards the reference, smaller values only
    partly."""
    rotation_reference: Literal["alternate", "A", "B"] = "alternate"
    """Which broadcast factor fedrot rotates towards; alternate: A in even rounds, B in odd ones."""
    max_norm: Positive = 1e4
    """A reply with a tensor of larger Euclidean norm is dropped."""
    max_change: Annotated[int, Field(ge=0)] = 10
    """A reply is dropped if its change of the shared adapter exceeds this multiple of the round's median
    Euclidean norm; 0: no limit. For the mean only: robust aggregators and privacy.kind = "central" tolerate
    large changes."""
    max_weight: Annotated[int, Field(ge=0)] = 10
    """Cap on a client's weight, as a multiple of the median of the clients' numbers of training examples; 0:
    the number that it reports. For the mean only, as `max_change`."""
    max_domains: Count = 100
    """A reply with more domains is dropped: each becomes a row of the page."""
    keep_rounds: Literal["all", "last"] | Count = "all"
    """Which rounds stay on the server's disk: all, only the last, or every n-th and the last. Only these can
    be exported, evaluated and measured later; a stopped run resumes from the last."""
    keep_updates: bool = False
    """Save each client's update in each round, to measure how similar the updates are (`fedsdr measure`): one
    adapter per client and round stays on the server's disk. A single client's update reveals more about its
    data than the mean does, so in a deployment each client must consent."""

    @model_validator(mode="after")
    def _averaged_rounds_are_kept(self) -> Self:
        if self.mean_of_rounds > 1 and self.keep_rounds not in ("all", 1):
            raise ValueError(
                f"mean_of_rounds = {self.mean_of_rounds} reads rounds that keep_rounds = {self.keep_rounds!r}"
                ' removes: set keep_rounds to "all", or mean_of_rounds to 1'
            )
        return self

    @property
    def eta(self) -> float:
        """The server optimizer's learning rate."""
        return self.learning_rate or OPTIMIZERS[self.optimizer].rate


class TokenMask(Section):
    """[token_mask]: which raw tokens are likely under the base model (method token-mask)."""

    perplexity: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.5
    """Threshold on 1 / p above which a token is masked; default from the paper."""
    soft: bool = False
    """Down-weight masked tokens by how unlikely they are instead of excluding them: facts are still learned
    (our addition)."""


class FedDPA(Section):
    """[feddpa]: weights of the shared and the private adapter for each test prompt (method feddpa)."""

    num_examples: Count = 5
    """Number of training examples to compare a prompt with."""
    weighs: Adapter = "private"
    """Which adapter has the similarity weight w of a prompt; the other has 1 - w. private: prompts similar to
    the client's data use more of its own adapter, as in the paper. shared: as in its authors' code."""
    max_weight: Share = 0.5
    """Weight for a prompt that equals the client's own."""


class FDLoRA(Section):
    """[fdlora]: the private adapter before round 1 (fdlora, fedsdr-once), and the fusion of both (fdlora)."""

    before_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of a stage before round 1; 0: the same as client.local_steps or client.local_epochs
    give."""
    num_examples: Count = 5
    """Number of training examples for evaluating a fusion."""
    num_evaluations: Count = 40
    """Approximate number of fusions to try; the search ends with a complete sweep."""


class FedALA(Section):
    """[fedala]: the local aggregation at the start of a round (method fedala)."""

    share: Share = 0.8
    """Share of the training examples for training its weights."""
    rate: Positive = 1.0
    """Step size of these weights. The paper's value 1 hardly changes them (docs/methods/fedala.md)."""
