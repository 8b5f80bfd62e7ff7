"""Random numbers of dropout: drawn from the seed, and nothing else of the machine is touched."""

import pytest
import torch

from fedsdr.model.randomness import seeded


def test_draws_follow_the_seed_and_leave_the_generator_as_it_was():
    def draw(seed: int) -> torch.Tensor:
        with seeded(torch.device("cpu"), seed):
            return torch.rand(3)

    before = torch.random.get_rng_state()
    first = draw(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(torch.rand(3), first)


def test_a_run_on_the_processor_touches_no_gpu(monkeypatch: pytest.MonkeyPatch):
    """On a machine with 8 of them, each of which may be another worker's."""

    def never(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, never)
    with pytest.raises(AssertionError):
        torch.manual_seed(0)
    with seeded(torch.device("cpu"), 0):
        torch.rand(1)


def test_a_run_on_one_gpu_touches_that_one_alone(monkeypatch: pytest.MonkeyPatch):
    """Without a GPU, the calls to torch are checked."""
    touched: list[tuple[str, object]] = []
    current = [torch.device("cuda", 0)]

    class Current:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            current.append(self.device)

        def __exit__(self, *args: object) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: touched.append(("get", device)))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: touched.append(("set", device)))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: touched.append(("seed", current[-1])))
    own = torch.device("cuda", 3)
    with seeded(own, 7):
        pass
    assert touched == [("get", own), ("seed", own), ("set", own)]
