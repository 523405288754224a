import torch
from torch.nn import Parameter

from scratchlm.optim import OPTIMIZERS
from scratchlm.optim.groups import decay_groups, parameter_groups


def make_named():
    return {
        "token_embeddings.weight": Parameter(torch.zeros(5, 2)),
        "layers.0.attn.q_proj.weight": Parameter(torch.zeros(2, 2)),
        "layers.0.attn.q_proj.bias": Parameter(torch.zeros(2)),
        "layers.0.ln1.weight": Parameter(torch.zeros(2)),
        "frozen.weight": Parameter(torch.zeros(2, 2), requires_grad=False),
    }


def test_only_matrices_decay_and_frozen_parameters_are_left_out():
    named = make_named()
    decayed, kept = decay_groups(named.items())
    assert [id(p) for p in decayed["params"]] == [id(p) for p in list(named.values())[:2]]
    assert [id(p) for p in kept["params"]] == [id(p) for p in list(named.values())[2:4]]
    assert "weight_decay" not in decayed
    assert kept["weight_decay"] == 0.0


def test_embeddings_can_be_left_out_by_name():
    named = make_named()
    decayed, kept = decay_groups(named.items(), without=("token_embeddings",))
    assert [p is named["layers.0.attn.q_proj.weight"] for p in decayed["params"]] == [True]
    assert kept["params"][0] is named["token_embeddings.weight"]


def test_groups_build_every_optimizer():
    for name in OPTIMIZERS.names():
        optimizer = OPTIMIZERS.build(name, decay_groups(make_named().items()))
        assert [group["weight_decay"] for group in optimizer.param_groups][1] == 0.0


def test_an_empty_group_is_left_out():
    assert len(decay_groups([("w", Parameter(torch.zeros(2, 2)))])) == 1


def test_kinds_are_told_by_name_and_shape():
    named = make_named() | {"lm_head.weight": Parameter(torch.zeros(5, 2))}
    matrix, embedding, vector = parameter_groups(named.items())
    assert [group["kind"] for group in (matrix, embedding, vector)] == ["matrix", "embedding", "vector"]
    assert [id(p) for p in matrix["params"]] == [id(named["layers.0.attn.q_proj.weight"])]
    assert [id(p) for p in embedding["params"]] == [
        id(named["token_embeddings.weight"]),
        id(named["lm_head.weight"]),
    ]
    assert [id(p) for p in vector["params"]] == [id(p) for p in list(named.values())[2:4]]
    assert "weight_decay" not in matrix | embedding
    assert vector["weight_decay"] == 0.0


def test_a_kind_is_split_when_only_some_of_it_decays():
    named = make_named() | {"lm_head.weight": Parameter(torch.zeros(5, 2))}
    groups = parameter_groups(named.items(), without=("token_embeddings",))
    assert [(group["kind"], group.get("weight_decay")) for group in groups] == [
        ("matrix", None),
        ("embedding", None),
        ("embedding", 0.0),
        ("vector", 0.0),
    ]
