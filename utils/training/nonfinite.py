"""Loss, gradient or weights that are not finite: detected without waiting for the device at every step, and answered by
a stop or by a rollback that skips the steps since the last checkpoint (Chowdhery et al. 2022, arXiv:2204.02311, 5.1).
"""

import dataclasses
import sys

import torch

from utils.system.errors import SuiteError
from utils.training.run import Run
from utils.training.snapshot import FILES, restore, save

MAX_ROLLBACKS = 10  # of one run: more say that it is not the data of a few steps


def is_ruined(run: Run) -> bool:
    """Whether weights or norm statistics are not finite, or loss or gradient were not in `nan_patience` steps in a row.

    To be called on every rank at the same step; waits for the device. The answer is the same on all.
    """
    tensors = [tensor for tensor in run.model.state_dict().values() if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
    bad_steps = run.meters.bad_steps
    mine = torch.stack([bad_steps, (~finite).to(bad_steps.dtype)])
    run.state.bad_steps, spoilt = run.accelerator.gather(mine[None]).amax(0).tolist()
    return bool(spoilt) or run.state.bad_steps >= run.config.nan_patience


def roll_back(run: Run) -> None:
    """Restores the newest checkpoint, but for step, epoch and best epoch, and saves that: the steps since are skipped.

    Raises SuiteError with `on_nan: stop`, or after MAX_ROLLBACKS. To be called on every rank at the same step.
    """
    state, plan = run.state, run.plan
    first = state.step - max(state.bad_steps, 1) + 1
    lr = state.learning_rate * plan.lr_factor(first)
    what = f"loss, gradient or weights are not finite since step {first} (learning rate {lr:.3g})"
    silent = not run.accelerator.is_main_process
    advice = "try a lower --lr or --grad_clip_norm 1 in another --output_dir"
    if run.config.on_nan == "stop":
        newest = run.directory.last_checkpoint_name()
        raise SuiteError(f"{what}; last good checkpoint: {newest}; resume with --on_nan rollback, or {advice}", silent)
    if len(state.skipped) >= MAX_ROLLBACKS:
        raise SuiteError(f"{what}, after {MAX_ROLLBACKS} rollbacks; {advice}", silent)
    best = run.best
    source, files = run.directory.read_newest(FILES)
    restore(run, files, source)
    restored = run.state
    if not silent:
        print(
            f"warning: {what}; rolled back to {source.name}, skipping steps {restored.step + 1} to {state.step}",
            file=sys.stderr,
        )
    if restored.epoch != state.epoch:  # the sums are those of an epoch that is over
        run.meters.window.reset()
        run.meters.epoch.reset()
    run.best = best  # of evaluations since the checkpoint too
    skipped = [*restored.skipped, [restored.step, state.step]]
    run.state = dataclasses.replace(state, bad_steps=restored.bad_steps, skipped=skipped)
    if plan.pauses_after(state.step):  # no training line of this epoch follows
        run.meters.end_window()
    run.meters.clock.begin_lap()
    save(run)
