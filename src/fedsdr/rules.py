"""Which settings can be combined, which cannot, and why: the rules, as data (`compatibility`)."""

from fedsdr.rows import But, Rule, Use

RULES = (
    Rule(
        {"server.aggregation": lambda row: not row.is_linear},
        {
            "server.robust": ("none",),
            "server.optimizer": ("fedavg",),
            "communication.dtype": ("float32",),
            "server.mean_of_rounds": (1,),
        },
        "does not aggregate each number for itself",
    ),
    Rule(
        {"server.aggregation": lambda row: row.is_plugin},
        {"server.robust": ("none",)},
        "decides itself how the clients' numbers become one",
    ),
    Rule(
        {"server.aggregation": lambda row: row.is_rotated},
        {"communication.dtype": ("float32",)},
        "rotates what a client sends, but not what rounding took off its earlier messages",
    ),
    Rule(
        {"server.aggregation": lambda row: row.kept},
        {"client.drift_correction": ("none",), "method": lambda row: row.on_receive == "take"},
        "keeps part of the adapter at the client, which no broadcast anchors",
    ),
    Rule(
        {"server.aggregation": lambda row: row.is_rotated or not row.is_linear},
        {"method": lambda row: row.on_receive == "take"},
        "makes new factors in each round, which have no numbers in common with a client's last ones",
    ),
    Rule(
        {"server.aggregation": lambda row: row.adds_to_base},
        {"method": lambda row: row.personal == "sum"},
        "adds to the base what a client's own adapter could neither weigh nor hold",
    ),
    Rule(
        {"server.aggregation": lambda row: row.ranks == "one"},
        {"lora.client_ranks": ({},)},
        "takes factors of one rank",
    ),
    Rule(
        {"server.aggregation": lambda row: row.ranks == "several"},
        {"server.robust": ("none",)},
        "pads with zeros, which a robust aggregator would count as values of a client",
    ),
    Rule(
        {"lora.client_ranks": ({},)},
        {"server.aggregation": lambda row: row.ranks != "several"},
        "gives all clients one rank, so that there is nothing to pad",
    ),
    Rule(
        {"server.num_byzantine": (0,)},
        {"server.robust": lambda row: not row.wants_byzantine},
        "leaves a robust aggregator no client to withstand",
    ),
    Rule(
        {"client.drift_correction": lambda row: row.optimizer == "sgd"},
        {"client.optimizer": ("sgd",), "client.max_grad_norm": (0,)},
        "computes gradients from the steps, so these must be plain SGD, without clipping",
    ),
    Rule(
        {"client.drift_correction": lambda row: row.optimizer == "adamw"},
        {"client.optimizer": ("adamw",)},
        "corrects the steps of AdamW",
    ),
    Rule(
        {"client.drift_correction": lambda row: row.has_control_variates},
        {
            "server.aggregation": lambda row: row.is_plain,
            "server.robust": ("none",),
            "communication.dtype": ("float32",),
        },
        "has control variates, whose plain mean is right only where the server takes one of the adapters too",
    ),
    Rule(
        {"server.optimizer": lambda row: row.extrapolates},
        {
            "server.aggregation": lambda row: row.is_plain,
            "server.robust": ("none",),
            "privacy.kind": ("none",),
            "privacy.secure_aggregation": (False,),
        },
        "sets its rate by the norms of the clients' changes and of their plain mean",
    ),
    Rule(
        {"client.final_rate": (0,), "client.schedule": ("cosine", "linear")},
        {"client.drift_correction": lambda row: not row.has_control_variates},
        "makes the last round's rate 0, and control variates are divided by it",
    ),
    Rule(
        {"method": lambda row: not row.shares},
        {
            "client.drift_correction": ("none",),
            "server.aggregation": ("average",),
            "server.robust": ("none",),
            "server.optimizer": ("fedavg",),
            "server.mean_of_rounds": (1,),
            "communication.dtype": ("float32",),
            "lora.client_ranks": ({},),
            "server.keep_updates": (False,),
            "privacy.kind": ("none",),
            "privacy.secure_aggregation": (False,),
        },
        "sends nothing",
    ),
    Rule(
        {"method": lambda row: row.on_receive == "adapt"},
        {"client.drift_correction": ("none",)},
        "does not begin a round at the broadcast adapter, to which a correction refers",
    ),
    Rule(
        {"privacy.kind": ("central", "local")},
        {
            "server.aggregation": ("average", "ffa"),
            "server.robust": ("none",),
            "client.drift_correction": lambda row: not row.has_control_variates,
            "communication.dtype": ("float32",),
            "lora.client_ranks": ({},),
            "server.keep_updates": (False,),
        },
        "accounts for means of the clients' changes of one adapter, and for nothing more",
    ),
    Rule(
        {"privacy.secure_aggregation": (True,)},
        {
            "server.aggregation": ("average", "ffa"),
            "server.robust": ("none",),
            "client.drift_correction": lambda row: not row.has_control_variates,
            "communication.dtype": ("float32",),
            "lora.client_ranks": ({},),
            "server.keep_updates": (False,),
            "privacy.kind": ("none", "central"),
        },
        "shows the server the sum of the clients' changes of one adapter, and nothing more",
    ),
    Rule(
        {"server.clients_per_round": (1, 2)},
        {"privacy.secure_aggregation": (False,)},
        "makes sums of which a client knows the other part",
    ),
    Rule(
        {"client.local_steps": (0,)},
        {"client.budget": ("per_stage",)},
        "leaves the length of a stage to client.local_epochs, and only steps can be divided over the stages",
    ),
    Rule(
        {"data.validation": (0,)},
        {"eval.split": ("test",)},
        "keeps no validation examples out of training",
    ),
    Rule(
        {"data.built_in": ("disputed",)},
        {"data.root": ("",), "data.sources": ((),), "partition.kind": ("natural",)},
        "brings its own examples, and says which client holds which",
    ),
)

USES = (
    Use("feddpa", "method", lambda row: row.personal == "weighted"),
    Use("fdlora.before_steps", "method", lambda row: row.before_rounds),
    Use("fdlora.num_examples", "method", lambda row: row.personal == "fused"),
    Use("fdlora.num_evaluations", "method", lambda row: row.personal == "fused"),
    Use("fedala", "method", lambda row: row.on_receive == "adapt"),
    Use("token_mask", "method", lambda row: "likely" in row.views),
    Use("client.mu", "client.drift_correction", lambda row: row.weight > 0),
    Use("server.rotation", "server.aggregation", lambda row: row.is_rotated),
    Use("server.rotation_reference", "server.aggregation", lambda row: row.is_rotated),
    Use("server.num_byzantine", "server.robust", lambda row: row.num_needed(1) > row.num_needed(0)),
    Use("server.learning_rate", "server.optimizer", lambda row: "learning_rate" in row.reads),
    Use("server.beta1", "server.optimizer", lambda row: "beta1" in row.reads),
    Use("server.beta2", "server.optimizer", lambda row: "beta2" in row.reads),
    Use("server.tau", "server.optimizer", lambda row: "tau" in row.reads),
    Use("client.final_rate", "client.schedule", ("cosine", "linear")),
    Use("distill.top_p", "distill.temperature", But(0)),
    Use("distill.num_requests", "distill.url", But("")),
    Use("distill.template_args", "distill.url", But("")),
    Use("partition.by", "partition.kind", ("dirichlet", "pathological")),
    Use("partition.alpha", "partition.kind", ("dirichlet", "quantity")),
    Use("partition.classes_per_client", "partition.kind", ("pathological",)),
    Use("run.workers", "run.engine", ("simulation",)),
    Use("run.workers", "run.ray", ("",)),
    Use("run.gpus_per_client", "run.engine", ("simulation",)),
    Use("run.ray", "run.engine", ("simulation",)),
    Use("privacy", "privacy.kind", ("central", "local"), but=("secure_aggregation",)),
)
