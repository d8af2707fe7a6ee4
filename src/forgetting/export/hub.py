"""Uploads a folder to the Hugging Face Hub. Knows nothing of its content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from forgetting.errors import ForgettingError, InputError

RepoType = Literal["model", "dataset"]


def check_repo(repo_id: str, repo_type: RepoType, *, public: bool) -> None:
    """Refuse a repository that cannot be written to, before any work.

    Raises:
        InputError: the name is invalid, nobody is logged in, or the repository is public and
            `public` is False.
        ForgettingError: the Hub cannot be reached.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {repo_id}: {error}") from error
    api = HfApi()
    with _explained(repo_id):
        api.whoami()
        is_public = (
            api.repo_exists(repo_id, repo_type=repo_type)
            and not api.repo_info(repo_id, repo_type=repo_type).private
        )
    if is_public and not public:
        raise InputError(
            f"--push-to-hub {repo_id}: this repository is public. Add --public if you want that, "
            "or choose another name"
        )


def push(folder: Path, repo_id: str, repo_type: RepoType, *, public: bool) -> str:
    """Upload a folder in one commit; returns the address of the repository.

    Args:
        public: whether a new repository is public.

    Raises:
        ForgettingError: the Hub refuses or cannot be reached.
    """
    api = HfApi()
    with _explained(repo_id, f". The export is in {folder}"):
        url = api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message="Export from forgetting",
        )
    return str(url)


@contextmanager
def _explained(repo_id: str, more: str = "") -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"--push-to-hub {repo_id}: you are not logged in to the Hub. Run `hf auth login`, or "
            "set HF_TOKEN"
        ) from error
    # The client passes on any error of the network or of the Hub.
    except Exception as error:
        raise ForgettingError(
            f"--push-to-hub {repo_id}: {' '.join(str(error).split())[:300]}{more}"
        ) from error
