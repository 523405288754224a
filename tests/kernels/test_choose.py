"""Which implementation an operation gets on which machine, why, and what is said when it is not the wish."""

import importlib.util
import logging
import pickle

import pytest
import torch

from scratchlm import kernels
from scratchlm.kernels import KERNELS, PLAIN, choose, load
from scratchlm.kernels.gpu import support


@pytest.fixture
def a_gpu(monkeypatch):
    """A machine that says it has a GPU of a compute capability; nothing runs on it."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(kernels, "_said", set())

    return pretend


@pytest.fixture
def no_triton(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(support, "find_spec", lambda name: None if name == "triton" else real(name))


@pytest.fixture
def warnings(caplog, monkeypatch):
    """What is said at the level of a warning."""
    monkeypatch.setattr(kernels.log, "propagate", True)
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("op", KERNELS)
def test_a_cpu_takes_the_plain_way_and_says_why(op):
    for device in (None, "cpu"):
        choice = choose(op, device=device)
        assert choice.name == PLAIN[op][0]
        assert choice.reason.startswith(PLAIN[op][1])


@pytest.mark.parametrize("op", KERNELS)
def test_every_implementation_is_where_the_table_says(op):
    assert PLAIN[op][0] in KERNELS[op]
    for name in [name for name in KERNELS[op] if not name.startswith("triton")]:
        assert callable(load(op, name))


@pytest.mark.parametrize("op", KERNELS)
def test_a_gpu_takes_triton(op, a_gpu):
    a_gpu((9, 0))
    assert choose(op, device="cuda").name == "triton"
    assert choose(op).name == "triton"
    assert "elsewhere: " + PLAIN[op][1] in choose(op).reason


def test_where_both_are_there_each_tensor_decides(a_gpu):
    a_gpu((9, 0))
    q = torch.randn(1, 2, 5, 16)
    torch.testing.assert_close(choose("attention").function(q, q, q), load("attention", "blocks")(q, q, q))


def test_what_a_model_holds_can_be_pickled_on_a_machine_with_a_gpu(a_gpu):
    a_gpu((9, 0))
    for op in KERNELS:
        again = pickle.loads(pickle.dumps(choose(op).function))
        assert (again.fast, again.plain) == (load(op, "triton"), load(op, PLAIN[op][0]))


def test_an_old_gpu_falls_back_with_one_warning_that_says_why(a_gpu, warnings):
    a_gpu((7, 5))
    for op in KERNELS:
        assert choose(op, device="cuda").name == choose(op).name == PLAIN[op][0]
    (said,) = warnings()
    assert said.endswith("its compute capability is 7.5, our kernels need 8.0.")


def test_without_triton_a_gpu_falls_back_with_one_warning(a_gpu, no_triton, warnings):
    a_gpu((9, 0))
    assert {choose(op).name for op in KERNELS} == {PLAIN[op][0] for op in KERNELS}
    (said,) = warnings()
    assert "Triton is not installed; pip install 'scratchlm[kernels]'" in said


@pytest.mark.parametrize("name", ["triton", "triton_one_pass"])
def test_without_triton_its_name_is_refused(name, no_triton):
    for device in (None, "cpu"):
        with pytest.raises(ValueError, match=rf"attention={name} cannot run on .*: Triton is not installed"):
            choose("attention", name, device)


def test_triton_on_a_cpu_is_refused_when_it_is_chosen_or_called():
    with pytest.raises(ValueError, match=r"triton cannot run on cpu: it is no GPU\. Take attention=auto"):
        choose("attention", "triton", "cpu")
    q = torch.randn(1, 2, 5, 16)
    with pytest.raises(ValueError, match=r"attention=triton cannot run on cpu: it is no GPU"):
        choose("attention", "triton").function(q, q, q)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown operation 'atention'\. Did you mean 'attention'"):
        choose("atention")
    with pytest.raises(ValueError, match="attention=tritn: unknown implementation 'tritn'"):
        choose("attention", "tritn")
