"""The classes that join methods with tasks."""

import pickle
from typing import Any

import pytest
import timm

import methods
from lightning_modules import TASKS
from lightning_modules.classification import Classification
from methods import METHODS, PEFTMethod, compose
from methods.bitfit import BitFit
from methods.ssf import SSF
from tests.conftest import BACKBONE, TINY

OPTIONS: dict[str, Any] = {"backbone": BACKBONE, "backbone_args": TINY, "pretrained": False, "num_classes": 3}


def test_every_method_and_task_has_a_short_name() -> None:
    for method in METHODS.values():
        for task in TASKS.values():
            cls = getattr(methods, f"{method.__name__}{task.__name__}")
            assert cls.__bases__ == (method, task)
            assert cls.__doc__ == method.__doc__  # the help of the command line
            assert compose(method, task=task) is cls


def test_stacked_name_by_attribute() -> None:
    vars(methods).pop("SSFBitFitClassification", None)
    cls = methods.SSFBitFitClassification
    assert cls.__bases__ == (SSF, BitFit, Classification)
    assert cls is compose(SSF, BitFit, task=Classification)
    assert methods.SSFBitFitClassification is cls
    assert cls.method_name() == "SSF+BitFit"


def test_both_methods_of_a_stack_train() -> None:
    model = compose(SSF, BitFit, task=Classification)(**OPTIONS)
    model.configure_model()
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert {"blocks.0.attn.qkv.ssf.scale", "blocks.0.attn.qkv.bias"} <= trained
    assert "blocks.0.attn.qkv.weight" not in trained


@pytest.mark.parametrize("name", ["Classification", "SFFClassification", "SSF", "SSFBitFit", "SSFClassifications"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'methods' has no attribute '{name}'"):
        getattr(methods, name)


def test_duplicate_arguments_are_refused() -> None:
    class Other(PEFTMethod):
        def __init__(self, ssf_std: float = 1.0, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    Other.__module__ = "methods.other"
    with pytest.raises(TypeError, match="SSFOtherClassification: SSF and Other both declare 'ssf_std'"):
        compose(SSF, Other, task=Classification)

    class Rate(PEFTMethod):
        def __init__(self, lr: float = 1.0, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    Rate.__module__ = "methods.rate"
    with pytest.raises(TypeError, match="Rate and Optimized both declare 'lr'"):
        compose(Rate, task=Classification)
    assert not {"SSFOtherClassification", "RateClassification"} & vars(methods).keys()


@pytest.mark.parametrize("name", ["SSFClassification", "SSFBitFitClassification"])
def test_classes_and_models_pickle(name: str) -> None:
    cls = getattr(methods, name)
    data = pickle.dumps(cls)
    if name == "SSFBitFitClassification":  # as in a new process, which has not made it yet
        del vars(methods)[name]
    again = pickle.loads(data)
    assert again.__bases__ == cls.__bases__
    model = pickle.loads(pickle.dumps(again(**OPTIONS)))
    assert type(model) is again


def test_a_class_written_by_hand_is_the_same() -> None:
    class Mine(SSF, Classification):
        pass

    model = Mine(**OPTIONS)
    model.configure_model()
    composed = compose(SSF, task=Classification)(**OPTIONS)
    composed.configure_model()
    assert model.parameter_counts() == composed.parameter_counts()
    assert Mine.method_name() == "SSF"
    assert isinstance(model.backbone, timm.models.VisionTransformer)
