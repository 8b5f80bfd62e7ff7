"""Names of settings in TRL, transformers, PEFT and Flower, for those who type them here."""

from collections.abc import Mapping

FAMILIAR: Mapping[str, str] = {
    "lr": "client.learning_rate",
    "lr_scheduler_type": "client.schedule",
    "optim": "client.optimizer",
    "epochs": "client.local_epochs",
    "num_train_epochs": "client.local_epochs",
    "max_steps": "client.local_steps",
    "per_device_train_batch_size": "client.batch_size",
    "gradient_accumulation_steps": "client.accumulation",
    "max_seq_length": "model.max_length",
    "report_to": "run.log_to",
    "output_dir": "run.dir",
    "r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.targets",
    "num_supernodes": "partition.num_clients",
    "fraction_fit": "server.clients_per_round",
    "fraction_train": "server.clients_per_round",
    "proximal_mu": "client.mu",
}
"""Name elsewhere -> setting here (docs/python.md)."""
