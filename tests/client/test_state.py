"""What a client saves: the right version of adapter and other arrays, whenever it is asked again."""

from pathlib import Path

import numpy as np
import torch

from fedsdr.client.state import State, is_forgotten, load_state, save_state
from fedsdr.config import Lora

KEY = "base_model.model.q_proj.lora_A.weight"


def save(folder: Path, server_round: int, value: float | None = None) -> None:
    state = {KEY: torch.full((2, 3), float(server_round if value is None else value))}
    arrays = {"error_feedback": np.full(3, state[KEY][0, 0], np.float32)}
    save_state(folder, server_round, State(state, arrays), Lora(rank=2), "tiny")


def value(folder: Path, before: int) -> float | None:
    state = load_state(folder, before, has_adapter=True)
    assert (state.adapter is None) == (not state.arrays)
    if state.adapter is None:
        return None
    assert state.arrays["error_feedback"].tolist() == [state.adapter[KEY][0, 0]] * 3
    return state.adapter[KEY][0, 0].item()


def test_a_client_starts_from_its_newest_state_before_the_round(tmp_path: Path):
    """A client that is sampled for rounds 2 and 9 alone has nothing newer in between."""
    assert value(tmp_path, before=2) is None
    save(tmp_path, 2)
    assert value(tmp_path, before=2) is None
    assert value(tmp_path, before=9) == 2
    save(tmp_path, 9)
    assert value(tmp_path, before=9) == 2
    assert value(tmp_path, before=10) == 9


def test_a_round_that_is_done_again_after_a_crash_starts_where_it_did_the_first_time(tmp_path: Path):
    """The client had finished round 3, the server was killed before it had: round 3 is asked again."""
    for server_round in (1, 2, 3):
        save(tmp_path, server_round)
    assert value(tmp_path, before=3) == 2
    save(tmp_path, 3, value=30.0)
    assert value(tmp_path, before=3) == 2
    assert value(tmp_path, before=4) == 30


def test_two_versions_are_there(tmp_path: Path):
    for server_round in range(1, 12):
        save(tmp_path, server_round)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0010", "round-0011"]


def test_a_server_that_goes_back_further_than_the_states_reach_is_noticed(tmp_path: Path):
    """After its folder was restored from a backup. Two rounds are kept, so that one may be asked again."""
    assert not is_forgotten(tmp_path, before=1)
    save(tmp_path, 1)
    assert not is_forgotten(tmp_path, before=1)
    for server_round in (2, 3, 4, 5):
        save(tmp_path, server_round)
    assert not is_forgotten(tmp_path, before=5)
    assert is_forgotten(tmp_path, before=3) and value(tmp_path, before=3) is None


def test_a_copy_that_a_user_made_is_passed_over(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / "round-0002 copy").mkdir()
    save(tmp_path, 3)
    assert value(tmp_path, before=3) == 1


def test_rounds_are_ordered_as_numbers(tmp_path: Path):
    save(tmp_path, 9999)
    save(tmp_path, 10000)
    assert value(tmp_path, before=10001) == 10000
