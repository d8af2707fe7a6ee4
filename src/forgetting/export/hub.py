"""A folder on the Hugging Face hub, by its own client. Knows nothing of what is in the folder."""

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
    """Refuse, before any work is done for it, a repository that cannot be written to.

    Raises:
        InputError: no such name can be, nobody is logged in, or it is public and was not meant to
            be.
        ForgettingError: the hub cannot be asked.
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
            f"--push-to-hub {repo_id}: it exists and everybody can read it. Add --public if that "
            "is what you want, or choose another name"
        )


def push(folder: Path, repo_id: str, repo_type: RepoType, *, public: bool) -> str:
    """Put all files of a folder into a repository, in one commit; gives its address.

    Args:
        public: a repository that has to be made first can be read by everybody.

    Raises:
        ForgettingError: the hub refuses, or cannot be reached.
    """
    api = HfApi()
    with _explained(repo_id, f". The export is in {folder}"):
        url = api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message="Export of forgetting",
        )
    return str(url)


@contextmanager
def _explained(repo_id: str, more: str = "") -> Iterator[None]:
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError(
            f"--push-to-hub {repo_id}: nobody is logged in to the hub. Log in with "
            "`hf auth login`, or set HF_TOKEN"
        ) from error
    # The client raises whatever the network and the hub do.
    except Exception as error:
        raise ForgettingError(
            f"--push-to-hub {repo_id}: {' '.join(str(error).split())[:300]}{more}"
        ) from error
