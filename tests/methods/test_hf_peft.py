"""Methods of Hugging Face's package peft."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from checkpoints.delta import WEIGHTS, write_adapter
from methods import PEFTMethod
from methods.hf_peft import REFUSED, read_config
from tests.conftest import checkpoint_of, perturb

COUNTS: dict[str, int] = {}  # there is no method without a config
IDENTITY: dict[str, Any] | None = {}
Build = Callable[..., PEFTMethod]

TARGETS = {"target_modules": ["qkv", "fc1"]}
# options with which a type fits the tiny backbone, and its number of parameters there: 2 blocks with a qkv of 48 x 144
# and an fc1 of 48 x 192
TYPES: dict[str, tuple[dict[str, Any], int]] = {
    "BOFT": ({"boft_block_size": 4}, 2 * (12 * 4 * 4 * 2 + 144 + 192)),  # blocks of 4 x 4 and a scale for each output
    "FOURIERFT": ({"n_frequency": 20}, 4 * 20),
    "GLORA": ({"r": 4}, 7704),
    "IA3": ({"feedforward_modules": ["fc1"]}, 2 * (144 + 48)),
    "LILY": ({"r": 4}, 3488),
    "LOHA": ({"r": 4}, 2 * 2 * 4 * (48 + 144 + 48 + 192)),
    "LOKR": ({"r": 4}, 640),
    "LORA": ({"r": 4}, 2 * 4 * (48 + 144 + 48 + 192)),
    "OFT": ({"oft_block_size": 16, "r": 0}, 4 * 3 * 16 * 15 // 2),  # 3 skew-symmetric blocks of 16 x 16
    "PVERA": ({"r": 8}, 2 * (8 + 8 + 144 + 8 + 8 + 192)),
    "RANDLORA": ({"r": 4}, 2496),
    "SHIRA": ({"r": 2}, 2 * 2 * (48 + 144 + 48 + 192)),
    "VERA": ({"r": 8}, 2 * (8 + 144 + 8 + 192)),
}


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def config(kind: str) -> dict[str, Any]:
    return {"peft_type": kind, **TARGETS, **TYPES[kind][0]}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("kind", TYPES)
def test_a_type_of_the_package(kind: str, build: Build, tmp_path: Path) -> None:
    """Frozen weights stay, one step trains all of it, a copy is independent, a file gives it back, and it merges."""
    model = build("hf_peft", peft_config=config(kind))
    plain = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    model.configure_model()
    assert model.parameter_counts()["method"] == TYPES[kind][1]
    model.train()(images()).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    perturb(model.eval())
    state = model.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.items() if not name.startswith("head"))
    with torch.no_grad():
        logits = model(images())
        perturb(copy.deepcopy(model))
        torch.manual_seed(99)  # the random tensors of the file count, and not those that are drawn now
        write_adapter(tmp_path, checkpoint_of(model))
        assert torch.equal(PEFTMethod.from_delta(tmp_path)(images()), logits)
        if kind == "LILY":
            with pytest.raises(TypeError, match="cannot be merged because the package peft has no merge"):
                model.merge()
            return
        merged = model.merge()
        torch.testing.assert_close(merged(images()), logits, atol=1e-5, rtol=0)
    assert merged.state_dict().keys() == plain.keys()


@pytest.mark.parametrize("kind", ["LOHA", "VERA"])
def test_outputs_equal_those_of_the_package_alone(kind: str, build: Build) -> None:
    model = build("hf_peft", peft_config=config(kind))
    backbone: Any = copy.deepcopy(model.backbone)
    model.configure_model()
    perturb(model.eval())
    options = {name: value for name, value in config(kind).items() if name != "peft_type"}
    alone = peft.get_peft_model(backbone, peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**options)).eval()
    own = {name.replace(".hf_peft.", "."): tensor for name, tensor in model.backbone.state_dict().items()}
    found = alone.load_state_dict(
        {f"base_model.model.{name}": tensor for name, tensor in own.items()}
        | {
            f"base_model.{name.split('.')[-2]}.default": t
            for name, t in own.items()
            if "vera_A" in name or "vera_B" in name
        },
        strict=False,
    )
    missing = [
        name
        for name in found.missing_keys
        if ".base_layer." not in name and "vera_A" not in name and "vera_B" not in name
    ]
    assert not missing
    with torch.no_grad():
        torch.testing.assert_close(model(images()), alone(images()), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Specified to not save")
def test_shared_tensors_are_saved_once(build: Build, tmp_path: Path) -> None:
    model = build("hf_peft", peft_config=config("VERA"))
    model.configure_model()
    write_adapter(tmp_path, checkpoint_of(model))
    names = list(load_file(tmp_path / WEIGHTS))
    assert len([name for name in names if "vera_A" in name]) == 1
    assert len([name for name in names if "vera_lambda_d" in name]) == 4
    small = build("hf_peft", peft_config=config("VERA") | {"save_projection": False})
    small.configure_model()
    assert not [name for name in small.delta_state_dict() if "vera_A" in name]


def test_a_file_gives_the_config(build: Build, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(config("LOHA") | {"alpha": 1e-3, "task_type": None}))
    (tmp_path / "a.yaml").write_text("peft_type: LOHA\nr: 4\nalpha: 0.001\ntarget_modules: [qkv, fc1]\n")
    for name in ("a.json", "a.yaml"):
        model = build("hf_peft", peft_config=str(tmp_path / name))
        assert model.hparams["peft_config"]["alpha"] == 1e-3  # a checkpoint holds the options, and not the path


def test_all_linear_layers_are_those_outside_the_classifier(build: Build) -> None:
    model = build("hf_peft", peft_config={"peft_type": "LORA", "target_modules": "all-linear"})
    model.configure_model()
    found = {name.rpartition(".")[2] for name, module in model.backbone.named_modules() if hasattr(module, "hf_peft")}
    assert found == {"qkv", "proj", "fc1", "fc2"}


def test_stacked_on_a_method_that_trains_biases(build: Build) -> None:
    model = build("bitfit+hf_peft", peft_config=config("LORA"))
    model.configure_model()
    perturb(model.eval())
    assert model.backbone.blocks[0].attn.qkv.bias.requires_grad  # type: ignore[index, union-attr]
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(images()), model(images()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, r"pass --model\.peft_config FILE"),
        ({"r": 4}, "peft_type=None; expected one of .*LOHA"),
        ({"peft_type": "LOHO", **TARGETS}, "peft_type='LOHO'; expected one of"),
        ({"peft_type": "LOHA", "rank": 4, **TARGETS}, "LOHA has no option rank; expected .*rank_dropout"),
        ({"peft_type": "LOHA", "r": 4}, "target_modules is missing"),
        ({"peft_type": "LORA", "bias": "all", **TARGETS}, r"bias='all' trains more .*hf_peft\+bitfit"),
        ({"peft_type": "LORA", "modules_to_save": ["head"], **TARGETS}, "modules_to_save=.*leave it out"),
        ({"peft_type": "OFT", "r": 4, "oft_block_size": 16, **TARGETS}, "OFT does not take these options"),
        *[({"peft_type": kind.lower()}, f"{kind} cannot be used, because") for kind in REFUSED],
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any] | None, message: str, build: Build) -> None:
    with pytest.raises(ValueError, match=message):
        build("hf_peft", peft_config=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["qkv", "query"]}, "is called query .*expected names such as qkv, proj, fc1, fc2"),
        ({"target_modules": "query"}, "cannot adapt VisionTransformer: Target modules query not found"),
        ({"target_modules": ["qkv", "head"]}, "names head of the classifier"),
        (
            {"peft_type": "LORA", "init_lora_weights": "pissa"},
            r"change the frozen weights, such as blocks\.0\.attn\.qkv",
        ),
        ({"peft_type": "MISS", "r": 64}, r"cannot adapt VisionTransformer: `r` \(64\) must be"),
    ],
)
def test_a_config_that_does_not_fit_the_backbone(options: dict[str, Any], message: str, build: Build) -> None:
    model = build("hf_peft", peft_config={"peft_type": "LOHA", **TARGETS} | options)
    with pytest.raises(ValueError, match=message):
        model.adapt_before_data()


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no readable file"):
        read_config(str(tmp_path / "none.json"))
    for name, text in {"a.json": "{", "a.yaml": "a: [", "b.yaml": "LOHA"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=r"is no JSON or YAML file|holds no options"):
            read_config(str(tmp_path / name))


def test_without_the_package(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install peft \(or `\.\[peft\]`"):
        build("hf_peft", peft_config=config("LOHA"))
