"""The results of an analysis in the W&B run of the training."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.analysis.overlay import enlarge
from utils.analysis.saved_run import SavedRun
from utils.analysis.section import Section
from utils.errors import one_line
from utils.tracking import wandb_mode


def track_analysis(
    run: SavedRun,
    summary: Mapping[str, Any],
    figures: Mapping[str, Path],
    sections: Sequence[Section],
    class_names: Sequence[str],
    report: str,
) -> None:
    """Logs everything as `analysis/...` into the W&B run of the training, online or offline as that one.

    A fault of W&B costs a warning on stderr, not the analysis.
    """
    try:
        import wandb

        with _reopen(run) as tracked:
            tracked.define_metric("analysis/*", step_metric="step")
            gallery, table = [], wandb.Table(columns=["image", "cam", "true", "predicted", "confidence"])
            for example in (example for section in sections for example in section.page.get("examples", ())):
                mistake = example.mistake
                true, predicted = class_names[mistake.true], class_names[mistake.predicted]
                caption = f"true {true}, predicted {predicted} ({mistake.predicted_confidence:.0%})"
                gallery.append(wandb.Image(enlarge(example.image), caption=caption))
                cam = None if example.predicted_map is None else wandb.Image(example.predicted_map)
                table.add_data(wandb.Image(enlarge(example.image)), cam, true, predicted, mistake.predicted_confidence)
            content = {
                **{key: value for key, value in summary.items() if isinstance(value, (int, float))},
                **{name: wandb.Image(str(path)) for name, path in figures.items()},
                "misclassified_images": gallery,
                "misclassified_table": table,
                "report": wandb.Html(report, inject=False),
            }
            step = run.rows[-1]["step"] if run.rows else 0  # a value: W&B drops what is logged at a step it has passed
            tracked.log({"step": step, **{f"analysis/{key}": value for key, value in content.items()}})
    except Exception as error:
        print(f"warning: W&B did not take the analysis ({one_line(error)})", file=sys.stderr)


def _reopen(run: SavedRun) -> Any:
    """The W&B run of the training, as a context manager."""
    import wandb

    return wandb.init(
        project=run.config.project_name,
        id=run.environment["run_id"],
        name=run.name,
        resume="allow",
        dir=str(run.directory),
        job_type="analysis",
        mode=wandb_mode(run.directory),
    )
