"""What a finished run leaves for others: model/ with weights, model card and, with `export`, programs."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.saved import export_model
from utils.config import TrainConfig
from utils.plots.curves import curves_figure, epoch_curves
from utils.release.export import FILES, Exported, check_packages, export_programs
from utils.release.hub import check_upload, upload
from utils.release.model_card import CardData, model_card, public_source
from utils.system.errors import raise_on_all_ranks
from utils.system.files import replace_file
from utils.training.loading import sample_images
from utils.training.run import Run
from utils.training.snapshot import exported_config

CHECKED_IMAGES = 256  # test images on which exported programs are compared with the checkpoint
CURVES = "curves.png"


def check_release(config: TrainConfig, main_process: bool) -> None:
    """Before any work: raises UserError if something that `export` or `push_to_hub` needs is missing."""
    check_packages(config.export)
    if config.push_to_hub and main_process:
        check_upload(config.push_to_hub)


def write_model_folder(run: Run, summary: dict[str, Any]) -> None:
    """Writes config.json, model.safetensors, curves.png and the model card, on the main process.

    Programs of an earlier export are deleted: they may have other weights.
    """
    folder = run.directory.path / "model"
    export_model(folder, exported_config(run), run.eval_model.state_dict())
    for file in FILES.values():
        (folder / file).unlink(missing_ok=True)
    image = io.BytesIO()
    curves_figure(epoch_curves(run.directory.metrics.rows())).savefig(image, dpi=100)
    replace_file(folder / CURVES, image.getvalue())
    _write_card(run, summary)


def write_exports(run: Run, summary: dict[str, Any]) -> None:
    """Writes the programs that `export` names, and the card that lists them; to be called on every rank.

    Raises SuiteError if one cannot be made or its logits are not those of the checkpoint.
    """
    if not run.config.export:
        return
    with raise_on_all_ranks(run.accelerator):
        if run.accelerator.is_main_process:
            images = sample_images(run.data.test, CHECKED_IMAGES)
            exported = export_programs(run.directory.path / "model", run.config.export, images)
            _write_card(run, summary, exported)
            for program in exported:
                print(
                    f"exported {run.directory.path / 'model' / program.file}: logits within {program.difference:.1e} "
                    f"of the checkpoint's on {program.count} test images"
                )


def push(config: TrainConfig) -> None:
    """Uploads model/ with `push_to_hub`; after the processes have parted, so that none waits for the upload."""
    if config.push_to_hub:
        upload(config.push_to_hub, Path(config.output_dir) / "model")


def _write_card(run: Run, summary: dict[str, Any], exported: Sequence[Exported] = ()) -> None:
    config, data, folder = run.config, run.data, run.directory.path
    text = model_card(
        name=(config.push_to_hub or config.run_name or folder.resolve().name).rpartition("/")[2],
        location=config.push_to_hub or "model",
        config=exported_config(run),
        data=CardData(
            name=config.dataset,
            folder=Path(config.data_dir).resolve(),
            train=len(data.train),
            validation=len(data.validation) if data.validation else 0,
            test_counts=np.bincount(data.test.labels, minlength=len(data.class_names)).tolist(),
        ),
        summary=summary,
        recipe=config.identity()
        | ({"max_steps": config.max_steps} if config.max_steps else {})
        | {"init_from": public_source(config.init_from)}
        | ({"teacher": public_source(config.teacher)} if config.teacher else {}),
        environment=run.directory.environment,
        exported=exported,
        picture=CURVES,
    )
    replace_file(folder / "model" / "README.md", text.encode())
