"""Upload an adapter folder, a merged model or another folder of weights to the Hugging Face hub."""

from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "*.onnx")
FILES = [*WEIGHTS, "*.json", "README.md"]


def push(folder: Path, repo: str, private: bool = False, revision: str | None = None, message: str = "") -> None:
    """Upload weights with their model card. The folder itself does not change, and a failed upload can be repeated.

    The hub knows you by ``hf auth login`` or by the variable HF_TOKEN. HF_ENDPOINT names another hub.

    Args:
        folder: Folder such as ``RUN/adapter`` or that of a merge. Its weights (safetensors or ONNX), JSON files and
            README.md are uploaded, nothing else.
        repo: Name of the repository, USER/NAME. It is made if there is none.
        private: Whether a new repository is private.
        revision: Branch; the main branch by default.
        message: Description of the change.
    """
    from huggingface_hub import HfApi

    check_folder(folder)
    check_name(repo)
    url = upload(HfApi(), folder, repo, private, revision, message or f"Upload {folder.name}")
    print(f"uploaded {folder} to {url}")
    if (folder / "config.json").is_file():
        print(f"timm.create_model('hf-hub:{repo}', pretrained=True)")


def check_folder(folder: Path) -> None:
    """Refuse a folder without weights or without a model card.

    Raises:
        FileNotFoundError: With what is missing and which command writes it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder={str(folder)!r}: no such folder; nothing was uploaded")
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise FileNotFoundError(
            f"folder={str(folder)!r} holds no weights (*.safetensors, *.onnx): expected an adapter folder or the "
            "output of `python train.py merge`; nothing was uploaded"
        )
    if not (folder / "README.md").is_file():
        raise FileNotFoundError(
            f"folder={str(folder)!r} has no README.md, the model card: a fit and `python train.py merge` write one; "
            "nothing was uploaded"
        )


def check_name(repo: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        ValueError: With the name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"repo={repo!r}: expected USER/NAME ({error})") from error


def upload(api: Any, folder: Path, repo: str, private: bool, revision: str | None, message: str) -> str:
    """Upload a folder; returns the address of the repository.

    Args:
        api: A ``huggingface_hub.HfApi``.
        folder: Folder of the files.
        repo: Name of the repository.
        private: Whether a new repository is private.
        revision: Branch, or None for the main one.
        message: Description of the change.

    Raises:
        ValueError: If the hub cannot be reached or refuses, with its reason.
    """
    from huggingface_hub import errors
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    no_network = getattr(errors, "HTTPError", OSError)  # of httpx; older versions of the library raise an OSError
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message, allow_patterns=FILES
        )
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        code = getattr(getattr(error, "response", None), "status_code", None)
        login = "; log in by `hf auth login`, or set HF_TOKEN" if code in (None, 401, 403) else ""
        raise ValueError(f"repo={repo!r}: the hub refused: {first_line(error)}{login}. {kept(folder)}") from error
    except (OSError, no_network) as error:
        raise ValueError(
            f"repo={repo!r}: the hub {api.endpoint} cannot be reached ({first_line(error)}); try again with a network. "
            f"{kept(folder)}"
        ) from error
    return str(url)


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def kept(folder: Path) -> str:
    return f"{folder} is unchanged"
