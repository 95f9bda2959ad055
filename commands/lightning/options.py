"""Options of this project beside those of Lightning: their types, defaults and help."""

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import compiled, explanations, matmul_precision
from callbacks.ema import EMA
from callbacks.features.cache import FeatureCache
from callbacks.scoring.score_before_fit import ScoreBeforeFit
from commands.lightning.parser import GraftParser
from commands.lightning.used_by import USED_BY, used_by
from lightning_modules import TASKS

HEADLINE = "headline"  # value of checkpoint.monitor and mode that stands for the metric by which the task is judged
CHECKPOINT = {"monitor": HEADLINE, "mode": HEADLINE, "filename": "best", "enable_version_counter": False}
ABOUT = (
    "Beside the options below: --method NAME[+NAME] and --task NAME stand for --model (`train.py methods` lists them);"
    " --recipe BENCHMARK/METHOD, or a file of yours, stands for a published method, data and options (`train.py "
    "recipes`), and your own options win over it. predict --images PATH stands for --data ImageFiles: an image or a "
    "folder of images without labels, prepared as those of the run of --ckpt_path. --checkpoint.monitor headline, the "
    "default, is the validation metric by which the task is judged; null keeps the last epoch."
)
HELP: dict[str, dict[str, Any]] = {
    "compile": {
        "type": compiled.Mode | None,
        "default": None,
        "help": "Mode in which torch.compile compiles forward and backward pass of the network; off unless given. "
        "default: several operations in one kernel. reduce-overhead: also CUDA graphs, which start all kernels of a "
        "pass at once and so help small batches on a GPU, for more memory. max-autotune: also the fastest of several "
        "kernels for each product, measured in the first step. The first step takes a minute or more. Results are "
        "equal but for rounding and for the numbers that dropout draws.",
    },
    "checkpoint_activations": {
        "type": bool,
        "default": False,
        "help": "Whether activations inside blocks are computed again in the backward pass, instead of kept for it. A "
        "step needs less memory and about a third more time, and gives equal gradients.",
    },
    "matmul_precision": {
        "type": matmul_precision.Precision,
        "default": "highest",
        "help": "Precision of matrix products of fp32 tensors. highest: fp32. high: TF32 on a GPU, several times "
        "faster, with 10 instead of 23 bits behind the leading one. medium: bf16, with 7 bits. Scores before a fit "
        "are always computed in the highest.",
    },
    "channels_last": {
        "type": bool,
        "default": False,
        "help": "Whether convolutions store their weights and outputs with the channels as the last dimension in "
        "memory. Convolutional networks are faster so on a GPU in 16 bits, because its kernels read this format.",
    },
    "members": {
        "type": list[dict[str, Any]] | dict[str, list[Any]] | None,
        "default": None,
        "help": "Settings that train at once over one frozen backbone: a list of the options of each, or a grid.",
    },
    "export_member": {
        "type": str,
        "default": "best",
        "help": "Name of the member that the adapter folder holds; best is the one with the best validation metric.",
    },
    "test_after_fit": {
        "type": bool,
        "default": False,
        "help": "Whether to test the best checkpoint after the fit.",
    },
    "class_report": {
        "type": bool,
        "default": False,
        "help": "Whether a test of a classifier writes classes.csv (accuracy, precision, F1 and AUROC of each class), "
        "confusion.csv and confusion.png, and logs F1, AUROC and ECE, the expected calibration error. Validation "
        "images, if there are any, choose a temperature that divides the logits, and ECE_calibrated is the error "
        "with it.",
    },
    "top_k": {
        "type": int,
        "default": 1,
        "help": "Number of classes of each image in predictions.csv, the most probable first.",
    },
    "embeddings": {
        "type": str | None,
        "default": None,
        "help": "New file for the input of the classifier for each image: NAME.safetensors or NAME.parquet.",
    },
    "explain": {
        "type": explanations.Explain | None,
        "default": None,
        "help": "Pictures of where the model looks, in explanations/ of the run folder. gradcam: the last feature map, "
        "weighted by the gradient of the predicted class; for all backbones. rollout: attention of all blocks "
        "multiplied, from the class token to the patches; for plain ViTs.",
    },
    "prompts": {
        "type": list[str] | str | None,
        "default": None,
        "help": "Prompts that a language model continues before the fit, after each validation and at the end, or a "
        "text file with one in each line; samples.jsonl in the run folder holds the most probable next tokens, 64 at "
        "most. By default those of the first three validation rows; [] for none.",
    },
    "override_checkpoint": {
        "type": bool,
        "default": False,
        "help": "Whether model options may differ from those saved in --ckpt_path.",
    },
}


def add_options(parser: GraftParser, subcommand: str) -> None:
    """Add the options that a subcommand uses, and the links that fill options of the model from the data.

    Args:
        parser: Parser of the subcommand.
        subcommand: Such as ``fit``.
    """
    parser.description = f"{parser.description} {ABOUT}"
    for option, attribute in sorted({link for task in TASKS.values() for link in task.links.items()}):
        parser.link_arguments(f"data.{attribute}", f"model.init_args.{option}", apply_on="instantiate")
    if used_by(subcommand, "checkpoint"):
        parser.add_class_arguments(ModelCheckpoint, "checkpoint", fail_untyped=False, instantiate=False)
        parser.set_defaults({f"checkpoint.{name}": value for name, value in CHECKPOINT.items()})
    if used_by(subcommand, "score"):
        # without `resume`, which follows from --ckpt_path
        parser.add_class_arguments(ScoreBeforeFit, "score", instantiate=False, skip={"resume"})
    for name, callback in {"features": FeatureCache, "ema": EMA}.items():
        if used_by(subcommand, name):
            parser.add_lightning_class_args(callback, name)
    for name, about in HELP.items():
        if used_by(subcommand, name):
            parser.add_argument(f"--{name}", **about)
    parser.add_argument("--run_root", type=str, default="runs", help="Folder of all run folders.")
    parser.skip_in_configs(name for name in USED_BY if not used_by(subcommand, name))
