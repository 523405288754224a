"""Runs without any training: losses of a known law, with noise."""

import json

import numpy as np

from scratchlm.lab.scaling_runs import Trained

CHINCHILLA = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Hoffmann et al. 2022, equation 10."""
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20)


def law(parameters, tokens, E, A, B, alpha, beta):
    """E + A / N^alpha + B / D^beta."""
    return E + A / parameters**alpha + B / tokens**beta


def best_size(flops):
    """Where the law is lowest if C = 6 N D."""
    one = CHINCHILLA
    ratio = one["alpha"] * one["A"] / (one["beta"] * one["B"])
    exponents = one["alpha"] + one["beta"]
    return ratio ** (1 / exponents) * (flops / 6) ** (one["beta"] / exponents)


def make_runs(*, noise=0.0, seed=0, budgets=BUDGETS, sizes=9, span=10.0):
    """Sizes from 1/span to span times the best one, for each budget."""
    random, found = np.random.default_rng(seed), []
    for budget in budgets:
        for parameters in best_size(budget) * np.geomspace(1 / span, span, sizes):
            tokens = budget / (6 * parameters)
            loss = law(parameters, tokens, **CHINCHILLA) * np.exp(noise * random.normal())
            found.append(Trained(float(parameters), float(tokens), budget, float(loss)))
    return found


def write_json(path, runs):
    """As CS336's third assignment gives them."""
    entries = [
        {"parameters": run.parameters, "compute_budget": run.flops, "final_loss": run.loss} for run in runs
    ]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path
