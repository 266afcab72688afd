"""Start weights: found wherever they lie, read as data alone, and every tensor of them told."""

import argparse
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import create_model, model_arguments
from models.saved import ModelConfig, export_model
from models.weights import Loaded, Origin, find_weights, load_start, read_tensors
from tests.conftest import ROOT
from tests.hub_server import COMMIT, running_hub
from tests.timm_folder import LITE0, timm_folder
from utils.config import TrainConfig
from utils.runs.checkpoint import MANIFEST
from utils.system.errors import UserError

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    return timm_folder(tmp_path_factory.mktemp("timm") / "resnet", "test_resnet", license="mit")


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    return timm_folder(tmp_path_factory.mktemp("timm") / "vit", "test_vit")


def test_a_folder_that_timm_itself_wrote_is_start_weights(tmp_path):
    model = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    origin = find_weights(str(tmp_path))
    assert origin.model == "timm:test_resnet"
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["global_pool"] == "avg"


def rewrite(folder: Path, place: Path, change: Any) -> Path:
    """A copy of a timm folder with other tensors."""
    shutil.copytree(folder, place)
    save_file(change(load_file(folder / "model.safetensors")), place / "model.safetensors")
    return place


def start(source: Path | str, size: int = 64, classes: list[str] = CLASSES, **options: Any) -> tuple[nn.Module, Loaded]:
    """A model for images of a size with the weights, as a new run makes it."""
    origin = find_weights(str(source), options.pop("model", "auto"))
    keep_head = options.pop("keep_head", False)
    config = TrainConfig(dataset="digits", init_from=str(source), image_size=size, **options)
    config = config.with_weights(origin.facts())
    model = create_model(config.model, len(classes), **model_arguments(config, config.size, origin.arguments))
    return model, load_start(model, read_tensors(origin), origin, classes, keep_head)


def same(model: nn.Module, names: Any, tensors: Mapping[str, Tensor]) -> bool:
    state = model.state_dict()
    return all(torch.equal(state[name], tensors[name].to(state[name].dtype)) for name in names)


# -- where weights lie ------------------------------------------------------------------------------------------------


def test_a_timm_folder_names_its_model_and_its_preprocessing(resnet):
    origin = find_weights(str(resnet))
    assert (origin.model, origin.license, origin.revision) == ("timm:test_resnet", "mit", None)
    assert (origin.image_size, origin.fit, origin.crop_pct, origin.interpolation) == ("160", "crop", 0.95, "bilinear")
    assert origin.mean == origin.std == (0.5, 0.5, 0.5)
    assert origin.sha256 == hashlib.sha256((resnet / "model.safetensors").read_bytes()).hexdigest()
    assert find_weights(str(resnet / "model.safetensors")) == dataclasses.replace(
        origin, source=str(resnet / "model.safetensors")
    )


def test_a_run_its_model_and_its_checkpoints_are_start_weights(digits_run):
    run = find_weights(str(digits_run))
    assert (run.model, run.norm, run.width, run.image_size) == ("resnet18", "batch", 16, "16")
    assert run.class_names == tuple(map(str, range(10)))
    assert run.path == digits_run / "model" / "model.safetensors"
    model = find_weights(str(digits_run / "model"))
    assert dataclasses.replace(model, source=run.source) == run
    (checkpoint, *_) = sorted((digits_run / "checkpoints").iterdir())
    assert find_weights(str(checkpoint)).path == checkpoint / "model.safetensors"
    assert dataclasses.replace(find_weights(str(checkpoint)), path=run.path, sha256="").mean == run.mean


def test_a_damaged_checkpoint_and_an_unfinished_run_are_refused(run):
    (checkpoint, *_) = sorted((run / "checkpoints").iterdir())
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"]["model.safetensors"]["sha256"] = "0" * 64
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"is not a valid checkpoint \(model.safetensors does not match its SHA-256"):
        find_weights(str(checkpoint))
    shutil.rmtree(run / "model")
    with pytest.raises(
        UserError, match=r"a run without a finished model; finish it, or name a checkpoint, such as .*step-"
    ):
        find_weights(str(run))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("part", [None, "model", "state_dict", "state_dict_ema"])
def test_files_of_torch_save_are_read_without_executing_them(resnet, tmp_path, suffix, part):
    """Also with what timm's training script saves beside the weights."""
    tensors = load_file(resnet / "model.safetensors")
    other = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "arch": "test_resnet"}
    file = tmp_path / f"weights{suffix}"
    torch.save({**other, part: tensors} if part else tensors, file)
    origin = find_weights(str(file), "timm:test_resnet")
    assert origin.part == part
    assert origin.image_size == "160"  # timm's for that architecture
    found = read_tensors(origin)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_the_average_of_a_training_is_preferred(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    origin = find_weights(str(tmp_path / "w.pth"), "resnet18")
    assert (origin.part, read_tensors(origin)["a"].item()) == ("state_dict_ema", 1)


def test_the_metadata_of_a_safetensors_file_may_name_the_architecture(resnet, tmp_path):
    tensors = load_file(resnet / "model.safetensors")
    save_file(tensors, tmp_path / "named.safetensors", {"architecture": "test_resnet"})
    save_file(tensors, tmp_path / "plain.safetensors")
    assert find_weights(str(tmp_path / "named.safetensors")).model == "timm:test_resnet"
    with pytest.raises(
        UserError, match=r"plain.safetensors does not say of which architecture it is; name it with --model"
    ):
        find_weights(str(tmp_path / "plain.safetensors"))


def test_a_file_that_changed_since_it_was_found_is_not_used(resnet, tmp_path):
    folder = Path(shutil.copytree(resnet, tmp_path / "copy"))
    origin = find_weights(str(folder))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="has changed since this start began"):
        read_tensors(origin)


# -- what becomes of every tensor -------------------------------------------------------------------------------------


def test_all_but_the_head_is_loaded(resnet):
    tensors = load_file(resnet / "model.safetensors")
    model, loaded = start(resnet)
    assert (set(loaded.new), loaded.adapted) == ({"fc.weight", "fc.bias"}, [])
    assert set(loaded.unused) == {"fc.weight", "fc.bias"}
    assert set(loaded.loaded) == tensors.keys() - {"fc.weight", "fc.bias"}
    assert same(model, loaded.loaded, tensors)
    assert model.fc.out_features == 3  # type: ignore[union-attr]


def test_a_run_starts_from_a_run_with_its_width_norm_and_patches(digits_run, tmp_path):
    model, loaded = start(digits_run, size=16)
    assert same(model, loaded.loaded, load_file(digits_run / "model" / "model.safetensors"))
    arguments = {"img_size": 32, "patch_size": 2}
    config = ModelConfig("timm:test_vit", arguments, ("x", "y"), 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    export_model(tmp_path / "model", config, config.create_model().state_dict())
    for size, resampled in ((32, []), (64, ["pos_embed"])):
        _, loaded = start(tmp_path / "model", size=size)
        assert loaded.adapted == resampled


def test_a_kept_head_needs_exactly_the_same_classes(digits_run, resnet):
    names = list(map(str, range(10)))
    model, loaded = start(digits_run, 16, names, keep_head=True)
    assert (loaded.new, loaded.unused) == ([], [])
    assert same(model, ["fc.weight", "fc.bias"], load_file(digits_run / "model" / "model.safetensors"))
    others = {
        "the 10 classes of the data set are not the 10 of .*in another order": names[::-1],
        r"the 11 classes .* are not the 10 .*\(x only here\)": [*names, "x"],
        r"\(x, y only here; 8, 9 only there\)": [*names[:8], "x", "y"],
    }
    for line, classes in others.items():
        with pytest.raises(UserError, match=f"^keep_head: .*{line}"):
            start(digits_run, 16, classes, keep_head=True)
    with pytest.raises(UserError, match=r"^keep_head: .* does not name the classes of its head"):
        start(resnet, 64, names, keep_head=True)


def test_labels_of_a_timm_folder_are_the_classes_of_its_head(resnet, tmp_path):
    folder = Path(shutil.copytree(resnet, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text()) | {"label_names": list("abcdefghij")}
    (folder / "config.json").write_text(json.dumps(config))
    _, loaded = start(folder, 64, list("abcdefghij"), keep_head=True)
    assert loaded.new == []


@pytest.mark.parametrize(
    ("name", "size", "adapted"),
    [
        ("test_vit", 160, []),
        ("test_vit", 96, ["pos_embed resampled from 1x101x64 to 1x37x64"]),
        (
            "test_vit",
            32,
            [
                "patch_embed.proj.weight resampled from 64x3x16x16 to 64x3x4x4",
                "pos_embed resampled from 1x101x64 to 1x65x64",
            ],
        ),
        ("test_maxvit", 128, 8 * ["relative_position_bias_table resampled from 81x.* to 49x.*"]),
        ("test_convnext", 32, []),
        ("test_efficientnet", 32, []),
    ],
)
def test_other_image_sizes_get_resampled_weights_that_are_told(tmp_path, name, size, adapted):
    folder = timm_folder(tmp_path / name, name)
    model, loaded = start(folder, size)
    assert len(loaded.notes) == len(loaded.adapted) == len(adapted)
    for note, ending in zip(sorted(loaded.notes), adapted, strict=True):
        assert re.search(f"{ending}$", note)
    assert {*loaded.loaded, *loaded.adapted, *loaded.new} == model.state_dict().keys()
    assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_position_embeddings_are_those_that_timm_resamples(vit):
    model, _ = start(vit, 96)
    theirs = timm.create_model(f"local-dir:{vit}", pretrained=True, num_classes=3, img_size=96)
    torch.testing.assert_close(model.pos_embed, theirs.pos_embed)  # type: ignore[arg-type]


def test_both_heads_of_a_distilled_model_are_made_anew(tmp_path):
    folder = timm_folder(tmp_path / "deit", "deit_tiny_distilled_patch16_224")
    _, loaded = start(folder, 224)
    assert set(loaded.new) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("test_resnet", 64, {}),
        ("test_resnet", 32, {"output_stride": 16}),
        ("tf_efficientnet_lite0", 96, {}),
        ("test_vit", 64, {"img_size": 64}),
        ("test_vit", 48, {"img_size": 48, "patch_size": 6}),
        ("convnext_atto", 32, {"output_stride": 16}),
    ],
)
def test_a_model_with_start_weights_stays_as_timm_has_it_while_its_last_map_allows(name, size, arguments):
    config = TrainConfig(dataset="digits", model=f"timm:{name}", init_from="pretrained", image_size=size)
    config = config.with_weights({})
    found = model_arguments(config, config.size)
    assert found == arguments
    assert model_arguments(config, config.size, found) == found  # as a resume has it from its checkpoint


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_told(resnet, tmp_path, dtype):
    def convert(tensors):
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}

    folder = rewrite(resnet, tmp_path / "converted", convert)
    model, loaded = start(folder)
    assert loaded.notes == [f"converted from {str(dtype).removeprefix('torch.')} to float32"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert same(model, loaded.loaded, load_file(folder / "model.safetensors"))


def test_prefixes_of_wrapped_models_are_stripped_and_told(resnet, tmp_path):
    def wrap(tensors):
        return {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}

    _, loaded = start(rewrite(resnet, tmp_path / "wrapped", wrap))
    assert loaded.notes == ["prefix module._orig_mod. stripped from all names"]


def drop(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (drop("conv1.0.weight"), r"of image_size 160 do not fit the model \(conv1.0.weight is missing\)"),
        (lambda tensors: tensors | {"extra": torch.zeros(1)}, "the model has no extra"),
        (
            lambda tensors: {f"x.{name}": tensor for name, tensor in tensors.items()},
            r"the model has no x.*; the model has no x.*; the model has no x.*; and \d+ more\)$",
        ),
        (
            lambda tensors: tensors | {"conv1.0.weight": tensors["conv1.0.weight"][:, :1].contiguous()},
            "conv1.0.weight takes images of 1 channels, those of this suite have 3",
        ),
        (
            lambda tensors: tensors | {"bn1.weight": torch.ones(7)},
            "bn1.weight is 7, in the model 32",
        ),
        (lambda tensors: tensors | {"bn1.weight": torch.full((32,), torch.nan)}, "bn1.weight has values that are not"),
        (
            lambda tensors: tensors | {"bn1.weight": torch.ones(32, dtype=torch.int32)},
            "bn1.weight is torch.int32, in the model torch.float32",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_an_error_that_names_it_and_nothing_is_loaded(resnet, tmp_path, change, line):
    origin = find_weights(str(rewrite(resnet, tmp_path / "changed", change)))
    model = create_model("timm:test_resnet", 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=line):
        load_start(model, read_tensors(origin), origin, CLASSES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_counters_that_old_files_lack_are_no_error(resnet, tmp_path):
    counters = [name for name in load_file(resnet / "model.safetensors") if name.endswith("num_batches_tracked")]
    _, loaded = start(rewrite(resnet, tmp_path / "old", drop(*counters)))
    assert set(counters) == set(loaded.new) - {"fc.weight", "fc.bias"}


# -- what a stranger's config.json says -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mean": [0.5, 0.5]}, "mean is .* it must be 3 numbers from 0 to 1"),
        ({"std": [0, 0.5, 0.5]}, "std is"),
        ({"mean": "grey"}, "mean is grey"),
        ({"interpolation": "nearest"}, "interpolation is nearest; it must be one of bilinear, bicubic, lanczos"),
        ({"interpolation": []}, "interpolation is"),
        ({"crop_pct": -1}, "crop_pct is -1; it must be a number from 0.1 on"),
        ({"crop_mode": {}}, "crop_mode is"),
        ({"input_size": [3, 10**9, 224]}, "input_size is"),
        ({"input_size": [1, 160, 160]}, "the weights take images of 1 channels; those of this suite have 3"),
        ({"input_size": [4, 160, 160]}, "the weights take images of 4 channels"),
        ({"architecture": "no_such_net"}, "timm has no no_such_net"),
        ({"architecture": ["test_resnet"]}, "architecture is"),
        ({"architecture": "x" * 10**6}, "architecture is x"),
        ({"architecture": "resnet18; rm -rf /"}, "timm has no resnet18; rm"),
        ({"model_args": {"act_layer": "relu"}}, "model_args has act_layer, which this suite does not build"),
        ({"model_args": {"global_pool": "max"}}, "model_args has global_pool, which this suite does not build"),
        ({"model_args": {"in_chans": 1}}, "images of 1 channels"),
        ({"pretrained_cfg": 3}, "pretrained_cfg is 3"),
    ],
    ids=str,
)
def test_nonsense_in_a_config_is_one_line_that_names_it(resnet, tmp_path, changes, line):
    folder = Path(shutil.copytree(resnet, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        (config if name in ("architecture", "model_args", "pretrained_cfg") else config["pretrained_cfg"])[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=line) as raised:
        find_weights(str(folder))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_crops_of_timm_are_those_of_this_suite(tmp_path):
    for mode, crop_pct, expected in (("squash", 1.0, ("squash", 1.0)), ("border", 0.9, ("pad", 1.0))):
        folder = timm_folder(tmp_path / mode, "test_resnet", crop_mode=mode, crop_pct=crop_pct)
        origin = find_weights(str(folder))
        assert (origin.fit, origin.crop_pct) == expected
        TrainConfig(dataset="digits", init_from=str(folder)).with_weights(origin.facts())


# -- the Hub ----------------------------------------------------------------------------------------------------------

FIND = """
import dataclasses, json, sys
from models.weights import find_weights
for source, model in json.loads(sys.argv[1]):
    try:
        found = dataclasses.asdict(find_weights(source, model)) | {"path": ""}
    except Exception as error:
        found = [type(error).__name__, str(error)]
    print(json.dumps(found))
"""


def find(home: Path, *calls: tuple[str, str], **environment: str) -> list[Any]:
    """What a process of its own with this cache finds: attributes of Origin, or error and line."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    values = (
        inherited | {"PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    )
    command = [sys.executable, "-c", FIND, json.dumps(calls)]
    done = subprocess.run(command, cwd=home.parent, env=values, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def repository(folder: Path, license: str | None = "bsd-3-clause") -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | ({"README.md": f"---\nlicense: {license}\n---\n# Weights\n".encode()} if license else {})


@pytest.mark.slow
def test_weights_come_from_the_hub_once_and_then_from_the_cache(resnet, vit, digits_run, small_bin, tmp_path):
    calls = [
        ("hf-hub:ada/resnet", "auto"),
        ("hf-hub:ada/resnet@main", "timm:test_resnet"),
        ("hf-hub:ada/own", "auto"),
        ("hf-hub:ada/bin", "auto"),
        ("pretrained", "timm:test_vit"),
    ]
    with running_hub(public=True) as server:
        server.files["ada/resnet"] = repository(resnet)
        server.files["ada/own"] = repository(digits_run / "model", license=None)
        server.files["ada/bin"] = repository(small_bin, "[broken")
        server.files["timm/test_vit.r160_in1k"] = repository(vit, None)
        found = find(tmp_path / "hf", *calls, HF_ENDPOINT=server.url)
        asked = list(server.asked)
        assert find(tmp_path / "hf", *calls, HF_ENDPOINT=server.url) == found
        assert server.asked == asked  # the Hub is not asked again
    assert find(tmp_path / "hf", *calls, HF_HUB_OFFLINE="1") == found
    assert [origin["model"] for origin in found] == [
        "timm:test_resnet", "timm:test_resnet", "resnet18", "timm:test_resnet", "timm:test_vit",
    ]  # fmt: skip
    assert {origin["revision"] for origin in found} == {COMMIT}
    assert [origin["license"] for origin in found] == ["bsd-3-clause", "bsd-3-clause", None, "mit", "apache-2.0"]
    assert found[0]["sha256"] == find_weights(str(resnet)).sha256
    assert found[4]["repository"] == "timm/test_vit.r160_in1k"
    assert (
        len(
            [
                line
                for line in asked
                if line.startswith("GET") and line.endswith("resnet/resolve/main/model.safetensors")
            ]
        )
        == 1
    )


@pytest.fixture(scope="module")
def small_bin(resnet, tmp_path_factory) -> Path:
    """A timm folder whose weights are a pickle."""
    folder = Path(shutil.copytree(resnet, tmp_path_factory.mktemp("bin") / "bin"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_one_line(resnet, tmp_path):
    with running_hub(public=True) as server:
        server.files["ada/resnet"] = repository(resnet)
        server.files["ada/empty"] = {"config.json": b"{}"}
        server.files["ada/unnamed"] = {"model.safetensors": b""}
        lines = find(
            tmp_path / "hf",
            ("hf-hub:ada/nothing", "auto"),
            ("hf-hub:ada/resnet@old", "auto"),
            ("hf-hub:ada/empty", "auto"),
            ("hf-hub:ada/unnamed", "auto"),
            ("hf-hub:ada", "auto"),
            ("hf-hub:../../etc", "auto"),
            ("hf-hub:ada/resnet@../x", "auto"),
            HF_ENDPOINT=server.url,
        )
    expected = [
        "the Hugging Face Hub has no ada/nothing, or it is private",
        "ada/resnet on the Hugging Face Hub has no revision old",
        "ada/empty on the Hugging Face Hub has no model.safetensors",
        "ada/unnamed on the Hugging Face Hub has no config.json",
        "'hf-hub:ada' is not allowed; it must be hf-hub:USER/NAME or hf-hub:USER/NAME@REVISION",
        "'hf-hub:../../etc' is not allowed",
        "'hf-hub:ada/resnet@../x' is not allowed",
    ]
    for (kind, line), words in zip(lines, expected, strict=True):
        assert kind == "UserError"
        assert line.startswith(f"init_from: {words}")


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_a_network_the_line_names_file_cache_and_command(tmp_path, environment):
    calls = [("hf-hub:ada/resnet@v1", "auto"), ("pretrained", "timm:test_vit")]
    (first, named), (second, own) = find(tmp_path / "hf", *calls, **environment)
    assert (first, second) == ("EnvironmentFault", "EnvironmentFault")
    cache = tmp_path / "hf" / "hub"
    assert named.startswith("init_from: config.json and model.safetensors of ada/resnet@v1 cannot be downloaded (")
    assert named.endswith(
        f"are not in the cache, {cache}; where there is a network, this puts them there: "
        "hf download ada/resnet --revision v1"
    )
    assert "model.safetensors of timm/test_vit.r160_in1k" in own
    assert own.endswith("hf download timm/test_vit.r160_in1k")


@pytest.mark.slow
def test_a_hub_that_is_out_of_order_is_a_fault_of_the_environment(tmp_path):
    with running_hub("broken", public=True) as server:
        ((kind, line),) = find(tmp_path / "hf", ("hf-hub:ada/resnet", "auto"), HF_ENDPOINT=server.url)
    assert kind == "EnvironmentFault"
    assert "500" in line


# -- the real weights -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not LITE0.is_dir(), reason="needs the weights of tf_efficientnet_lite0")
def test_real_weights_give_timms_own_logits():
    origin: Origin = find_weights(str(LITE0))
    assert (origin.image_size, origin.crop_pct, origin.mean) == ("224", 0.875, (0.5, 0.5, 0.5))
    names = tuple(map(str, range(1000)))
    model = create_model("timm:tf_efficientnet_lite0", 1000)
    loaded = load_start(model, read_tensors(origin), dataclasses.replace(origin, class_names=names), names, True)
    assert (loaded.new, loaded.unused, loaded.adapted) == ([], [], [])
    theirs = timm.create_model(f"local-dir:{LITE0}", pretrained=True)
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), theirs.eval()(image))
