"""Loss, gradient or weights that are not finite: noticed without waiting for the device at every step, and answered by
a stop or by a rollback that skips the steps since the last checkpoint (Chowdhery et al. 2022, arXiv:2204.02311, 5.1).
"""

import sys

import torch

from utils.system.errors import SuiteError
from utils.training.progress import TrainState
from utils.training.run import Run
from utils.training.snapshot import FILES

MOST_ROLLBACKS = 10  # of one run: more say that it is not the data of a few steps


def is_ruined(run: Run) -> bool:
    """Whether the weights or norm statistics are not finite, or `nan_patience` steps in a row were not.

    To be asked on every rank at the same step; waits for the device. The answer is the same on all.
    """
    tensors = [tensor for tensor in run.model.state_dict().values() if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
    mine = torch.stack([run.bad_steps, (~finite).to(run.bad_steps.dtype)])
    run.state.bad_steps, spoilt = run.accelerator.gather(mine[None]).amax(0).tolist()
    return bool(spoilt) or run.state.bad_steps >= run.config.nan_patience


def recover(run: Run) -> TrainState:
    """Puts all but step, epoch and best epoch back to the newest checkpoint and saves that; skips the steps since.

    Raises SuiteError where `on_nan` is stop, or after MOST_ROLLBACKS. To be called on every rank at the same step.
    """
    step, epoch, evaluated, seconds = (
        run.state.step, run.state.epoch, run.state.evaluated_step, run.state.train_seconds
    )  # fmt: skip
    first = step - max(run.state.bad_steps, 1) + 1
    what = f"loss, gradient or weights are not finite since step {first} (learning rate {run.learning_rate(first):.3g})"
    silent = not run.accelerator.is_main_process
    if run.config.on_nan == "stop":
        raise SuiteError(
            f"{what}; last good checkpoint: {run.directory.last_checkpoint_name()}; go on with --on_nan rollback, or "
            "try a lower --lr or --grad_clip_norm 1 in another --output_dir",
            silent,
        )
    if len(run.state.skipped) >= MOST_ROLLBACKS:
        advice = "try a lower --lr or --grad_clip_norm 1 in another --output_dir"
        raise SuiteError(f"{what}, after {MOST_ROLLBACKS} rollbacks; {advice}", silent)
    best, best_accuracy, best_step = run.best, run.state.best_accuracy, run.state.best_step
    source, files = run.directory.read_newest(FILES)
    run.restore(files, source)
    state = run.state
    run.best, state.best_accuracy, state.best_step = best, best_accuracy, best_step  # of evaluations since then too
    if not silent:
        print(f"warning: {what}; back to {source.name}, without steps {state.step + 1} to {step}", file=sys.stderr)
    state.skipped.append([state.step, step])
    if state.epoch != epoch:  # the sums are those of an epoch that is over
        run.window.reset()
        run.epoch_sums.reset()
    state.step, state.epoch, state.evaluated_step, state.train_seconds = step, epoch, evaluated, seconds
    if step == run.pause:  # no training line of this epoch follows
        run.epoch_sums.merge(run.window)
        run.window.reset()
    run.save()
    return state
