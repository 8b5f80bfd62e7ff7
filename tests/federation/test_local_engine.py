"""The in-process engine behaves as a deployment does: clients get copies, and a failure stays with them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsdr.config import Settings
from fedsdr.errors import UserError
from fedsdr.federation import answers
from fedsdr.federation.answers import answering_all
from fedsdr.federation.client_app import errors_stay_here
from fedsdr.federation.local_engine import LocalGrid
from fedsdr.federation.node_config import read_node
from fedsdr.federation.simulation_engine import SimulationGrid

SECRET = "patient 4711 has a fever"


def grid_of(answer: Callable[[Message, Context], Message], folder: Path, num_clients: int = 3) -> LocalGrid:
    app = ClientApp()
    app.train()(errors_stay_here(answer))
    return LocalGrid(app, num_clients, folder)


def ask(grid: LocalGrid, content: RecordDict, nodes: tuple[int, ...]) -> list[Message]:
    return list(grid.send_and_receive([Message(content, node, "train", group_id="7") for node in nodes]))


def name_yourself(message: Message, context: Context) -> Message:
    numbers = {"partition": context.node_config["partition-id"], "of": context.node_config["num-partitions"]}
    return Message(RecordDict({"metrics": MetricRecord(numbers)}), reply_to=message)


def test_every_message_gets_the_reply_of_its_own_client(tmp_path: Path):
    grid = grid_of(name_yourself, tmp_path)
    assert list(grid.get_node_ids()) == [1, 2, 3]
    replies = ask(grid, RecordDict(), (3, 1))
    assert [reply.content["metrics"]["partition"] for reply in replies] == [2, 0]
    assert [reply.content["metrics"]["of"] for reply in replies] == [3, 3]
    assert [reply.metadata.src_node_id for reply in replies] == [3, 1]
    assert {reply.metadata.group_id for reply in replies} == {"7"}


def test_a_reply_names_the_message_that_it_answers_and_is_handed_over_once(tmp_path: Path):
    grid = grid_of(name_yourself, tmp_path)
    first = grid.push_messages([Message(RecordDict(), 1, "train", group_id="1")])
    second = grid.push_messages([Message(RecordDict(), node, "train", group_id="2") for node in (2, 3)])
    for ids in (second, first):
        assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids
    with pytest.raises(KeyError):
        grid.pull_messages(first)


def test_what_a_client_does_to_its_copy_reaches_neither_server_nor_other_clients(tmp_path: Path):
    """In a deployment there is a network between them; here nothing else would show such a mistake."""
    seen = []

    def spoil(message: Message, context: Context) -> Message:
        seen.append((message.content["arrays"]["A"].numpy().sum(), message.content["config"]["round"]))
        message.content["arrays"]["A"] = Array(np.full(3, 9.0))
        message.content["config"]["round"] = 99
        message.content["private"] = ConfigRecord({"text": SECRET})
        return Message(RecordDict(), reply_to=message)

    content = RecordDict(
        {"arrays": ArrayRecord({"A": Array(np.ones(3))}), "config": ConfigRecord({"round": 7})}
    )
    replies = ask(grid_of(spoil, tmp_path), content, (1, 2, 3))
    assert seen == [(3.0, 7)] * 3
    assert set(content) == {"arrays", "config"}
    assert content["arrays"]["A"].numpy().tolist() == [1, 1, 1]
    assert content["config"]["round"] == 7
    assert all(SECRET not in str(reply.content) for reply in replies)


def test_a_client_that_fails_gives_an_error_without_its_data_and_the_others_go_on(tmp_path: Path):
    def fail(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            raise ValueError(SECRET)
        return name_yourself(message, context)

    replies = ask(grid_of(fail, tmp_path / "clients"), RecordDict(), (1, 2, 3))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    error = replies[1].error
    assert "ValueError" in error.reason
    assert SECRET not in error.reason
    assert replies[1].metadata.src_node_id == 2
    # The one who runs the client finds what happened on the client's side.
    assert SECRET in (tmp_path / "clients" / "node-2-error.txt").read_text()
    assert "node-2-error.txt" in error.reason


@pytest.mark.parametrize("kind", [UserError, KeyboardInterrupt])
def test_a_mistake_of_the_user_and_a_stop_end_the_run(tmp_path: Path, kind: type[BaseException]):
    def fail(message: Message, context: Context) -> Message:
        raise kind("data changed")

    with pytest.raises(kind, match="data changed"):
        ask(grid_of(fail, tmp_path), RecordDict(), (1, 2))


def test_a_client_answers_when_its_reply_is_taken(tmp_path: Path):
    """Else a thousand simulated clients would hold a thousand adapters."""
    asked = []

    def answer(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        return name_yourself(message, context)

    grid = grid_of(answer, tmp_path)
    replies = grid.send_and_receive([Message(RecordDict(), node, "train") for node in (1, 2, 3)])
    for node in (1, 2, 3):
        next(replies)
        assert asked == list(range(1, node + 1))


def test_a_federation_without_any_test_example_is_evaluated_without_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = SimpleNamespace(id="a", folder=tmp_path / "a", test=[])
    monkeypatch.setattr(answers, "data_of", lambda settings: ({}, [one]))
    monkeypatch.setattr(answers, "allowed", lambda settings, client: client)
    settings = Settings(method="fedit")
    assert (
        answering_all(settings, one, 1)(SimpleNamespace(has_independent_rows=True), [], settings.eval) == []
    )


def test_only_nodes_of_this_engine_answer_the_prompts_of_all(tmp_path: Path):
    """An actor of Flower's simulation, whatever its engine, serves some clients and would repeat the work."""
    here = grid_of(name_yourself, tmp_path).contexts[1].node_config
    assert read_node(here, tmp_path, "run").serves_all
    assert not read_node({"partition-id": 0, "num-partitions": 3}, tmp_path, "run").serves_all
    assert not SimulationGrid.serves_all
