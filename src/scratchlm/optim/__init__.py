"""Gradients come in, better parameters go out: optimizers, learning-rate schedules, clipping, groups.

    groups = parameter_groups(model.named_parameters())              groups.py
    optimizer = OPTIMIZERS.build("adamw", groups, lr=1e-3)           adamw.py, muon.py, lion.py, sgd.py
    schedule = SCHEDULES.build("cosine", total_steps, warmup=0.05)   schedule.py

    set_learning_rate(optimizer, schedule(step))                     schedule.py, before every update
    norm = clip_gradients_(model.parameters(), 1.0)                  clip.py
    optimizer.step()
    ema.update_()                                                    ema.py

The first three optimizers stand beside their twins, the formulas; what takes their time is in kernels/: one
pass over memory, decay, orthogonalization. This folder does not know the model: an optimizer sees parameters
and gradients, nothing else.
"""

from collections.abc import Callable

from scratchlm.registry import Family

Schedule = Callable[[int], float]
"""From the number of updates already made to a multiplier of the learning rate in [0, 1]."""

OPTIMIZERS: Family = Family("optimizer", package="scratchlm.optim")
"""Built with `OPTIMIZERS.build(name, params, **settings)`; `params` as torch's optimizers take them."""

SCHEDULES: Family[Schedule] = Family("schedule", package="scratchlm.optim.schedule")
"""Built with `SCHEDULES.build(name, total_steps, **settings)`; the result maps a step to a multiplier."""
